"""The tokens that fill the blanks of a batch of contexts, by ``model.generate``, a blank of every row at a time.

A row is its context and then pieces: ``context sop s1 … sn sop t1 … tm``. A piece has the position of its blank, ends
at an end-of-piece token, and that token is never an input: the next piece's sop stands in its place (GLM, arXiv
2103.10360, section 2). The context is read once. After each piece the cache is cut back to where it began, and the
piece that was chosen, by whatever way of decoding, is read into it in one pass, which also gives its score.

GLM-130B's own inference (generate.py) puts a piece into the context and reads all of it anew; here the row grows as
rows do in training. Shapes: B rows, T tokens, V vocabulary. Rows are padded on the left of their contexts and on the
right of their pieces; padding is 0 in the mask.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor
from transformers import DynamicCache

from glmlike.errors import ConfigError, GlmLikeError
from glmlike.infilling.context import Context, Markers
from glmlike.renamed import CACHE

Order = Literal["left_to_right", "independent"]

MAX_NEW_TOKENS = 64
"""Tokens of a piece at most, where neither the call nor the model's generation config says."""

_COLUMNS = 64  # tokens scored at a time, so that logits [B, columns, V] stay small
_OURS = frozenset(
    {"inputs", "input_ids", "inputs_embeds", "attention_mask", "position_ids", "past_key_values", "cache"}
)
_REFUSED = {
    "guidance_scale": "it reads a row of its own without the context's positions. Leave it out",
    "assistant_model": "it numbers what it proposes by plain positions. Leave it out",
    "max_length": "it counts the context and its padding. Pass max_new_tokens, the tokens of a piece",
    "min_length": "it counts the context and its padding. Pass min_new_tokens, the tokens of a piece",
    "num_return_sequences": "a text is filled in one way. Pass the text as many times, with do_sample=True",
    "prompt_lookup_num_tokens": "it numbers what it proposes by plain positions. Leave it out",
    "return_dict_in_generate": "results have a form of their own. Call model.generate for its outputs",
    "streamer": "blanks are filled in batches. Call model.generate to stream one",
}


@dataclass(frozen=True)
class Piece:
    """The tokens of a piece, the log-probability of each, and of its end if it has one; see ``FilledSpan``."""

    token_ids: tuple[int, ...]
    log_probabilities: tuple[float, ...]

    @property
    def ended(self) -> bool:
        """Whether the model ended the piece, rather than a limit on its length."""
        return len(self.log_probabilities) > len(self.token_ids)


@dataclass(frozen=True)
class Decoding:
    """How pieces are decoded: where they end, how long they get, and the options of ``generate`` as given."""

    stops: tuple[int, ...]
    max_new_tokens: int
    beams: int
    share_cache: bool
    pad: int
    padded: bool
    """Whether ``generate`` may stop a row for another reason than its end or its length, and pad it."""
    options: dict[str, Any]


def read_options(model: Any, tokenizer: Any, options: dict[str, Any]) -> Decoding:
    """``generate`` options over the model's generation config.

    Raises:
        GlmLikeError: an option that has no meaning here.
        ConfigError: nothing says which token ends a piece.
    """
    _refuse(options)
    known = [options, *(vars(c) for c in (options.get("generation_config"), model.generation_config) if c is not None)]

    def option(name: str) -> Any:
        return next((source[name] for source in known if source.get(name) is not None), None)

    ends, pad = option("eos_token_id"), option("pad_token_id")
    if options.get("eos_token_id", ...) is None:
        ends = []
    elif ends is None:
        ends = model.config.eos_token_id
    if ends is None:
        raise ConfigError(
            "no eos_token_id in the model's configs: nothing says which token ends a piece. Pass eos_token_id= (the "
            "end-of-piece token), or eos_token_id=None for pieces of max_new_tokens tokens."
        )
    stops = tuple(int(token) for token in (ends if isinstance(ends, (list, tuple)) else [ends]))
    pad = int(pad if pad is not None else (*stops, 0)[0])
    longest = int(option("max_new_tokens") or MAX_NEW_TOKENS)
    passed = {name: value for name, value in options.items() if name not in _REFUSED}
    settled = {
        "eos_token_id": list(stops) or None,
        "pad_token_id": pad,
        "max_new_tokens": longest,
        "num_return_sequences": 1,
        "return_dict_in_generate": False,
    }
    if options.get("generation_config") is None:
        passed |= settled
    else:  # generate takes a config or arguments, not both
        passed = {name: value for name, value in passed.items() if name not in settled}
        passed["generation_config"] = copy.deepcopy(options["generation_config"])
        passed["generation_config"].update(**settled)
    if option("stop_strings") is not None:
        passed["tokenizer"] = tokenizer
    return Decoding(
        stops=stops,
        max_new_tokens=longest,
        beams=int(option("num_beams") or 1),
        share_cache=option("use_cache") is not False and not option("cache_implementation"),
        pad=pad,
        padded=any(option(name) for name in ("stop_strings", "stopping_criteria", "max_time")),
        options=passed,
    )


def _refuse(options: dict[str, Any]) -> None:
    for name, value in options.items():
        if name in _OURS:
            raise GlmLikeError(f"{name}=…: fill makes it from the text. Pass the text, or call model.generate.")
        if name in _REFUSED and value and not (name == "num_return_sequences" and value == 1):
            raise GlmLikeError(f"{name}={value!r} does not go with filling blanks: {_REFUSED[name]}.")


def require_room(context: Context, decoding: Decoding, config: Any) -> None:
    """Raise GlmLikeError for a text that the tables of learned positions are too short for (GLM-10B: 1024)."""
    if config.positions != "learned_2d":
        return
    room, length = config.max_position_embeddings, len(context.ids) + decoding.max_new_tokens
    if length > room:
        raise GlmLikeError(
            f"{len(context.ids)} tokens of context and max_new_tokens={decoding.max_new_tokens}: {length} in all, but "
            f"the model's learned positions end at {room}. Shorten the text or lower max_new_tokens."
        )


class Rows:
    """A batch of rows as it grows, [B, T] each, and the cache of their keys and values.

    ``positions`` are [B, 2, T], or [B, T] for a decoder with one coordinate.
    """

    def __init__(self, model: Any, contexts: Sequence[Context], markers: Markers, pad: int) -> None:
        self.model = model
        self.sop = markers.sop
        self.pad = pad
        self.two = model.config.positions in ("rotary_2d", "learned_2d")
        rows = [context.ids for context in contexts]
        length = max(map(len, rows))
        self.ids = self._tensor([[pad] * (length - len(row)) + row for row in rows])
        self.mask = self._tensor([[0] * (length - len(row)) + [1] * len(row) for row in rows])
        place = (self.mask.cumsum(-1) - 1).clamp(min=0)
        self.positions = torch.stack((place, torch.zeros_like(place)), dim=1) if self.two else place
        self.cache: Any = DynamicCache(config=model.config)
        self._read_context()

    def _tensor(self, rows: list[list[int]]) -> Tensor:
        return torch.tensor(rows, dtype=torch.long, device=self.model.device)

    @property
    def length(self) -> int:
        """Columns so far, padding included."""
        return int(self.ids.shape[1])

    def _read_context(self) -> None:
        """Contexts into the cache. A start-of-piece token shows where they end, and is then taken out again."""
        length, count = self.length, len(self.ids)
        self.append([[self.sop]] * count, self.piece_positions([0] * count, [False] * count, 1))
        self.forward(0, length + 1, 1)
        self.cut(length)

    def piece_positions(self, blanks: Sequence[int], generated: Sequence[bool], count: int) -> Tensor:
        """Positions of ``count`` tokens from sop on, of pieces at the end of each row.

        ``blanks`` are the positions of the blanks, ``generated`` says which are [gMASK]. With one coordinate
        (GLM-130B: generate.py) a piece of a [gMASK] counts on from its place in the row; others repeat the blank's.
        """
        device = self.ids.device
        blank = torch.tensor(blanks, device=device)[:, None]
        steps = torch.arange(count, device=device)
        if self.two:
            return torch.stack((blank.expand(-1, count), (steps + 1).expand(len(blanks), -1)), dim=1)
        counts_on = torch.tensor(generated, device=device)[:, None]
        return torch.where(counts_on, self.mask.sum(-1, keepdim=True) + steps, blank)

    def append(self, pieces: Sequence[Sequence[int]], positions: Tensor) -> None:
        """Add ``pieces``, padded on the right; ``positions`` are of the longest, [B, 2, n] or [B, n]."""
        longest = max(map(len, pieces))
        real = self._tensor([[1] * len(piece) + [0] * (longest - len(piece)) for piece in pieces])
        ids = self._tensor([[*piece, *[self.pad] * (longest - len(piece))] for piece in pieces])
        self.ids = torch.cat((self.ids, ids), dim=1)
        self.mask = torch.cat((self.mask, real), dim=1)
        self.positions = torch.cat((self.positions, positions), dim=-1)

    def forward(self, start: int, stop: int, keep: int) -> Tensor:
        """Logits [B, keep, V] of the last ``keep`` of columns ``start`` to ``stop``, which are read into the cache."""
        output = self.model(
            input_ids=self.ids[:, start:stop],
            attention_mask=self.mask[:, :stop],
            position_ids=self.positions[..., start:stop],
            use_cache=True,
            logits_to_keep=keep,
            **{CACHE: self.cache},
        )
        logits: Tensor = output.logits
        return logits

    def cut(self, length: int) -> None:
        """Forget all columns from ``length`` on."""
        self.ids, self.mask = self.ids[:, :length], self.mask[:, :length]
        self.positions = self.positions[..., :length]
        self.cut_cache(length)

    def cut_cache(self, length: int) -> None:
        """Forget what the cache holds from column ``length`` on."""
        surplus = self.cache.get_seq_length() - length
        if surplus > 0:
            self.cache.crop(-surplus)

    def select(self, rows: Sequence[int]) -> None:
        """Keep the given rows."""
        if len(rows) < len(self.ids):
            index = self._tensor([list(rows)])[0]
            self.ids, self.mask, self.positions = self.ids[index], self.mask[index], self.positions[index]
            self.cache.batch_select_indices(index)


@torch.no_grad()
def decode_batch(
    model: Any, contexts: Sequence[Context], markers: Markers, decoding: Decoding, order: Order
) -> list[list[Piece]]:
    """The pieces that fill the blanks of each context, in the order of the blanks."""
    rows = Rows(model, contexts, markers, decoding.pad)
    alone = rows.length
    found: list[list[Piece]] = [[] for _ in contexts]
    going = list(range(len(contexts)))
    for number in range(max(len(context.blanks) for context in contexts)):
        kept = [row for row, index in enumerate(going) if len(contexts[index].blanks) > number]
        rows.select(kept)
        going = [going[row] for row in kept]
        blanks = [len(contexts[index].before) + contexts[index].blanks[number] for index in going]
        generated = [contexts[index].kinds[number] == "[gMASK]" for index in going]
        for index, piece in zip(going, _fill_next(rows, decoding, blanks, generated), strict=True):
            found[index].append(piece)
        if order == "independent":
            rows.cut(alone)
    return found


def _fill_next(rows: Rows, decoding: Decoding, blanks: list[int], generated: list[bool]) -> list[Piece]:
    """One piece for every row, which is then part of the row."""
    start = rows.length
    rows.append([[rows.sop]] * len(blanks), rows.piece_positions(blanks, generated, 1))
    sequences = _generate(rows, decoding)
    pieces = [_until_end(sequence, decoding) for sequence in sequences[:, start + 1 :].tolist()]
    rows.cut(start)
    inputs = [[rows.sop, *tokens] for tokens, _ in pieces]
    rows.append(inputs, rows.piece_positions(blanks, generated, max(map(len, inputs))))
    scores = _score(rows, start, [[*tokens, *end] for tokens, end in pieces])
    return [Piece(tuple(tokens), tuple(score)) for (tokens, _), score in zip(pieces, scores, strict=True)]


def _generate(rows: Rows, decoding: Decoding) -> Tensor:
    """``model.generate`` from the rows as they are, which end in sop: sequences [B, T + new]."""
    count, begin = len(rows.ids), rows.length - 1
    inputs = {"input_ids": rows.ids, "attention_mask": rows.mask, "position_ids": rows.positions}
    arguments: dict[str, Any] = {**inputs, **decoding.options}
    if not decoding.share_cache:
        sequences: Tensor = rows.model.generate(**arguments)
        return sequences
    if decoding.beams > 1:
        rows.cache.batch_repeat_interleave(decoding.beams)
    sequences = rows.model.generate(**arguments, **{CACHE: rows.cache})
    rows.cut_cache(begin)
    if decoding.beams > 1:  # beams of a row have the same past, whichever they are
        rows.cache.batch_select_indices(torch.arange(0, count * decoding.beams, decoding.beams, device=rows.ids.device))
    return sequences


def _until_end(tokens: list[int], decoding: Decoding) -> tuple[list[int], list[int]]:
    """A piece without its end, and its end, if any. After a stop other than an end, ``generate`` pads."""
    for place, token in enumerate(tokens):
        if token in decoding.stops:
            return tokens[:place], [token]
    while decoding.padded and tokens and tokens[-1] == decoding.pad:
        tokens = tokens[:-1]
    return tokens, []


def _score(rows: Rows, start: int, targets: list[list[int]]) -> list[list[float]]:
    """log p of each row's targets, the first of which follows column ``start``; reads the columns into the cache."""
    scores: list[list[float]] = [[] for _ in targets]
    for begin in range(start, rows.length, _COLUMNS):
        end = min(begin + _COLUMNS, rows.length)
        logs = rows.forward(begin, end, end - begin).float().log_softmax(-1)
        for row, target in enumerate(targets):
            part = torch.tensor(target[begin - start : end - start], dtype=torch.long, device=logs.device)
            scores[row] += logs[row, torch.arange(len(part), device=logs.device), part].tolist()
    return scores
