"""``fill``: texts with blanks in, the same texts without blanks out, with what was put there and how likely it was."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, get_args, overload

from glmlike.errors import GlmLikeError
from glmlike.infilling.context import Blank, Context, read_context, read_markers
from glmlike.infilling.decoding import Order, Piece, decode_batch, read_options, require_room


@dataclass(frozen=True)
class FilledSpan:
    """What fills one blank.

    ``blank`` and ``span`` are characters, [start, end), of the given and of the filled text: ``text`` is
    ``filled_text[start:end]``. ``token_ids`` are the piece's tokens, without its end.

    ``log_probability`` is the sum of log p(token | context, earlier pieces, earlier tokens) over the piece's tokens and
    the end-of-piece token that the model closed it with: the natural logarithm of a float32 softmax over the model's
    logits as they are, before any temperature, penalty, filter or processor of ``generate``. A piece that a limit cut
    off (``ended`` is false) has no end to count. ``mean_log_probability`` is that sum over the number of its terms,
    0.0 for a piece of no terms.
    """

    kind: Blank
    blank: tuple[int, int]
    span: tuple[int, int]
    token_ids: tuple[int, ...]
    text: str
    log_probability: float
    mean_log_probability: float
    ended: bool


@dataclass(frozen=True)
class Infilling:
    """A text with its blanks filled: ``text`` as given, ``filled_text``, and a span for every blank, left to right.

    ``filled_text`` is decoded from the text's tokens with the pieces in place of the blanks, so that white space at a
    join is the tokenizer's, and nothing is stripped; what a tokenizer loses (case, full-width forms) is lost here too.
    ``log_probability`` is the sum over the spans.
    """

    text: str
    filled_text: str
    spans: tuple[FilledSpan, ...]

    @property
    def log_probability(self) -> float:
        """The sum over the spans."""
        return sum(span.log_probability for span in self.spans)

    def to_dict(self) -> dict[str, Any]:
        """The fields, and ``log_probability``, as plain values."""
        return {**asdict(self), "log_probability": self.log_probability}


@overload
def fill(
    model: Any,
    tokenizer: Any,
    text: str,
    *,
    order: Order = "left_to_right",
    batch_size: int = 8,
    append_gmask: bool = False,
    **generate_options: Any,
) -> Infilling: ...


@overload
def fill(
    model: Any,
    tokenizer: Any,
    text: Sequence[str],
    *,
    order: Order = "left_to_right",
    batch_size: int = 8,
    append_gmask: bool = False,
    **generate_options: Any,
) -> list[Infilling]: ...


def fill(
    model: Any,
    tokenizer: Any,
    text: str | Sequence[str],
    *,
    order: Order = "left_to_right",
    batch_size: int = 8,
    append_gmask: bool = False,
    **generate_options: Any,
) -> Infilling | list[Infilling]:
    """Fill every [MASK], [sMASK] and [gMASK] of a text, or of each text of a list.

    ``order="left_to_right"``: each piece sees the pieces before it, as in training; ``"independent"``: each sees the
    context alone. Rows of a batch of ``batch_size`` texts may differ in length and in kind and number of blanks; a
    context is read once, whatever its blanks. ``append_gmask=True`` puts a [gMASK] at the end of a text that has no
    blank, which continues it.

    ``generate_options`` are those of ``model.generate``, for each piece; ``max_new_tokens`` (64 unless the model's
    generation config says otherwise) limits a piece. A piece ends at any ``eos_token_id`` of the call, else of the
    generation config, else of the config. With ``use_cache=False`` or a ``cache_implementation``, ``generate`` reads
    the context anew for every blank; the result is the same.

    Raises:
        ConfigError: the model fills no blanks, or model and tokenizer are of different vocabularies, or the tokenizer
            splits a blank.
        GlmLikeError: a text without a blank, with two [gMASK], or too long for learned positions; an option of
            ``generate`` that has no meaning here.
    """
    require_order(order)
    if isinstance(batch_size, bool) or not isinstance(batch_size, int) or batch_size < 1:
        raise GlmLikeError(f"batch_size={batch_size!r}: expected a number of texts, 1 or more.")
    markers, decoding = read_markers(model, tokenizer), read_options(model, tokenizer, generate_options)
    texts = [text] if isinstance(text, str) else list(text)
    contexts = [read_context(each, tokenizer, markers, append_gmask=append_gmask) for each in texts]
    for context in contexts:
        require_room(context, decoding, model.config)
    results: list[Any] = [None] * len(texts)
    by_length = sorted(range(len(texts)), key=lambda index: len(contexts[index].ids))
    for start in range(0, len(texts), batch_size):
        batch = by_length[start : start + batch_size]
        filled = decode_batch(model, [contexts[index] for index in batch], markers, decoding, order)
        for index, pieces in zip(batch, filled, strict=True):
            results[index] = put_in_place(contexts[index], pieces, tokenizer)
    return results[0] if isinstance(text, str) else results


def require_order(order: str) -> None:
    """Raise GlmLikeError for an order that is none."""
    if order not in get_args(Order):
        raise GlmLikeError(f"order={order!r}: expected one of {', '.join(get_args(Order))}.")


def put_in_place(context: Context, pieces: Sequence[Piece], tokenizer: Any) -> Infilling:
    """The filled text, decoded from all its tokens, and where in it each piece is."""
    tokens: list[int] = []
    bounds: list[tuple[int, int]] = []
    done = 0
    for place, piece in zip(context.blanks, pieces, strict=True):
        tokens += context.tokens[done:place]
        bounds.append((len(tokens), len(tokens) + len(piece.token_ids)))
        tokens += piece.token_ids
        done = place + 1
    tokens += context.tokens[done:]
    whole = _decode(tokenizer, tokens)
    spans = []
    for kind, offset, piece, (first, last) in zip(context.kinds, context.offsets, pieces, bounds, strict=True):
        start, end = (_agree(_decode(tokenizer, tokens[:bound]), whole) for bound in (first, last))
        total = sum(piece.log_probabilities)
        mean = total / max(len(piece.log_probabilities), 1)
        text = whole[start:end]
        spans.append(FilledSpan(kind, offset, (start, end), piece.token_ids, text, total, mean, piece.ended))
    return Infilling(context.text, whole, tuple(spans))


def _decode(tokenizer: Any, tokens: Sequence[int]) -> str:
    return str(tokenizer.decode(list(tokens), skip_special_tokens=False, clean_up_tokenization_spaces=False))


def _agree(part: str, whole: str) -> int:
    """Characters that two texts begin with alike. A part may end in half a character, whose other half comes next."""
    return next((place for place, (a, b) in enumerate(zip(part, whole, strict=False)) if a != b), len(part))
