"""llama.cpp as a reader of our files: its own server, from the prebuilt wheel ``xllamacpp``, asked over HTTP."""

from __future__ import annotations

import json
import math
import urllib.request
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch

REASON = "llama.cpp is not installed: pip install xllamacpp (a prebuilt wheel)"
_FORCED = 1e4  # a bias no logit outweighs


@dataclass(frozen=True)
class LlamaCpp:
    """A model that llama.cpp has loaded."""

    address: str

    def ask(self, path: str, **body: Any) -> Any:
        """What the server answers; an HTTP error is raised with what it says."""
        data = json.dumps(body).encode()
        request = urllib.request.Request(self.address + path, data, {"Content-Type": "application/json"})
        try:
            with urllib.request.urlopen(request) as answer:
                return json.loads(answer.read())
        except urllib.error.HTTPError as error:
            raise AssertionError(f"{path}: {error.read().decode()}") from None

    def tokenize(self, text: str, *, add_bos: bool = True, special: bool = True) -> list[int]:
        """The ids of a text; ``special``: names of control tokens in it are those tokens."""
        found = self.ask("/tokenize", content=text, add_special=add_bos, parse_special=special)
        return [int(number) for number in found["tokens"]]

    def prompt(self, messages: list[dict[str, str]]) -> str:
        """A chat as the file's own template renders it."""
        return str(self.ask("/apply-template", messages=messages)["prompt"])

    def greedy(self, ids: Sequence[int], count: int) -> list[int]:
        """The ``count`` tokens that follow; fewer where one of them is an end of generation."""
        found = self._complete(ids, n_predict=count)
        return [int(number) for number in found["tokens"]]

    def log_probabilities(self, ids: Sequence[int], printable: int, top: int) -> torch.Tensor:
        """[top, 2]: ids and log-probabilities, before any sampling, of what follows ``ids``, likeliest first.

        The server lists them beside a token that ends a letter, so ``printable``, any such token, is chosen by force.
        """
        answer = self._complete(ids, n_predict=1, n_probs=top, logit_bias=[[printable, _FORCED]])
        (found,) = answer["completion_probabilities"]
        return torch.tensor([[entry["id"], entry["logprob"]] for entry in found["top_logprobs"]], dtype=torch.float64)

    def _complete(self, ids: Sequence[int], **more: Any) -> Any:
        settings = {"temperature": 0, "samplers": ["temperature"], "return_tokens": True, "cache_prompt": False}
        return self.ask("/completion", prompt=list(ids), **{**settings, **more})


@contextmanager
def open_llama(file: Path, context: int = 256) -> Iterator[LlamaCpp]:
    """The file in llama.cpp: one thread, keys and values kept in float32, attention as a matrix product."""
    native = pytest.importorskip("xllamacpp", reason=REASON)
    params = native.CommonParams()
    params.model.path = str(file)
    params.n_ctx, params.n_parallel, params.warmup, params.fit_params, params.verbosity = context, 1, False, False, -1
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = 1
    params.cache_type_k = params.cache_type_v = native.ggml_type.GGML_TYPE_F32
    params.flash_attn_type = native.llama_flash_attn_type.LLAMA_FLASH_ATTN_TYPE_DISABLED
    server = native.Server(params)
    try:
        yield LlamaCpp(server.listening_address)
    finally:
        del server


def log_probabilities(llama: LlamaCpp, ids: Sequence[int], printable: int, size: int) -> torch.Tensor:
    """[T, V]: llama.cpp's of every token after every beginning of ``ids``."""
    found = torch.full((len(ids), size), torch.nan, dtype=torch.float64)
    for at in range(len(ids)):
        numbers, values = llama.log_probabilities(ids[: at + 1], printable, size).unbind(1)
        found[at][numbers.long()] = values
    assert not found.isnan().any()
    return found


def require_same_log_probabilities(
    llama: LlamaCpp, ours: torch.Tensor, ids: Sequence[int], printable: int, tolerance: float, top: int, last: int = 99
) -> None:
    """Logits [T, V] of ours give llama.cpp's log-probabilities of its ``top`` tokens, at the ``last`` positions.

    Logits that differ by one number for all tokens of a position have the same probabilities, and are not told apart.
    """
    expected = ours.double().log_softmax(-1)
    for at in range(max(0, len(ids) - last), len(ids)):
        numbers, values = llama.log_probabilities(ids[: at + 1], printable, top).unbind(1)
        assert len(set(numbers.tolist())) == top
        worst = (expected[at][numbers.long()] - values).abs().max().item()
        assert worst <= tolerance, f"position {at}: log-probabilities differ by {worst:g}"


def require_same_greedy_tokens(
    llama: LlamaCpp, model: Any, ids: Sequence[int], count: int, ends: Iterable[int]
) -> list[int]:
    """Both continue ``ids`` alike, each with its own cache; llama.cpp stops at an end of generation. The tokens."""
    told = model.generate(torch.tensor([list(ids)]), do_sample=False, max_new_tokens=count, eos_token_id=None)
    ours = told[0].tolist()[len(ids) :]
    theirs = llama.greedy(ids, count)
    last = next((at for at, number in enumerate(ours) if number in set(ends)), math.inf)
    assert theirs == ours[: int(min(last + 1, count))]
    return theirs
