"""DataCollatorForBlankInfilling: from texts to batches that an infilling decoder trains on with the HF Trainer."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from glmlike.errors import ConfigError
from glmlike.infilling.objective import (
    IGNORED,
    LEVELS,
    OBJECTIVES,
    BlankInfillingObjective,
    BlankTokens,
    Ids,
    Sample,
    document_length,
    given_sample,
    level_sample,
)

if TYPE_CHECKING:
    from torch import Tensor

# How the vocabularies of the family write the end of a piece (GLM-10B; ChatGLM-6B, GLM-130B; ChatGLM2).
_EOP = ("<eop>", "<|endofpiece|>", "eop")
_DBLOCK = ("<dBLOCK>", "[dBLOCK]", "[DBLOCK]")
# What ends a sentence: THUDM/GLM blocklm_utils.py, contains_sentence_end.
SENTENCE_ENDS = frozenset(".?!;:。？！；…\n")


class DataCollatorForBlankInfilling:
    """Texts to batches of blank infilling: ids, two-dimensional positions, masks and labels.

    ``__call__`` takes features with ``input_ids`` (plain text, tokenized with ``add_special_tokens=False``; a leading
    [CLS] and end-of-text tokens are known and never masked) and cuts each by the ``objective`` (a name of
    ``OBJECTIVES``, or a :class:`BlankInfillingObjective`). A feature that also has ``target_ids`` is a supervised pair:
    its ``input_ids`` hold one mask token, and ``target_ids`` belong there (GLM-130B's multi-task part is 5 % of tokens
    of such pairs: mix the datasets in that ratio). It returns tensors:

    * ``input_ids`` [B, T] and ``attention_mask`` [B, T], padded on the right by at least one token;
    * ``position_ids`` [B, 2, T], or [B, T] for a decoder with one-dimensional positions, where a piece that fills a
      [MASK] or [sMASK] stays on the blank's position and one that fills a [gMASK] counts on (GLM-130B: generate.py);
    * ``labels`` [B, T] in transformers' convention: ``labels[t + 1]`` is scored by ``logits[t]``, -100 is ignored. Loss
      is on pieces only, so the ``eval_loss`` of the Trainer is the logarithm of the perplexity on blanks;
    * with ``pack_length``: ``seq_idx`` [B, T], which sample of its row a token belongs to; rows hold as many samples as
      fit into ``pack_length`` tokens (a longer one has a row of its own).

    Randomness is a function of ``seed``, ``epoch`` and the batch's own tokens alone: any number of workers, and a
    training run resumed at any step, give the same batches. ``epoch`` matters only where batches repeat exactly (data
    that is not shuffled): pass ``callbacks=[collator.callback()]`` to the Trainer to keep it up to date.

    Args:
        tokenizer: where ids that the config lacks are looked up, and which tokens end sentences.
        config: of an infilling decoder (``attention_mask="prefix"``); its ids of blanks and of ``sop`` are written.
        max_length: longer texts are cut at their end. A sample is two tokens longer than its text for each span.

    Raises:
        ConfigError: a decoder that reads one way, ids that neither config nor tokenizer say, texts that hold ids which
            only the objective may write, or a feature without ``input_ids``.
    """

    def __init__(
        self,
        tokenizer: Any,
        config: Any,
        objective: BlankInfillingObjective | str = "glm-10b",
        *,
        max_length: int | None = None,
        pack_length: int | None = None,
        seed: int = 0,
        eop_token_id: int | None = None,
        dblock_token_id: int | None = None,
    ) -> None:
        if getattr(config, "attention_mask", None) != "prefix":
            raise ConfigError(
                f"a {type(config).__name__} with attention_mask={getattr(config, 'attention_mask', None)!r}: only "
                "decoders with attention_mask='prefix' read a context both ways. Use transformers' "
                "DataCollatorForLanguageModeling for a causal one."
            )
        if isinstance(objective, str) and objective not in OBJECTIVES:
            raise ConfigError(f"objective={objective!r}: expected one of {', '.join(OBJECTIVES)}, or an objective.")
        self.objective = OBJECTIVES[objective] if isinstance(objective, str) else objective
        self.tokens = _tokens(tokenizer, config, self.objective, eop_token_id, dblock_token_id)
        self.pad_token_id = int(tokenizer.pad_token_id if tokenizer.pad_token_id is not None else config.pad_token_id)
        self.two_dimensional = config.positions in ("rotary_2d", "learned_2d")
        self.max_length = max_length
        self.pack_length = pack_length
        self.seed = seed
        self.epoch = 0
        self._ends = _sentence_ends(tokenizer, config.vocab_size)
        self._written = np.array(
            [t for t in (self.tokens.mask, self.tokens.smask, self.tokens.gmask, self.tokens.sop) if t is not None]
        )

    def set_epoch(self, epoch: int) -> None:
        """Use other random numbers for batches that were seen in another epoch."""
        self.epoch = int(epoch)

    def callback(self) -> Any:
        """A transformers.TrainerCallback that calls :meth:`set_epoch` when an epoch begins."""
        from transformers import TrainerCallback

        collator = self

        class SetEpoch(TrainerCallback):
            def on_epoch_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
                collator.set_epoch(int(state.epoch or 0))

        return SetEpoch()

    def __call__(self, features: Sequence[Mapping[str, Any]]) -> dict[str, Tensor]:
        return self.collate(self.samples(features))

    def samples(self, features: Sequence[Mapping[str, Any]]) -> list[Sample]:
        """The samples of a batch before padding: one a feature, or several where the objective shortens texts."""
        texts = [self._text(feature) for feature in features]
        rng = self._generator(texts)
        plain = [text for text, feature in zip(texts, features, strict=True) if feature.get("target_ids") is None]
        pairs = [
            given_sample(text, _ids(feature["target_ids"], "target_ids"), self.tokens)
            for text, feature in zip(texts, features, strict=True)
            if feature.get("target_ids") is not None
        ]
        return self._cut(plain, rng) + pairs

    def _text(self, feature: Mapping[str, Any]) -> Ids:
        if "input_ids" not in feature:
            raise ConfigError(f"a feature has {sorted(feature)}, expected 'input_ids'. Tokenize the texts first.")
        text = _ids(feature["input_ids"], "input_ids")
        if feature.get("target_ids") is None:
            if np.isin(text, self._written).any():
                raise ConfigError(
                    "a text holds a mask or start-of-piece token, which the objective writes itself. Tokenize with "
                    "add_special_tokens=False, or give its answer as 'target_ids'."
                )
            text = text[: self.max_length]
        return text

    def _generator(self, texts: Sequence[Ids]) -> np.random.Generator:
        digest = hashlib.blake2b(f"{self.seed} {self.epoch} {len(texts)}".encode(), digest_size=16)
        for text in texts:
            digest.update(text.tobytes())
            digest.update(b"|")
        return np.random.Generator(np.random.Philox(key=int.from_bytes(digest.digest(), "little")))

    def _cut(self, texts: list[Ids], rng: np.random.Generator) -> list[Sample]:
        objective = self.objective
        if not texts:
            return []
        if objective.short_probability and rng.random() < objective.short_probability:
            texts = _shortened(texts, self._ends, self.tokens, rng)
        count = 1 if objective.level_per == "batch" else len(texts)
        single = rng.random(count) < objective.single_span_probability
        drawn = np.searchsorted(np.cumsum(objective.shares), rng.random(count), side="right")
        levels = np.where(single, 0, np.minimum(drawn, len(LEVELS) - 1))
        length = None
        if objective.level_per == "batch" and LEVELS[levels[0]] == "document":
            sizes = [len(text) for text in texts]
            length = document_length(min(sizes), max(sizes), objective, rng)
        return [
            level_sample(
                text,
                LEVELS[levels[number % count]],
                objective,
                self.tokens,
                self._ends,
                rng,
                single=bool(single[number % count]),
                length=length,
            )
            for number, text in enumerate(texts)
        ]

    def collate(self, samples: Sequence[Sample]) -> dict[str, Tensor]:
        """The tensors of a batch of samples, packed if ``pack_length`` says so."""
        import torch

        rows = [[sample] for sample in samples] if self.pack_length is None else _packed(samples, self.pack_length)
        length = 1 + max((sum(len(sample.input_ids) for sample in row) for row in rows), default=0)
        ids = np.full((len(rows), length), self.pad_token_id, np.int64)
        mask = np.zeros((len(rows), length), np.int64)
        labels = np.full((len(rows), length), IGNORED, np.int64)
        positions = np.zeros((len(rows), 2 if self.two_dimensional else 1, length), np.int64)
        numbers = np.zeros((len(rows), length), np.int64)
        for index, row in enumerate(rows):
            start = 0
            for number, sample in enumerate(row):
                stop = start + len(sample.input_ids)
                ids[index, start:stop] = sample.input_ids
                mask[index, start:stop] = 1
                labels[index, start + 1 : stop + 1] = sample.targets
                positions[index, :, start:stop] = self._positions(sample)
                numbers[index, start:] = number
                start = stop
        batch: dict[str, NDArray[Any]] = {"input_ids": ids, "attention_mask": mask, "labels": labels}
        batch["position_ids"] = positions if self.two_dimensional else positions[:, 0]
        if self.pack_length is not None:
            batch["seq_idx"] = numbers
        return {name: torch.from_numpy(value) for name, value in batch.items()}

    def _positions(self, sample: Sample) -> Ids:
        """[2, T], or [1, T], where a piece that fills a [gMASK] counts on from it and others stay on their blank."""
        if self.two_dimensional:
            return sample.positions
        position, block = sample.positions
        generated = position[(sample.input_ids == self.tokens.gmask) & (block == 0)]
        counts_on: NDArray[np.bool_] = (block > 0) & np.isin(position, generated)
        return np.stack([position + block * counts_on])


def _ids(value: Any, name: str) -> Ids:
    ids = np.asarray(value)
    if ids.ndim != 1 or (ids.size and ids.dtype.kind not in "iu"):
        raise ConfigError(
            f"{name} has shape {list(ids.shape)} and dtype {ids.dtype}, expected one list of whole numbers."
        )
    return ids.astype(np.int64)


def _tokens(
    tokenizer: Any, config: Any, objective: BlankInfillingObjective, eop: int | None, dblock: int | None
) -> BlankTokens:
    vocabulary = tokenizer.get_vocab()
    eop = eop if eop is not None else next((vocabulary[name] for name in _EOP if name in vocabulary), None)
    if eop is None and isinstance(config.eos_token_id, int):
        eop = config.eos_token_id  # ChatGLM-6B and GLM-10B: generation ends where a piece does
    dblock = dblock if dblock is not None else next((vocabulary[name] for name in _DBLOCK if name in vocabulary), None)
    wanted = {"mask_token_id": config.mask_token_id, "sop_token_id": config.sop_token_id, "eop_token_id": eop}
    if objective.block_mask_probability:
        wanted["dblock_token_id"] = dblock
    missing = [name for name, value in wanted.items() if value is None]
    if missing:
        raise ConfigError(
            f"{', '.join(missing)}: neither the config nor the vocabulary says. Set mask_token_id and sop_token_id "
            "in the config, pass eop_token_id or dblock_token_id, or use an objective with block_mask_probability=0."
        )
    end = tokenizer.eos_token_id if tokenizer.eos_token_id != eop else None
    return BlankTokens(
        mask=config.mask_token_id,
        sop=config.sop_token_id,
        eop=int(eop or 0),
        smask=config.smask_token_id,
        gmask=config.gmask_token_id,
        dblock=dblock,
        first=tokenizer.cls_token_id,
        end=end,
    )


def _sentence_ends(tokenizer: Any, vocab_size: int) -> NDArray[np.bool_]:
    """[vocabulary]: which tokens hold a sign that ends a sentence (a sign cut into several tokens is not found)."""
    pieces = tokenizer.batch_decode([[token] for token in range(len(tokenizer))])
    special = set(tokenizer.all_special_ids)
    found = np.zeros(max(vocab_size, len(pieces)), np.bool_)
    for token, piece in enumerate(pieces):
        found[token] = token not in special and not SENTENCE_ENDS.isdisjoint(piece)
    return found


def _shortened(
    texts: Sequence[Ids], ends: NDArray[np.bool_], tokens: BlankTokens, rng: np.random.Generator
) -> list[Ids]:
    """Texts of one shorter length, cut where sentences end, about as many tokens in all (``split_samples``)."""
    longest = max(len(text) for text in texts)
    if longest <= 33:
        return list(texts)
    wanted = int(rng.integers(32, longest))
    found = []
    for text in texts:
        lead = text[:1] if tokens.first is not None and len(text) and text[0] == tokens.first else text[:0]
        body = text[len(lead) :]
        border = ends[body] if tokens.end is None else ends[body] | (body == tokens.end)
        passages = (_passage(body, border, wanted, rng) for _ in range(max(1, len(body) // wanted)))
        found += [np.concatenate((lead, passage)) for passage in passages]
    return found


def _passage(body: Ids, border: NDArray[np.bool_], wanted: int, rng: np.random.Generator) -> Ids:
    """A stretch of at most ``wanted`` tokens from the beginning of a sentence to the end of one, if that is long."""
    if wanted >= len(body):
        return body
    start = int(rng.integers(0, len(body) - wanted))
    before = np.flatnonzero(border[:start])
    start = int(before[-1]) + 1 if len(before) else 0
    inside = np.flatnonzero(border[start : start + wanted])
    size = int(inside[-1]) + 1 if len(inside) else 0
    return body[start : start + (size if size >= wanted // 2 else wanted)]


def _packed(samples: Sequence[Sample], length: int) -> list[list[Sample]]:
    """Samples put into rows of at most ``length`` tokens, each into the first row with room, longest first."""
    rows: list[list[Sample]] = []
    free: list[int] = []
    for sample in sorted(samples, key=lambda sample: -len(sample.input_ids)):
        size = len(sample.input_ids)
        index = next((index for index, room in enumerate(free) if room >= size), len(rows))
        if index == len(rows):
            rows.append([])
            free.append(max(length, size))
        rows[index].append(sample)
        free[index] -= size
    return rows
