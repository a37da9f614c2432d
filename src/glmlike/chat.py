"""``chat`` and ``stream_chat``: the conveniences of the original ChatGLM code, over ``generate``."""

from __future__ import annotations

import re
import threading
from collections.abc import Iterator
from typing import Any

History = list[Any]

# Sampling values of the originals' signatures (ChatGLM2, ChatGLM3 and GLM-4: modeling_chatglm.py, `chat`).
_DEFAULTS: dict[str, Any] = {"max_length": 8192, "num_beams": 1, "do_sample": True, "top_p": 0.8, "temperature": 0.8}
_DEFAULTS_CHATGLM_6B = {**_DEFAULTS, "max_length": 2048, "top_p": 0.7, "temperature": 0.95}
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
    pairs = isinstance(history[0], (tuple, list)) if history else _speaks_in_pairs(tokenizer)
    if pairs:
        inputs = tokenizer([_rounds(model, tokenizer, query, history or [])], return_tensors="pt")
    elif hasattr(tokenizer, "build_chat_input"):
        inputs = tokenizer.build_chat_input(query, history=history or [], role=role)
    else:
        messages = [*(history or []), {"role": role, "content": query}]
        inputs = tokenizer.apply_chat_template(
            messages, add_generation_prompt=True, return_tensors="pt", return_dict=True
        )
    kept = {name: inputs[name].to(model.device) for name in ("input_ids", "attention_mask") if name in inputs}
    return kept, "pair" if pairs else "message"


def _speaks_in_pairs(tokenizer: Any) -> bool:
    has_messages = hasattr(tokenizer, "build_chat_input") or getattr(tokenizer, "chat_template", None)
    return not has_messages


def _rounds(model: Any, tokenizer: Any, query: str, history: History) -> str:
    """The originals' prompts of rounds: counted from 1 by ChatGLM2 (tokenization_chatglm.py, `build_prompt`); from 0 by
    ChatGLM-6B, and without any round for the first query (modeling_chatglm.py, `chat`)."""
    if hasattr(tokenizer, "build_prompt"):
        return str(tokenizer.build_prompt(query, history=history))
    if _is_chatglm_6b(model):
        past = "".join(f"[Round {i}]\n问：{q}\n答：{a}\n" for i, (q, a) in enumerate(history))
        return f"{past}[Round {len(history)}]\n问：{query}\n答：" if history else query
    past = "".join(f"[Round {i}]\n\n问：{q}\n\n答：{a}\n\n" for i, (q, a) in enumerate(history, start=1))
    return f"{past}[Round {len(history) + 1}]\n\n问：{query}\n\n答："


def _is_chatglm_6b(model: Any) -> bool:
    return bool(model.config.attention_mask == "prefix")


def _generation_arguments(model: Any, tokenizer: Any, given: dict[str, Any]) -> dict[str, Any]:
    """The originals' defaults under what the caller gave; generation also stops where a next turn would begin."""
    arguments = {**(_DEFAULTS_CHATGLM_6B if _is_chatglm_6b(model) else _DEFAULTS), **given}
    if "max_new_tokens" in given and "max_length" not in given:
        del arguments["max_length"]
    if not arguments["do_sample"]:
        arguments = {k: v for k, v in arguments.items() if k not in ("top_p", "temperature") or k in given}
    if "eos_token_id" not in given:
        known = model.generation_config.eos_token_id
        stops = set(known if isinstance(known, list) else [] if known is None else [known])
        vocabulary = tokenizer.get_vocab()
        stops |= {vocabulary[name] for name in _TURN_ENDS if name in vocabulary}
        arguments["eos_token_id"] = sorted(stops) or None
    return arguments


def _finish(model: Any, reply: str, history: History | None, query: str, role: str, turn: str) -> tuple[str, History]:
    """The reply as the originals clean it, and a new history that ends with it."""
    reply = reply.strip().replace("[[训练时间]]", "2023年")
    if _is_chatglm_6b(model):
        reply = full_width_beside_chinese(reply)
    past = list(history or [])
    if turn == "pair":
        return reply, [*past, (query, reply)]
    return reply, [*past, {"role": role, "content": query}, {"role": "assistant", "metadata": "", "content": reply}]


def full_width_beside_chinese(text: str) -> str:
    """``, ! : ; ?`` next to a Chinese character in their full-width form (ChatGLM-6B: `process_response`)."""
    for half, full in zip(",!:;?", "，！：；？", strict=True):
        text = re.sub(rf"([\u4e00-\u9fff]){re.escape(half)}", rf"\1{full}", text)
        text = re.sub(rf"{re.escape(half)}([\u4e00-\u9fff])", rf"{full}\1", text)
    return text
