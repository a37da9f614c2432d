"""``glmlike chat``."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Annotated, Any, Optional

import typer

from glmlike.commands.options import Model, Rope


def chat(
    model: Model,
    system: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option(help="what the model is told first"),
    ] = None,
    tools: Annotated[
        Optional[Path],  # noqa: UP045
        typer.Option(help="a JSON file that describes tools; calls are shown, you type the results"),
    ] = None,
    history: Annotated[bool, typer.Option("--history/--no-history", help="remember earlier turns")] = True,
    raw: Annotated[bool, typer.Option("--raw", help="continue text, without roles: for base models")] = False,
    max_new_tokens: Annotated[int, typer.Option(help="tokens of a reply at most", min=1)] = 512,
    temperature: Annotated[
        Optional[float],  # noqa: UP045
        typer.Option(help="0 is greedy", min=0.0, show_default="the model's"),
    ] = None,
    top_p: Annotated[
        Optional[float],  # noqa: UP045
        typer.Option(min=0.0, max=1.0, help="the likeliest tokens of this total", show_default="the model's"),
    ] = None,
    top_k: Annotated[
        Optional[int],  # noqa: UP045
        typer.Option(min=1, help="so many of the likeliest tokens", show_default="the model's"),
    ] = None,
    repetition_penalty: Annotated[
        Optional[float],  # noqa: UP045
        typer.Option(min=0.01, help="above 1: repeat less", show_default="the model's"),
    ] = None,
    seed: Annotated[
        Optional[int],  # noqa: UP045
        typer.Option(help="of the sampling", show_default="another each time"),
    ] = None,
    dtype: Annotated[str, typer.Option(help="auto, float32, float16 or bfloat16")] = "auto",
    device: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option(help="cpu, cuda, mps …", show_default="cpu"),
    ] = None,
    rope: Rope = None,
) -> None:
    """Chat with a model on the terminal; replies appear as they are written. /help lists what else a line can say.

    Ctrl-C ends a reply, and leaves between replies. Over a pipe each line is a turn: echo hello | glmlike chat MODEL
    """
    from glmlike.commands.models import load
    from glmlike.terminal_chat import Chat, read_tools

    described = None if tools is None else read_tools(tools)
    loaded, tokenizer = load(model, dtype=dtype, device=device, rope=rope)
    if seed is not None:
        from transformers import set_seed

        set_seed(seed)
    options = _options(max_new_tokens, temperature, top_p=top_p, top_k=top_k, repetition_penalty=repetition_penalty)
    talk = Chat(loaded, tokenizer, _write, options, system=system, tools=described, history=history, raw=raw)
    for line in _lines():
        if not talk.answer(line):
            break


def _options(max_new_tokens: int, temperature: float | None, **others: Any) -> dict[str, Any]:
    """Options of ``generate``: those given; any way of sampling asks for it, temperature 0 for none."""
    given = {name: value for name, value in others.items() if value is not None}
    sampled = {name for name in given if name.startswith("top_")}
    if temperature == 0:
        return {"max_new_tokens": max_new_tokens, "do_sample": False} | {
            name: value for name, value in given.items() if name not in sampled
        }
    if temperature is not None:
        given["temperature"] = temperature
    if temperature is not None or sampled:
        given["do_sample"] = True
    return {"max_new_tokens": max_new_tokens, **given}


def _write(text: str) -> None:
    sys.stdout.write(text)
    sys.stdout.flush()


def _lines() -> Iterator[str]:
    """What the user types, with the terminal's editing; over a pipe its lines."""
    if not sys.stdin.isatty():
        for line in sys.stdin:
            yield line.rstrip("\r\n")
        return
    with suppress(ImportError):
        import readline  # noqa: F401  (arrow keys and earlier lines in input())
    print("/help lists what a line can say; Ctrl-C ends a reply, or the chat.")
    with suppress(EOFError, KeyboardInterrupt):
        while True:
            yield input("> ")
    print()
