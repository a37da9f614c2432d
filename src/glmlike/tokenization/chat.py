"""``apply_chat_template`` in which only the template writes control tokens, whatever the messages say.

A user who types ``<|system|>`` or ``[gMASK]`` typed text, and a tool that answers ``<|user|>`` answered with text:
their ids are those of text. For a chat that spells no control token the result is transformers' own.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from transformers.utils.chat_template_utils import get_json_schema, render_jinja_template

from glmlike.tokenization.pieces import encode_pieces
from glmlike.tokenization.untrusted import Control, Disguise, RenderedChat, Span, plain_data, render_untrusted


class SafeChatMixin:
    """Put before a fast tokenizer's class, it makes ``apply_chat_template`` safe from injection.

    Control tokens are the special ones, those in ``chat_control_tokens``, and added tokens that the template writes
    (Qwen2.5's ``<tool_call>``; an assistant's own content may spell these, since it is the model that wrote it).
    """

    def apply_chat_template(
        self,
        conversation: Any,
        tools: Any = None,
        documents: Any = None,
        chat_template: str | None = None,
        add_generation_prompt: bool = False,
        continue_final_message: bool | str = False,
        tokenize: bool = True,
        *,
        parse_special_tokens: bool = False,
        **kwargs: Any,
    ) -> Any:
        """Render a chat and encode it; every argument is transformers' own but ``parse_special_tokens``.

        With ``parse_special_tokens=True`` messages may write control tokens (a prompt that means ``[MASK]``): for
        messages you wrote yourself. With ``tokenize=False`` the result is a string, which cannot be safe: who encodes
        it cannot see who wrote what. Roles and the keys of messages are the caller's, so never take them from a user.

        Raises:
            UnsafeTemplateError: a template that fails on anything but the messages themselves (see there).
            ValueError: what transformers raises; or ``tokenizer_kwargs`` that a chat with hostile text cannot have.
        """
        given: Any = super()
        template_arguments = {
            "tools": tools,
            "documents": documents,
            "chat_template": chat_template,
            "add_generation_prompt": add_generation_prompt,
            "continue_final_message": continue_final_message,
        }
        if not tokenize or parse_special_tokens:
            return given.apply_chat_template(conversation, tokenize=tokenize, **template_arguments, **kwargs)
        kwargs.pop("sanitize_control_tokens", None)  # transformers' later answer to the same question
        encoding, variables = _split_arguments(kwargs)
        _check(conversation, encoding, add_generation_prompt, continue_final_message)
        template = self.get_chat_template(chat_template, tools)  # type: ignore[attr-defined]
        chats, batched = _conversations(conversation)
        control = control_tokens(self, template)
        options = {key: template_arguments[key] for key in ("add_generation_prompt", "continue_final_message")}
        options["return_assistant_tokens_mask"] = encoding["return_assistant_tokens_mask"]
        own = self.special_tokens_map  # type: ignore[attr-defined]
        rendered = []
        for chat in chats:
            render = _renderer(chat, _schemas(tools), documents, template, variables, options, own)
            rendered.append(render_untrusted(render, template, control))
        if all(chat.harmless for chat in rendered) and not encoding["return_assistant_tokens_mask"]:
            return _encode_whole(self, rendered, encoding, batched)
        return encode_pieces(self, rendered, control, encoding, batched)


def _encode_whole(tokenizer: Any, rendered: list[RenderedChat], encoding: dict[str, Any], batched: bool) -> Any:
    """As transformers encodes a rendered chat: nothing in it but the template's own control tokens spells one."""
    texts = [chat.text for chat in rendered]
    output = tokenizer(
        texts if batched else texts[0],
        padding=encoding["padding"],
        truncation=encoding["truncation"],
        max_length=encoding["max_length"],
        return_tensors=encoding["return_tensors"],
        **{"add_special_tokens": False, "split_special_tokens": False, **(encoding["tokenizer_kwargs"] or {})},
    )
    return output if encoding["return_dict"] else output["input_ids"]


def control_tokens(tokenizer: Any, template: str) -> Control:
    """The tokens that only a template may write; see the class."""
    added = tokenizer.added_tokens_decoder.values()
    special = {token.content for token in added if token.special} | set(tokenizer.all_special_tokens)
    named = set(getattr(tokenizer, "chat_control_tokens", None) or ())
    written = {token.content for token in added if token.content in template and not token.content.isspace()}
    return Control(frozenset(t for t in special | named | written if t), frozenset(written - special - named))


def _split_arguments(kwargs: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """How to encode, and the variables of the template."""
    defaults = {
        "padding": False,
        "truncation": False,
        "max_length": None,
        "return_tensors": None,
        "return_dict": True,
        "return_assistant_tokens_mask": False,
        "tokenizer_kwargs": None,
    }
    encoding = {name: kwargs.pop(name, default) for name, default in defaults.items()}
    return encoding, kwargs


def _check(conversation: Any, encoding: dict[str, Any], prompted: bool, continued: bool | str) -> None:
    """The same refusals as transformers', which is not called here."""
    if isinstance(conversation, (list, tuple)) and not conversation:
        raise ValueError("Cannot apply chat template to an empty conversation. Provide at least one message.")
    if encoding["return_assistant_tokens_mask"] and not encoding["return_dict"]:
        raise ValueError("`return_assistant_tokens_mask=True` requires `return_dict=True` and `tokenize=True`")
    if continued and prompted:
        raise ValueError(
            "continue_final_message and add_generation_prompt are not compatible: the first goes on with the last "
            "message, the second begins a new one."
        )
    if continued and encoding["return_assistant_tokens_mask"]:
        raise ValueError("continue_final_message is not compatible with return_assistant_tokens_mask.")


def _conversations(conversation: Any) -> tuple[list[list[dict[str, Any]]], bool]:
    """The chats as lists of dicts without the keys that hold None, and whether they came as a batch."""
    batched = isinstance(conversation, (list, tuple)) and (
        isinstance(conversation[0], (list, tuple)) or hasattr(conversation[0], "messages")
    )
    chats = []
    for chat in conversation if batched else [conversation]:
        messages = plain_data(getattr(chat, "messages", chat))
        for message in messages:
            if not isinstance(message, dict):
                raise TypeError(f"a chat is a list of messages, each a dict with a role; found {message!r}.")
        chats.append([{key: value for key, value in message.items() if value is not None} for message in messages])
    return chats, batched


def _schemas(tools: Any) -> Any:
    """Functions among the tools as JSON schemas, so that their descriptions count as given text too."""
    if tools is None:
        return None
    return [get_json_schema(tool) if callable(tool) else tool for tool in tools]


def _renderer(
    chat: list[dict[str, Any]],
    tools: Any,
    documents: Any,
    template: str,
    variables: Mapping[str, Any],
    options: Mapping[str, Any],
    own: Mapping[str, Any],
) -> Callable[[Disguise], tuple[str, list[Span]]]:
    """Renders the chat under a disguise; ``own`` are the tokenizer's variables, which are not disguised."""

    def render(disguise: Disguise) -> tuple[str, list[Span]]:
        texts, replies = render_jinja_template(
            conversations=[[disguise.message(message) for message in chat]],
            tools=disguise.data(tools),
            documents=disguise.data(documents),
            chat_template=template,
            **options,
            **{**own, **{name: value if name in own else disguise.data(value) for name, value in variables.items()}},
        )
        return texts[0], replies[0] if replies else []

    return render
