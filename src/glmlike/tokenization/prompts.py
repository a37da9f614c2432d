"""The prompt helpers of the original tokenizers, for scripts written for them; ``apply_chat_template`` needs none.

Sources: ``tokenization_chatglm.py`` of ChatGLM2, ChatGLM3 and GLM-4, ``modeling_chatglm.py`` (``chat``) of ChatGLM-6B,
``tokenization_glm.py`` of GLM-10B.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from glmlike.errors import GlmLikeError

_ROUNDS = ("chatglm-6b", "chatglm2")
_MESSAGES = ("chatglm3", "glm-4", "codegeex4")
_COMMANDS = ("chatglm2", "codegeex2", *_MESSAGES)
_BLANKS = ("glm-10b", "glm-10b-chinese", "glm-bert", "glm-roberta")
_ROLES = ("system", "user", "assistant", "observation")


class PromptHelpersMixin:
    """``build_prompt``, ``build_chat_input``, ``build_single_message``, ``get_command``, and GLM-10B's
    ``build_inputs_for_generation``: each for the generations whose original had it, an error for the others."""

    generation: str

    def build_prompt(self, query: str, history: Sequence[tuple[str, str]] | None = None) -> str:
        """The text of the rounds (ChatGLM-6B, ChatGLM2), which ``tokenizer(text)`` encodes with the special tokens.

        As in the originals it is one string: what a user typed in it cannot be told from the rest.

        Raises:
            GlmLikeError: a generation without rounds.
        """
        return rounds(self._of("build_prompt", _ROUNDS), query, history or [])

    def build_chat_input(self, query: str, history: list[dict[str, Any]] | None = None, role: str = "user") -> Any:
        """The tensors of a conversation that ``query`` is added to as ``role``, up to ``<|assistant|>`` (ChatGLM3).

        Raises:
            GlmLikeError: a generation whose prompts are not made of messages; a role that there is not.
        """
        self._of("build_chat_input", _MESSAGES)
        _require_role(role)
        messages = [*(history or []), {"role": role, "content": query}]
        tokenizer: Any = self
        return tokenizer.apply_chat_template(
            messages, add_generation_prompt=True, return_tensors="pt", return_dict=True
        )

    def build_single_message(self, role: str, metadata: str, message: str) -> list[int]:
        """The ids of one message: its role's token, the line of its metadata, its text (ChatGLM3, GLM-4).

        Raises:
            GlmLikeError: a generation whose prompts are not made of messages; a role that there is not.
        """
        generation = self._of("build_single_message", _MESSAGES)
        _require_role(role)
        parts = [f"{metadata}\n", message] if generation == "chatglm3" else [f"{metadata}\n{message}"]
        tokenizer: Any = self
        texts = [tokenizer.encode(part, add_special_tokens=False, split_special_tokens=True) for part in parts]
        return [self.get_command(f"<|{role}|>"), *(token for text in texts for token in text)]

    def get_command(self, token: str) -> int:
        """The id of a special token by its text (ChatGLM2 and later; ``<bos>``, ``<eos>``, ``<pad>`` there as well).

        Raises:
            GlmLikeError: a generation without commands; a text that is no special token.
        """
        self._of("get_command", _COMMANDS)
        tokenizer: Any = self
        named = {f"<{name}>": getattr(tokenizer, f"{name}_token_id", None) for name in ("bos", "eos", "pad")}
        special = {t.content: number for number, t in tokenizer.added_tokens_decoder.items() if t.special}
        number = special.get(token, named.get(token))
        if number is None:
            raise GlmLikeError(f"{token!r} is no special token of {self.generation}; known: {', '.join(special)}.")
        return int(number)

    def build_inputs_for_generation(
        self, model_input: Any, max_gen_length: int = 512, targets: Any = None, padding: bool = False
    ) -> Any:
        """The inputs GLM-10B generates from (with ``targets``: is trained on), as its original tokenizer makes them.

        ``model_input`` are tensors [B, T] of texts with a blank each. Returned are ``input_ids`` with the start of a
        piece, ``position_ids`` [B, 2, T + G] for ``max_gen_length`` tokens G, ``generation_attention_mask``
        [B, 1, T + G, T + G]; with targets ``attention_mask`` and ``labels`` in its place, G being the longest target
        (``padding=True``: max_gen_length).

        Raises:
            GlmLikeError: another generation; a text without a blank; targets that are not one for each text.
        """
        self._of("build_inputs_for_generation", _BLANKS)
        from glmlike.tokenization.piece_inputs import build_piece_inputs

        return build_piece_inputs(self, model_input, max_gen_length, targets, padding)

    def _of(self, helper: str, generations: Sequence[str]) -> str:
        if self.generation not in generations:
            raise GlmLikeError(
                f"{helper}: the tokenizer of {self.generation} never had it; it is of {', '.join(generations)}. "
                "apply_chat_template makes the prompts of every generation that chats, tokenizer(text) those of others."
            )
        return self.generation


def rounds(generation: str, query: str, history: Sequence[Sequence[str]]) -> str:
    """The rounds of ChatGLM-6B (from 0, a first query stands alone) or ChatGLM2 (from 1)."""
    if generation == "chatglm-6b":
        past = "".join(f"[Round {i}]\n问：{q}\n答：{a}\n" for i, (q, a) in enumerate(history))
        return f"{past}[Round {len(history)}]\n问：{query}\n答：" if history else query
    past = "".join(f"[Round {i}]\n\n问：{q}\n\n答：{a}\n\n" for i, (q, a) in enumerate(history, start=1))
    return f"{past}[Round {len(history) + 1}]\n\n问：{query}\n\n答："


def _require_role(role: str) -> None:
    if role not in _ROLES:
        raise GlmLikeError(f"role={role!r} is not known; known: {', '.join(_ROLES)}.")
