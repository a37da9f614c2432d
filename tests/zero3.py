"""ZeRO-3 as transformers sees it, without DeepSpeed: parameters are empty but while they are gathered.

What stands in for the library is what transformers' own zero3 code calls: ``zero.Init`` empties the parameters of every
module as soon as its ``__init__`` has returned, ``zero.GatheredParameters`` gives their numbers back for a while.
"""

from __future__ import annotations

import functools
import sys
import types
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn


class _Config:
    config: dict[str, Any] = {"zero_optimization": {"stage": 3}}  # noqa: RUF012

    def is_zero3(self) -> bool:
        return True


def _partition(parameter: Any) -> None:
    parameter.whole = parameter.data.clone()
    parameter.data = parameter.data.new_empty(0)


@contextmanager
def gathered(parameters: Any, modifier_rank: int | None = None, **_: Any) -> Iterator[None]:
    """The numbers are there inside; what was written to them stays."""
    held = [p for p in ([parameters] if isinstance(parameters, nn.Parameter) else parameters) if hasattr(p, "whole")]
    for parameter in held:
        parameter.data = parameter.whole
    try:
        yield
    finally:
        for parameter in held:
            _partition(parameter)


def _wrapped(cls: type[nn.Module]) -> Any:
    original = cls.__dict__["__init__"]

    @functools.wraps(original)
    def init(self: Any, *args: Any, **kwargs: Any) -> None:
        original(self, *args, **kwargs)
        if type(self) is cls:
            for parameter in self.parameters(recurse=False):
                if not hasattr(parameter, "whole"):
                    _partition(parameter)

    return init


def _descendants(cls: type) -> set[type]:
    return {cls}.union(*(_descendants(child) for child in cls.__subclasses__()))


@contextmanager
def _init(**_: Any) -> Iterator[None]:
    changed = {cls: cls.__dict__["__init__"] for cls in _descendants(nn.Module) if "__init__" in cls.__dict__}
    for cls in changed:
        cls.__init__ = _wrapped(cls)  # type: ignore[misc]
    try:
        yield
    finally:
        for cls, original in changed.items():
            cls.__init__ = original  # type: ignore[misc]


@contextmanager
def enabled(monkeypatch: pytest.MonkeyPatch, folder: Path) -> Iterator[None]:
    """transformers takes ZeRO-3 for enabled, with one process."""
    from transformers.integrations.deepspeed import set_hf_deepspeed_config, unset_hf_deepspeed_config

    library: Any = types.ModuleType("deepspeed")
    library.zero = types.SimpleNamespace(Init=_init, GatheredParameters=gathered)
    library.comm = types.SimpleNamespace(get_rank=lambda: 0)
    accelerator: Any = types.ModuleType("deepspeed.accelerator")
    accelerator.get_accelerator = lambda: types.SimpleNamespace(current_device_name=lambda: "cpu")
    library.__path__ = []
    parts: Any = types.ModuleType("deepspeed.runtime.zero.partition_parameters")
    parts.zero_wrapper_for_fp_tensor_constructor = parts._orig_torch_arange = None
    for name in ("deepspeed.runtime", "deepspeed.runtime.zero"):
        package: Any = types.ModuleType(name)
        package.__path__, package.partition_parameters = [], parts
        monkeypatch.setitem(sys.modules, name, package)
    monkeypatch.setitem(sys.modules, parts.__name__, parts)
    monkeypatch.setitem(sys.modules, "deepspeed", library)
    monkeypatch.setitem(sys.modules, "deepspeed.accelerator", accelerator)
    config = _Config()
    set_hf_deepspeed_config(config)
    torch.distributed.init_process_group("gloo", init_method=f"file://{folder / 'rank'}", rank=0, world_size=1)
    try:
        yield
    finally:
        torch.distributed.destroy_process_group()
        unset_hf_deepspeed_config()
