"""Encode rendered chats piece by piece: control tokens of the template by their ids, all text between them as text.

What comes out has the keys, padding and truncation of ``tokenizer(texts, ...)``; only ``.encodings`` is missing, since
no single encoding of the backend made it.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from transformers.tokenization_utils_base import BatchEncoding

from glmlike.tokenization.untrusted import Control, RenderedChat, Span

_UNLIMITED = int(1e20)  # from here on a model_max_length means that none is known
_TAKEN = frozenset(
    {
        "add_special_tokens",
        "max_length",
        "pad_to_multiple_of",
        "padding",
        "padding_side",
        "return_attention_mask",
        "return_length",
        "return_offsets_mapping",
        "return_special_tokens_mask",
        "return_token_type_ids",
        "split_special_tokens",
        "truncation",
        "verbose",
    }
)


@dataclass
class Row:
    """The tokens of one chat with the places of their text; ``fixed`` marks the template's control tokens."""

    ids: list[int] = field(default_factory=list)
    offsets: list[Span] = field(default_factory=list)
    fixed: list[int] = field(default_factory=list)

    def add(self, ids: list[int], offsets: list[Span], start: int, *, fixed: int = 0) -> None:
        """Append tokens whose offsets count from ``start``."""
        self.ids += ids
        self.offsets += [(begin + start, end + start) for begin, end in offsets]
        self.fixed += [fixed] * len(ids)

    def cut(self, kept: slice) -> None:
        """Keep some of the tokens."""
        self.ids, self.offsets, self.fixed = self.ids[kept], self.offsets[kept], self.fixed[kept]

    def within(self, spans: list[Span]) -> list[int]:
        """1 for every token that has a part in one of the spans."""
        mask, place = [0] * len(self.ids), 0
        for index, (begin, end) in enumerate(self.offsets):
            while place < len(spans) and begin >= spans[place][1]:
                place += 1
            if place < len(spans) and max(end, begin + 1) > spans[place][0]:
                mask[index] = 1
        return mask


def encode_pieces(
    tokenizer: Any, chats: list[RenderedChat], control: Control, encoding: dict[str, Any], batched: bool
) -> Any:
    """Encode rendered chats; ``encoding`` are the arguments of ``apply_chat_template`` that say how.

    Raises:
        ValueError: an argument of the tokenizer that only whole texts can have; or text that the tokenizer makes a
            control token of however it is cut.
    """
    asked = dict(encoding["tokenizer_kwargs"] or {})
    unknown = sorted(name for name in asked.keys() - _TAKEN if asked[name])
    if unknown:
        raise ValueError(
            f"tokenizer_kwargs {', '.join(unknown)}: not with a chat that is encoded piece by piece, because its "
            "messages spell control tokens or the replies are to be marked. Leave them out."
        )
    for name in ("padding", "truncation", "max_length"):
        asked.setdefault(name, encoding[name])
    rows = [_row(tokenizer, chat, control) for chat in chats]
    _truncate(tokenizer, rows, asked)
    extras: dict[str, tuple[list[list[Any]], Any]] = {}
    if encoding["return_assistant_tokens_mask"]:
        extras["assistant_masks"] = ([r.within(c.replies) for r, c in zip(rows, chats, strict=True)], 0)
    if asked.get("return_offsets_mapping"):
        extras["offset_mapping"] = ([row.offsets for row in rows], (0, 0))
    if asked.get("return_special_tokens_mask"):
        extras["special_tokens_mask"] = ([row.fixed for row in rows], 1)
    if asked.get("return_token_type_ids") or "token_type_ids" in tokenizer.model_input_names:
        extras["token_type_ids"] = ([[0] * len(row.ids) for row in rows], tokenizer.pad_token_type_id)
    data = _padded(tokenizer, rows, extras, asked)
    if asked.get("return_length"):
        data["length"] = [len(ids) for ids in data["input_ids"]]
    if not batched and encoding["return_tensors"] is None:
        data = {name: values[0] for name, values in data.items()}
    output = BatchEncoding(data, tensor_type=encoding["return_tensors"])
    return output if encoding["return_dict"] else output["input_ids"]


def _row(tokenizer: Any, chat: RenderedChat, control: Control) -> Row:
    """One chat: whole where nothing in it is dangerous, else cut at the template's own control tokens."""
    row = Row()
    if chat.harmless:
        encoded = _call(tokenizer, chat.text, split_special_tokens=False)
        row.add(encoded["input_ids"], encoded["offset_mapping"], 0)
        row.fixed = [int(span in set(chat.trusted)) for span in row.offsets]
        return row
    added = {token.content: (number, token) for number, token in tokenizer.added_tokens_decoder.items()}
    forbidden = {added[token][0]: token for token in control.tokens if token in added}
    begin = 0
    for start, end in [*chat.trusted, (len(chat.text), len(chat.text))]:
        token = added.get(chat.text[start:end], (None, None))[1]
        stop = _without_blanks(chat.text, begin, start)[1] if token is not None and token.lstrip else start
        _add_text(tokenizer, row, chat.text, (begin, stop), forbidden)
        begin = end
        if end > start:
            row.add([tokenizer.convert_tokens_to_ids(chat.text[start:end])], [(0, end - start)], start, fixed=1)
        if token is not None and token.rstrip:
            begin += len(chat.text[end:]) - len(chat.text[end:].lstrip())
    return row


def _without_blanks(text: str, start: int, end: int) -> Span:
    return start, start + len(text[start:end].rstrip())


def _add_text(tokenizer: Any, row: Row, text: str, span: Span, forbidden: dict[int, str]) -> None:
    """Append a run of text as text. Where the tokenizer still finds a control token in it, the run is cut in two."""
    start, end = span
    run = text[start:end]
    if not run:
        return
    ids, offsets = _encode_run(tokenizer, run, after_token=bool(row.ids))
    for number, (begin, stop) in zip(ids, offsets, strict=True):
        if number not in forbidden or forbidden[number] not in run[begin:stop]:
            continue
        middle = start + begin + run[begin:stop].index(forbidden[number]) + 1
        if len(forbidden[number]) < 2:
            raise ValueError(f"the tokenizer makes the control token {forbidden[number]!r} of plain text; remove it.")
        _add_text(tokenizer, row, text, (start, middle), forbidden)
        _add_text(tokenizer, row, text, (middle, end), forbidden)
        return
    row.add(ids, offsets, start)


def _encode_run(tokenizer: Any, run: str, *, after_token: bool) -> tuple[list[int], list[Span]]:
    """The ids of text that follows a control token, as they are in the encoding of the whole.

    Most tokenizers begin anew after a control token. Some SentencePiece ones put a blank before the first text only;
    those see a line end before the run, which is taken away again.
    """
    if after_token and _begins_differently(tokenizer):
        line_end = _call(tokenizer, "\n", split_special_tokens=True)["input_ids"]
        encoded = _call(tokenizer, "\n" + run, split_special_tokens=True)
        if encoded["input_ids"][: len(line_end)] == line_end:
            shifted = [(max(begin - 1, 0), end - 1) for begin, end in encoded["offset_mapping"][len(line_end) :]]
            return encoded["input_ids"][len(line_end) :], shifted
    encoded = _call(tokenizer, run, split_special_tokens=True)
    return encoded["input_ids"], encoded["offset_mapping"]


def _begins_differently(tokenizer: Any) -> bool:
    """Text after a control token is encoded unlike text at the beginning."""
    token = next(iter(tokenizer.all_special_tokens), None)
    if token is None:
        return False
    after = _call(tokenizer, token + "a", split_special_tokens=False)["input_ids"]
    return bool(after[1:] != _call(tokenizer, "a", split_special_tokens=False)["input_ids"])


def _call(tokenizer: Any, text: str, **kwargs: Any) -> Any:
    return tokenizer(
        text,
        add_special_tokens=False,
        padding=False,
        truncation=False,
        return_offsets_mapping=True,
        verbose=False,
        **kwargs,
    )


def _truncate(tokenizer: Any, rows: list[Row], asked: dict[str, Any]) -> None:
    """Cut rows that are too long, on the side the tokenizer cuts."""
    if asked["truncation"] in (False, None, "do_not_truncate"):
        return
    longest = asked["max_length"] if asked["max_length"] is not None else tokenizer.model_max_length
    if longest >= _UNLIMITED:
        return
    for row in rows:
        if len(row.ids) > longest:
            left = tokenizer.truncation_side == "left"
            row.cut(slice(len(row.ids) - longest, None) if left else slice(longest))


def _padded(
    tokenizer: Any, rows: list[Row], extras: dict[str, tuple[list[list[Any]], Any]], asked: dict[str, Any]
) -> dict[str, Any]:
    """The rows as lists by name, padded together; each extra is padded with its own value."""
    side = asked.get("padding_side") or tokenizer.padding_side
    padding = asked["padding"]
    padded = tokenizer.pad(
        {"input_ids": [row.ids for row in rows]},
        padding=padding,
        max_length=asked["max_length"],
        pad_to_multiple_of=asked.get("pad_to_multiple_of"),
        padding_side=side,
        return_attention_mask=asked.get("return_attention_mask"),
        verbose=False,
    )
    data = dict(padded)
    for name, (values, filler) in extras.items():
        data[name] = []
        for ids, value in zip(data["input_ids"], values, strict=True):
            blanks = [filler] * (len(ids) - len(value))
            data[name].append(blanks + value if side == "left" else value + blanks)
    return data
