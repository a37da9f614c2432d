"""The published objective of blank infilling, from one text's token ids to one sample: numpy, seeded, vectorized.

Sources: the GLM paper (arXiv 2103.10360, section 2.1), THUDM/GLM ``blocklm_utils.py`` and ``configure_data.py``, the
GLM-130B paper (arXiv 2210.02414, section 2.2). A sample of n tokens with k spans has n + 2k tokens: every span gives
its place to one mask token, and follows as a piece ``sop s1 .. sn`` whose targets are ``s1 .. sn eop``.
"""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from glmlike.errors import ConfigError

Ids = NDArray[np.int64]
Level = Literal["token", "sentence", "document", "causal"]
LEVELS: tuple[Level, ...] = ("token", "sentence", "document", "causal")
IGNORED = -100  # a target that is no target: PyTorch's ignore_index


@dataclass(frozen=True, kw_only=True)
class BlankInfillingObjective:
    """What share of samples is cut at which level, and how; the defaults are the published ones.

    ``token``, ``sentence``, ``document`` and ``causal`` are the shares of samples, summing to 1:

    * ``token`` ([MASK]): spans of a Poisson length (mean ``mean_span``, without its zero, below ``longest_span``) until
      they cover ``masked_share`` of the text, at least one token apart;
    * ``sentence`` ([sMASK]): whole sentences in random order until they cover ``masked_share``;
    * ``document`` ([gMASK]): one span, its length uniform from ``shortest_document_share`` of the text up; with
      probability ``suffix_probability`` (and always in a text of several documents) it is the end of the text and has
      no end-of-piece target, else it lies anywhere;
    * ``causal``: the text as it is, every token a target. Not published with GLM: for decoders that are also to
      continue plain text, which they read one way.

    ``single_span_probability``: a sample gets, before any level is drawn, exactly one token-level span.
    ``short_probability``: a batch is cut into shorter texts first. ``block_mask_probability``: input tokens of
    token-level pieces are replaced by [dBLOCK], their targets kept. ``shuffle``: pieces stand in random order.
    ``level_per``: one level is drawn for a ``"batch"`` (with one document length), as published, or for each
    ``"sample"``. ``single_mask``: all levels use [MASK] (published without ``--task-mask``).

    Raises:
        ConfigError: shares that do not sum to 1, or a number outside its range.
    """

    token: float = 1.0
    sentence: float = 0.0
    document: float = 0.0
    causal: float = 0.0
    masked_share: float = 0.15
    mean_span: float = 3.0
    longest_span: int = 40
    shortest_document_share: float = 0.5
    suffix_probability: float = 0.5
    single_span_probability: float = 0.0
    short_probability: float = 0.0
    block_mask_probability: float = 0.0
    shuffle: bool = True
    level_per: Literal["batch", "sample"] = "batch"
    single_mask: bool = False

    def __post_init__(self) -> None:
        if any(share < 0 for share in self.shares) or not math.isclose(sum(self.shares), 1.0, abs_tol=1e-6):
            named = ", ".join(f"{level}={share}" for level, share in zip(LEVELS, self.shares, strict=True))
            raise ConfigError(f"{named}: the shares of samples must not be negative and must sum to 1.")
        names = ("masked_share", "shortest_document_share", "suffix_probability", "single_span_probability")
        for name in (*names, "short_probability", "block_mask_probability"):
            if not 0 <= getattr(self, name) <= 1:
                raise ConfigError(f"{name}={getattr(self, name)}: expected a number from 0 to 1.")
        if not self.mean_span > 0 or self.longest_span < 2:
            raise ConfigError(
                f"mean_span={self.mean_span}, longest_span={self.longest_span}: expected a positive mean and a limit "
                "of at least 2 (spans are shorter than the limit)."
            )
        if self.level_per not in ("batch", "sample"):
            raise ConfigError(f"level_per={self.level_per!r}: expected 'batch' or 'sample'.")

    @property
    def shares(self) -> tuple[float, ...]:
        """The shares of samples, in the order of ``LEVELS``."""
        return (self.token, self.sentence, self.document, self.causal)

    def span_length_probabilities(self) -> NDArray[np.float64]:
        """The probability of each span length 1, 2, .. ``longest_span - 1``: a Poisson's, cut and normalized."""
        lengths = np.arange(1, self.longest_span)
        logarithms = lengths * math.log(self.mean_span) - np.array([math.lgamma(n + 1) for n in lengths])
        weights = np.exp(logarithms - self.mean_span)
        return np.asarray(weights / weights.sum(), dtype=np.float64)

    @functools.cached_property
    def cumulative_span_lengths(self) -> NDArray[np.float64]:
        """The probability that a span has at most 1, 2, .. tokens."""
        return self.span_length_probabilities().cumsum()


# THUDM/GLM config/*.sh; the GLM-130B paper, where [gMASK] is always the suffix and its length uniform.
OBJECTIVES: dict[str, BlankInfillingObjective] = {
    "glm-base": BlankInfillingObjective(single_mask=True),
    "glm-large": BlankInfillingObjective(),
    "glm-10b": BlankInfillingObjective(
        token=0.5,
        sentence=0.3,
        document=0.2,
        shortest_document_share=0.25,
        block_mask_probability=0.1,
        short_probability=0.02,
    ),
    "glm-10b-1024": BlankInfillingObjective(
        token=0.4,
        sentence=0.3,
        document=0.3,
        shortest_document_share=0.25,
        block_mask_probability=0.1,
        short_probability=0.5,
        single_span_probability=0.05,
    ),
    "glm-10b-chinese-1024": BlankInfillingObjective(
        token=0.5,
        sentence=0.3,
        document=0.2,
        shortest_document_share=0.25,
        block_mask_probability=0.1,
        short_probability=0.5,
    ),
    "glm-large-chinese": BlankInfillingObjective(
        token=0.4,
        sentence=0.3,
        document=0.3,
        shortest_document_share=0.25,
        block_mask_probability=0.1,
        short_probability=0.02,
    ),
    "glm-130b": BlankInfillingObjective(
        token=0.3, document=0.7, shortest_document_share=0.0, suffix_probability=1.0, level_per="sample"
    ),
}
"""Published mixes by name."""


@dataclass(frozen=True, kw_only=True)
class BlankTokens:
    """The ids that the objective writes: blanks, begin and end of a piece; ``first`` and ``end`` delimit documents.

    ``first`` ([CLS], ENC) is never masked; ``end`` (end of text) separates documents and is never in a span.
    """

    mask: int
    sop: int
    eop: int
    smask: int | None = None
    gmask: int | None = None
    dblock: int | None = None
    first: int | None = None
    end: int | None = None


class Sample(NamedTuple):
    """One sample: ids [T], their positions [2, T] (position; place in the piece) and targets [T] of the same place."""

    input_ids: Ids
    positions: Ids
    targets: Ids


class Spans(NamedTuple):
    """Disjoint spans of a text in its order: first tokens and lengths, both [k]."""

    starts: Ids
    lengths: Ids


def token_spans(
    ids: Ids, objective: BlankInfillingObjective, tokens: BlankTokens, rng: np.random.Generator, single: bool = False
) -> Spans:
    """Token-level spans of a text: ``int(masked_share * n)`` tokens or the first sum above it, one at the least.

    ``blocklm_utils.py``: ``construct_blocks`` draws lengths, ``sample_span_in_document`` places them: of several
    documents each but the longest takes ``masked_share`` of its own, the longest takes the rest. Unlike there, a sample
    whose spans do not all find a place keeps those that do, and the last token of a text may be in a span.
    """
    cumulative = objective.cumulative_span_lengths
    wanted = 1 if single else max(1, int(objective.masked_share * len(ids)))
    drawn = np.searchsorted(cumulative, rng.random(wanted), side="right") + 1
    drawn = np.minimum(drawn, len(cumulative))  # the last bound may round to just below 1
    lengths = drawn[: int(np.searchsorted(drawn.cumsum(), wanted)) + 1].astype(np.int64)
    return _place(_documents(ids, tokens), lengths, objective.masked_share, rng)


def _documents(ids: Ids, tokens: BlankTokens) -> list[tuple[int, int]]:
    """(first maskable token, number of maskable tokens) of each document, shortest first."""
    inner = np.flatnonzero(ids == tokens.end) if tokens.end is not None else np.empty(0, np.int64)
    found = []
    for start, stop in zip([0, *(inner + 1)], [*inner, len(ids)], strict=True):
        begin = start + 1 if start < stop and tokens.first is not None and ids[start] == tokens.first else start
        if stop > begin:
            found.append((int(begin), int(stop - begin)))
    return sorted(found, key=lambda document: document[1])


def _place(documents: list[tuple[int, int]], lengths: Ids, share: float, rng: np.random.Generator) -> Spans:
    starts, placed, used = [], [], 0
    for number, (offset, size) in enumerate(documents):
        last = number == len(documents) - 1
        left = lengths[used:]
        room = left.cumsum() + (np.arange(1, len(left) + 1) if last else 0)
        count = int(np.searchsorted(room, size if last else int(size * share), side="right"))
        if last and not count and used == 0 and size > 1:  # a text shorter than the first span: one that fits
            left, count = np.minimum(left[:1], size - 1), 1
        if count:
            here = left[:count]
            places = np.sort(rng.integers(0, size - int(here.sum()) - count + 2, count))
            starts.append(offset + places + np.concatenate(([0], (here + 1).cumsum()[:-1])))
            placed.append(here)
            used += count
    if not starts:
        return Spans(np.empty(0, np.int64), np.empty(0, np.int64))
    all_starts, all_lengths = np.concatenate(starts), np.concatenate(placed)
    order = np.argsort(all_starts)
    return Spans(all_starts[order], all_lengths[order])


def sentence_spans(
    ids: Ids, ends: NDArray[np.bool_], share: float, tokens: BlankTokens, rng: np.random.Generator
) -> Spans:
    """Whole sentences in random order until they cover ``share`` of the text; ``ends[id]``: the token ends one."""
    borders = ends[ids]
    separators = ids == tokens.end if tokens.end is not None else np.zeros(len(ids), np.bool_)
    first = 1 if tokens.first is not None and len(ids) and ids[0] == tokens.first else 0
    cuts = np.flatnonzero(borders | separators) + 1
    starts = np.concatenate(([first], cuts[cuts > first], [len(ids)]))
    stops = starts[1:] - np.concatenate((separators[starts[1:-1] - 1], [False]))  # the separator itself is no sentence
    begins = starts[:-1]
    begins, lengths = begins[stops > begins], (stops - begins)[stops > begins]
    order = rng.permutation(len(begins))
    covered = lengths[order].cumsum()
    chosen = np.sort(order[: int(np.searchsorted(covered, int(share * len(ids)))) + 1])
    return Spans(begins[chosen].astype(np.int64), lengths[chosen].astype(np.int64))


def document_length(shortest: int, longest: int, objective: BlankInfillingObjective, rng: np.random.Generator) -> int:
    """The length of a document-level span, for texts of ``shortest`` to ``longest`` tokens (``construct_blocks``)."""
    low = max(1, int(objective.shortest_document_share * shortest))
    return int(rng.integers(low, max(low, longest - 2) + 1))


def document_sample(
    ids: Ids, length: int, objective: BlankInfillingObjective, tokens: BlankTokens, rng: np.random.Generator
) -> Sample:
    """A text with one long span behind [gMASK] (or [MASK]): its end, without end-of-piece, or anywhere, with it."""
    length = max(1, min(length, len(ids) - 2))
    documents = _documents(ids, tokens)
    mask = _mask_id("document", objective, tokens)
    several = len(documents) > 1
    if not several and rng.random() >= objective.suffix_probability and documents and documents[0][1] > length:
        offset, size = documents[0]
        start = offset + int(rng.integers(0, size - length + 1))
        return blanks(ids, Spans(np.array([start]), np.array([length])), mask, tokens)
    source, target = ids[: len(ids) - length], ids[len(ids) - length :]
    row = np.concatenate((source, [mask, tokens.sop], target[:-1]))
    targets = np.concatenate((np.full(len(source) + 1, IGNORED), target))
    position = np.minimum(np.arange(len(row)), len(source))
    block = np.maximum(np.arange(len(row)) - len(source), 0)
    return Sample(row, np.stack((position, block)), targets)


def causal_sample(ids: Ids) -> Sample:
    """The text as it is: every token is the target of the one before it."""
    targets = np.append(ids[1:], IGNORED)
    return Sample(ids, np.stack((np.arange(len(ids)), np.zeros(len(ids), np.int64))), targets)


def given_sample(context: Ids, target: Ids, tokens: BlankTokens) -> Sample:
    """A context with one blank and the piece that fills it: supervised pairs, as in GLM-130B's multi-task part.

    Raises:
        ConfigError: the context does not hold exactly one blank.
    """
    where = np.flatnonzero(np.isin(context, [t for t in (tokens.mask, tokens.smask, tokens.gmask) if t is not None]))
    if len(where) != 1:
        raise ConfigError(
            f"a sample with 'target_ids' holds {len(where)} blanks, expected one: its input_ids need exactly one of "
            "the mask tokens, where target_ids belong."
        )
    row = np.concatenate((context, [tokens.sop], target))
    targets = np.concatenate((np.full(len(context), IGNORED), target, [tokens.eop]))
    piece = np.arange(len(row)) >= len(context)
    position = np.where(piece, where[0], np.arange(len(row)))
    return Sample(row, np.stack((position, np.where(piece, np.arange(len(row)) - len(context) + 1, 0))), targets)


def blanks(
    ids: Ids,
    spans: Spans,
    mask: int,
    tokens: BlankTokens,
    rng: np.random.Generator | None = None,
    block_mask_probability: float = 0.0,
) -> Sample:
    """The sample of a text and its spans: context, then a piece for each span, in random order if ``rng`` is given.

    A span counts as one position of the context, that of its mask token; every token of its piece, sop included, has
    this position, and its place in the piece, counted from 1 at the sop (``make_block_data``).
    """
    starts, lengths = spans
    inside = np.zeros(len(ids) + 1, np.int64)
    inside[starts] += 1
    np.subtract.at(inside, starts + lengths, 1)
    kept = inside.cumsum()[:-1] == 0
    kept[starts] = True
    position = kept.cumsum() - 1
    context = ids.copy()
    context[starts] = mask
    context = context[kept]

    if rng is not None:
        order = rng.permutation(len(starts))
        starts, lengths = starts[order], lengths[order]
    sizes = lengths + 1
    begins = sizes.cumsum() - sizes
    place = np.arange(int(sizes.sum())) - np.repeat(begins, sizes)
    source = np.repeat(starts, sizes) + place
    piece = ids[source - 1]
    if block_mask_probability and rng is not None:
        piece = np.where(rng.random(len(piece)) < block_mask_probability, tokens.dblock, piece)
    piece[begins] = tokens.sop
    target = ids[np.minimum(source, len(ids) - 1)]
    target[begins + lengths] = tokens.eop

    row = np.concatenate((context, piece))
    rows = np.concatenate((np.arange(len(context)), position[np.repeat(starts, sizes)]))
    block = np.concatenate((np.zeros(len(context), np.int64), place + 1))
    return Sample(row, np.stack((rows, block)), np.concatenate((np.full(len(context), IGNORED), target)))


def _mask_id(level: Level, objective: BlankInfillingObjective, tokens: BlankTokens) -> int:
    special = {"sentence": tokens.smask, "document": tokens.gmask}.get(level)
    return tokens.mask if objective.single_mask or special is None else special


def level_sample(
    ids: Ids,
    level: Level,
    objective: BlankInfillingObjective,
    tokens: BlankTokens,
    ends: NDArray[np.bool_],
    rng: np.random.Generator,
    *,
    single: bool = False,
    length: int | None = None,
) -> Sample:
    """One text cut at one level; ``length`` is the batch's document length, drawn for this text when absent.

    A text of which nothing can be masked (one token) is read causally.
    """
    if level == "causal" or len(ids) < 2:
        return causal_sample(ids)
    if level == "document":
        drawn = document_length(len(ids), len(ids), objective, rng) if length is None else length
        return document_sample(ids, drawn, objective, tokens, rng) if len(ids) > 2 else causal_sample(ids)
    if level == "token":
        spans = token_spans(ids, objective, tokens, rng, single)
    else:
        spans = sentence_spans(ids, ends, objective.masked_share, tokens, rng)
    if not len(spans.starts):
        return causal_sample(ids)
    probability = objective.block_mask_probability if level == "token" else 0.0
    shuffled = rng if objective.shuffle or probability else None
    return blanks(ids, spans, _mask_id(level, objective, tokens), tokens, shuffled, probability)
