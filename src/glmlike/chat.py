"""``chat`` and ``stream_chat``: the conveniences of the original ChatGLM code, over ``generate``."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from typing import Any

from glmlike.generation_defaults import chat_arguments
from glmlike.tokenization.prompts import rounds
from glmlike.tokenization.replies import clean

History = list[Any]

_TURN_ENDS = ("<|user|>", "<|observation|>")


class ChatMixin:
    """Adds the originals' two methods to a causal language model; both are thin, ``generate`` does the work.

    ``history`` is a list of ``{"role", "content"}`` messages (ChatGLM3, GLM-4) or of ``(query, response)`` pairs
    (ChatGLM2), as the original of the same tokenizer takes it; it is returned extended, never changed in place.
    """

    def chat(
        self, tokenizer: Any, query: str, history: History | None = None, role: str = "user", **kwargs: Any
    ) -> tuple[str, History]:
        """One turn: the reply and the history with it. ``kwargs`` go to ``generate`` over the originals' defaults."""
        inputs, turn = _prepare(self, tokenizer, query, history, role)
        output = self.generate(**inputs, **_generation_arguments(self, tokenizer, kwargs))  # type: ignore[attr-defined]
        reply = tokenizer.decode(output[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
        return _finish(self, reply, history, query, role, turn)

    def stream_chat(
        self, tokenizer: Any, query: str, history: History | None = None, role: str = "user", **kwargs: Any
    ) -> Iterator[tuple[str, History]]:
        """The same turn as it grows: yields (reply so far, history with it)."""
        from transformers import TextIteratorStreamer

        inputs, turn = _prepare(self, tokenizer, query, history, role)
        arguments = {**inputs, **_generation_arguments(self, tokenizer, {**kwargs, "num_beams": 1})}
        streamer = TextIteratorStreamer(tokenizer, skip_prompt=True, skip_special_tokens=True)
        failure: list[BaseException] = []

        def work() -> None:
            try:
                self.generate(**arguments, streamer=streamer)  # type: ignore[attr-defined]
            except BaseException as error:  # handed to the reader's thread below
                failure.append(error)
                streamer.end()

        worker = threading.Thread(target=work, daemon=True)
        worker.start()
        reply = ""
        for piece in streamer:
            reply += piece
            yield _finish(self, reply, history, query, role, turn)
        worker.join()
        if failure:
            raise failure[0]


def _prepare(model: Any, tokenizer: Any, query: str, history: History | None, role: str) -> tuple[dict[str, Any], str]:
    """The model's inputs for this turn and the shape of its history: "pair" or "message"."""
    generation = _generation(model, tokenizer)
    pairs = isinstance(history[0], (tuple, list)) if history else generation in ("chatglm-6b", "chatglm2")
    if pairs and getattr(tokenizer, "chat_template", None):
        past = [(("user", q), ("assistant", a)) for q, a in history or []]
        turns = [{"role": who, "content": said} for pair in past for who, said in pair]
        inputs = _from_template(tokenizer, [*turns, {"role": "user", "content": query}])
    elif pairs:
        inputs = tokenizer([rounds(generation, query, history or [])], return_tensors="pt")
    elif getattr(tokenizer, "chat_template", None):
        inputs = _from_template(tokenizer, [*(history or []), {"role": role, "content": query}])
    else:
        inputs = tokenizer.build_chat_input(query, history=history or [], role=role)
    kept = {name: inputs[name].to(model.device) for name in ("input_ids", "attention_mask") if name in inputs}
    return kept, "pair" if pairs else "message"


def _from_template(tokenizer: Any, messages: list[dict[str, Any]]) -> Any:
    return tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_tensors="pt", return_dict=True)


def _generation(model: Any, tokenizer: Any) -> str:
    """What the tokenizer says; for one that says nothing, the form of prompt that it and the decoder go with."""
    if getattr(tokenizer, "generation", None):
        return str(tokenizer.generation)
    if hasattr(tokenizer, "build_chat_input") or getattr(tokenizer, "chat_template", None):
        return "chatglm3"
    return "chatglm-6b" if model.config.attention_mask == "prefix" else "chatglm2"


def _generation_arguments(model: Any, tokenizer: Any, given: dict[str, Any]) -> dict[str, Any]:
    """The originals' defaults under what the caller gave; generation also stops where a next turn would begin."""
    generation = "chatglm-6b" if model.config.attention_mask == "prefix" else _generation(model, tokenizer)
    arguments = chat_arguments(generation, given)
    if "eos_token_id" not in given:
        known = model.generation_config.eos_token_id
        stops = set(known if isinstance(known, list) else [] if known is None else [known])
        vocabulary = tokenizer.get_vocab()
        stops |= {vocabulary[name] for name in _TURN_ENDS if name in vocabulary}
        arguments["eos_token_id"] = sorted(stops) or None
    return arguments


def _finish(model: Any, reply: str, history: History | None, query: str, role: str, turn: str) -> tuple[str, History]:
    """The reply as the originals clean it, and a new history that ends with it."""
    reply = clean(reply, "chatglm-6b" if model.config.attention_mask == "prefix" else None)
    past = list(history or [])
    if turn == "pair":
        return reply, [*past, (query, reply)]
    return reply, [*past, {"role": role, "content": query}, {"role": "assistant", "metadata": "", "content": reply}]
