"""What ``glmlike doctor`` looks at: whether this machine can run glmlike, and what one more package would add."""

from __future__ import annotations

import os
import platform
import re
import shutil
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path
from typing import Any, Literal

import glmlike

Status = Literal["ok", "absent", "note", "problem"]


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at. ``advice`` is what to do; only a ``problem`` keeps glmlike from working."""

    group: str
    name: str
    status: Status
    found: str
    advice: str = ""


OPTIONAL: dict[str, tuple[str, str]] = {
    "peft": ("LoRA and other adapters", "glmlike[lora]"),
    "accelerate": ("training, device_map", "glmlike[train]"),
    "datasets": ("training on data sets", "glmlike[train]"),
    "trl": ("SFT, DPO, GRPO, distillation", "glmlike[train]"),
    "bitsandbytes": ("4 and 8 bit, QLoRA", "glmlike[quant]"),
    "torchao": ("int8, int4 and float8 weights", "torchao"),
    "gguf": ("files for llama.cpp", "glmlike[gguf]"),
    "sentencepiece": ("the vocabulary of a GGUF file", "glmlike[gguf]"),
    "lm-eval": ("glmlike eval", "glmlike[eval]"),
    "matplotlib": ("loss curves as pictures in cards", "glmlike[cards]"),
    "jinja2": ("chat templates", "jinja2"),
    "hf-xet": ("fast transfers from and to the Hub", "hf-xet"),
}
"""Package: what it is for, and what to ask pip for."""


def examine() -> Iterator[Finding]:
    """Every finding, in the order they are shown. Nothing is changed, no network is used, no token is shown."""
    for part in (_required, _plugin, _optional, _processor, _memory, _hub):
        yield from _survived(part)


def _survived(part: Callable[[], Iterator[Finding]]) -> Iterator[Finding]:
    """A broken installation fails in ways of its own; that is a finding, and the rest is still worth a look."""
    try:
        yield from part()
    except Exception as error:
        name, reason = part.__name__.strip("_"), str(error).strip().partition("\n")[0]
        advice = "Install glmlike anew, in an environment of its own."
        yield Finding(name, name, "problem", f"{type(error).__name__}: {reason}", advice)


def _required() -> Iterator[Finding]:
    yield Finding("versions", "glmlike", "ok", glmlike.__version__)
    ours = requires_python()
    new_enough = sys.version_info >= ours
    advice = "" if new_enough else f"glmlike needs Python {'.'.join(map(str, ours))} or later."
    yield Finding("versions", "Python", "ok" if new_enough else "problem", platform.python_version(), advice)
    for name, wanted in _requirements("").items():
        yield _installed("versions", name, wanted, required=True)


def requires_python() -> tuple[int, ...]:
    """The oldest Python that this package says it runs on."""
    from importlib.metadata import metadata

    try:
        said = metadata("glmlike")["Requires-Python"]
    except PackageNotFoundError:  # run from a checkout
        said = None
    numbers = re.search(r"(\d+)\.(\d+)", said or "3.10")
    assert numbers is not None
    return int(numbers[1]), int(numbers[2])


def _requirements(extra: str) -> dict[str, str]:
    """Package to range, of the package itself or of one extra, from what pip recorded."""
    try:
        lines = requires("glmlike") or []
    except PackageNotFoundError:
        return {"torch": ">=2.6", "transformers": ">=5.16,<6"} if not extra else {}
    found = {}
    for line in lines:
        wanted, _, condition = line.partition(";")
        named = re.search(r"extra == ['\"]([\w-]+)['\"]", condition)
        if (named[1] if named else "") == extra and (parts := re.match(r"\s*([\w.-]+)\s*(?:\[.*\])?\s*(.*)", wanted)):
            found[parts[1]] = parts[2].strip(" ()")
    return found


def _installed(group: str, name: str, wanted: str, *, required: bool, use: str = "", ask: str = "") -> Finding:
    from packaging.specifiers import SpecifierSet

    line = f"pip install '{ask or name + wanted}'"
    try:
        found = version(name)
    except PackageNotFoundError:
        status: Status = "problem" if required else "absent"
        return Finding(group, name, status, "not installed", f"{use + ': ' if use else ''}{line}")
    # A development version of the newest release counts as that release.
    if wanted and not SpecifierSet(wanted).contains(found, prereleases=True):
        status = "problem" if required else "note"
        return Finding(group, name, status, f"{found}; supported is {wanted}", line)
    return Finding(group, name, "ok", f"{found}{' (' + wanted + ')' if required and wanted else ''}", use)


def _optional() -> Iterator[Finding]:
    for name, (use, ask) in OPTIONAL.items():
        extra = re.fullmatch(r"glmlike\[(\w+)\]", ask)
        wanted = _requirements(extra[1]).get(name, "") if extra else ""
        yield _installed("optional packages", name, wanted, required=False, use=use, ask=ask)


def _plugin() -> Iterator[Finding]:
    import torch
    from transformers import CONFIG_MAPPING, AutoModelForCausalLM, AutoTokenizer

    from glmlike.data import TINY

    ours = {name: CONFIG_MAPPING[name].__module__.partition(".")[0] for name in ("glmlike", "chatglm", "glm")}
    wrong = [name for name, package in ours.items() if package != "glmlike"]
    said = f"not glmlike's: {', '.join(wrong)}" if wrong else f"transformers knows {', '.join(ours)}"
    advice = "Another package has taken the name: import glmlike after it, or without it." if wrong else ""
    yield Finding("plugin", "registered", "problem" if wrong else "ok", said, advice)
    model = AutoModelForCausalLM.from_pretrained(TINY, dtype=torch.float32)
    with torch.no_grad():
        logits = model(**AutoTokenizer.from_pretrained(TINY)("In the beginning", return_tensors="pt")).logits
    runs = bool(torch.isfinite(logits).all())
    yield Finding("plugin", "embedded model", "ok" if runs else "problem", "runs" if runs else "gives no numbers")


def _processor() -> Iterator[Finding]:
    import torch

    capability = torch.backends.cpu.get_cpu_capability()
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    yield Finding("processors", "CPU", "ok", f"{platform.machine()}, {cores} cores, {capability}")
    features = _cpu_features()
    if platform.machine().lower() in ("x86_64", "amd64"):
        fast = [name for name in ("avx512_bf16", "amx_bf16") if name in features]
        said = ", ".join(fast) if fast else "no avx512_bf16, no amx_bf16"
        advice = "" if fast else "bfloat16 is slow here: load with dtype='float32', or quantize."
        yield Finding("processors", "bfloat16 on the CPU", "ok" if fast else "note", said, advice)
    if torch.cuda.is_available():
        for number in range(torch.cuda.device_count()):
            card = torch.cuda.get_device_properties(number)
            yield Finding("processors", f"cuda:{number}", "ok", f"{card.name}, {_gigabytes(card.total_memory)}")
    elif torch.backends.mps.is_available():
        yield Finding("processors", "mps", "ok", "Apple GPU, shares the memory")
    else:
        built = torch.version.cuda or torch.version.hip
        advice = "This torch is built for GPUs, but sees none: check the driver." if built else ""
        yield Finding("processors", "GPU", "absent", "none", advice)


def _cpu_features() -> set[str]:
    """The CPU's flags as Linux names them; elsewhere what torch asks the processor for."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf8", errors="replace")
    except OSError:
        import torch

        asked = {"avx512_bf16": "_is_avx512_bf16_supported", "amx_bf16": "_is_amx_tile_supported"}
        return {name for name, test in asked.items() if getattr(torch.cpu, test, bool)()}
    flags = re.search(r"^(?:flags|Features)\s*:(.*)$", lines, re.MULTILINE)
    return set(flags[1].split()) if flags else set()


def _memory() -> Iterator[Finding]:
    total = _total_memory()
    if total is not None:
        yield Finding("memory and disk", "memory", "ok", _gigabytes(total))
    from huggingface_hub.constants import HF_HUB_CACHE

    cache = Path(HF_HUB_CACHE)
    for name, place in (("Hub cache", cache), ("here", Path.cwd())):
        existing = next(folder for folder in (place, *place.parents) if folder.exists())
        free = shutil.disk_usage(existing).free
        writable = os.access(existing, os.W_OK)
        advice = (
            "" if writable else "Make it writable, or set HF_HOME." if place == cache else "Work in another folder."
        )
        said = f"{place}: {_gigabytes(free)} free"
        status: Status = "ok" if writable and free > 1e9 else "note"
        yield Finding("memory and disk", name, status, said if writable else f"{place}: not writable", advice)


def _total_memory() -> int | None:
    """Bytes that a process may use: the machine's, or the container's if that is less."""
    try:
        total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, OSError, ValueError):
        return None
    limits = (_number_in(f"/sys/fs/cgroup/{name}") for name in ("memory.max", "memory/memory.limit_in_bytes"))
    return min(total, *(limit for limit in limits if limit is not None), total)


def _number_in(path: str) -> int | None:
    try:
        return int(Path(path).read_text())
    except (OSError, ValueError):  # not there, or "max"
        return None


def _gigabytes(count: float) -> str:
    return f"{count / 1e9:.1f} GB"


def _hub() -> Iterator[Finding]:
    from huggingface_hub import constants, get_token

    token = get_token() is not None
    yield Finding(
        "Hub",
        "login",
        "ok" if token else "absent",
        "a token is there (not shown, not tried)" if token else "no token",
        "" if token else "For private and gated repositories, and to push: hf auth login",
    )
    offline = [
        name for name in ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE") if os.environ.get(name, "0") not in ("", "0")
    ]
    said = f"{', '.join(offline)} set: only the cache is read" if offline else constants.ENDPOINT
    yield Finding("Hub", "offline" if offline else "address", "note" if offline else "ok", said)


def to_dict(findings: list[Finding]) -> dict[str, Any]:
    """What ``--json`` prints."""
    from dataclasses import asdict

    return {"healthy": all(finding.status != "problem" for finding in findings), "findings": [*map(asdict, findings)]}
