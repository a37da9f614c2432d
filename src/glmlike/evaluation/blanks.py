"""lm-eval's ``hf`` model for decoders that fill blanks, scored in the form they were trained in.

Such a decoder reads its context both ways and writes a piece: a prompt is a context that ends in a [gMASK], a cloze a
context with a [MASK], and both are followed by the start of a piece. lm-eval's own model feeds a bare text, which no
GLM-10B, GLM-130B or ChatGLM-6B ever saw; it is what decoders that only look back are evaluated with.
"""

from __future__ import annotations

from typing import Any

from lm_eval.models.huggingface import HFLM

from glmlike.errors import GlmLikeError
from glmlike.infilling.context import Context, Markers, read_context, read_markers
from glmlike.infilling.decoding import read_options
from glmlike.infilling.filling import fill

_END_OF_PIECE = ("<eop>", "<|endofpiece|>")


class BlankFillingLM(HFLM):  # type: ignore[misc,unused-ignore]
    """What lm-eval asks, asked of an infilling decoder; ``cuda``, batches and quantized loading are lm-eval's own."""

    def loglikelihood(self, requests: list[Any], disable_tqdm: bool = False) -> list[tuple[float, bool]]:
        """log p(continuation | context) of each request: as the piece of its one blank, or of a [gMASK] at its end."""
        pairs = [(request.args, *self.piece_of(*request.args)) for request in requests]
        return list(self._loglikelihood_tokens(pairs, disable_tqdm=disable_tqdm))

    def piece_of(self, context: str, continuation: str) -> tuple[list[int], list[int]]:
        """The ids of a context up to the start of its piece, and the piece's; the piece of a blank has its end.

        Raises:
            GlmLikeError: a context with more than one blank.
        """
        markers = self._markers()
        if not context:
            return [self._gmask(markers), markers.sop], self._ids(continuation)
        read = read_context(context, self.tokenizer, markers, append_gmask=True)
        if len(read.blanks) > 1:
            raise GlmLikeError(f"{context[:60]!r}: {len(read.blanks)} blanks; a continuation is scored for one.")
        start = [*read.ids, markers.sop]
        if read.offsets[0] == (len(context), len(context)):
            tokens, whole = list(read.tokens[:-1]), self._ids(context + continuation)
            return start, whole[len(tokens) :] if whole[: len(tokens)] == tokens else self._ids(continuation)
        return start, [*self._piece(read, continuation), self._end_of_piece()]

    def _piece(self, read: Context, word: str) -> list[int]:
        """The tokens of a word where the blank stands: as the whole text has them, if the rest of it stays the same."""
        (place,), ((first, last),) = read.blanks, read.offsets
        before, after = list(read.tokens[:place]), list(read.tokens[place + 1 :])
        whole = self._ids(read.text[:first] + word + read.text[last:])
        end = len(whole) - len(after)
        if whole[:place] == before and whole[end:] == after and end > place:
            return whole[place:end]
        return self._ids(f" {word}" if read.text[:first].endswith(" ") else word)

    def loglikelihood_rolling(self, requests: list[Any], disable_tqdm: bool = False) -> list[float]:
        """log p(text) of each request, read from nothing: as the piece of a lone [gMASK], in windows that fit."""
        markers = self._markers()
        start, room = [self._gmask(markers), markers.sop], self.max_length - 2
        windows: list[Any] = []
        owners: list[int] = []
        for owner, request in enumerate(requests):
            (text,) = request.args
            ids = self._ids(text)
            cut = [ids[place : place + room] for place in range(0, len(ids), room)]
            windows += [((f"{owner}:{number}", text), start, piece) for number, piece in enumerate(cut)]
            owners += [owner] * len(cut)
        totals = [0.0] * len(requests)
        found = self._loglikelihood_tokens(windows, disable_tqdm=disable_tqdm)
        for owner, (score, _) in zip(owners, found, strict=True):
            totals[owner] += score
        return totals

    def generate_until(self, requests: list[Any], disable_tqdm: bool = False) -> list[str]:
        """The pieces of a context's blanks, a line each; for a prompt without one, what lm-eval's model writes."""
        written = self._markers().kind_of_text
        with_blank = [place for place, r in enumerate(requests) if any(name in r.args[0] for name in written)]
        others = [request for place, request in enumerate(requests) if place not in set(with_blank)]
        replies = iter(super().generate_until(others, disable_tqdm=disable_tqdm) if others else [])
        filled = dict(zip(with_blank, map(self._filled, (requests[place] for place in with_blank)), strict=True))
        return [filled[place] if place in filled else next(replies) for place in range(len(requests))]

    def _filled(self, request: Any) -> str:
        text, options = request.args
        longest = int(options.get("max_gen_toks") or options.get("max_new_tokens") or 64)
        result = fill(self.model, self.tokenizer, text, max_new_tokens=longest, do_sample=False)
        piece = "\n".join(span.text.strip() for span in result.spans)
        for stop in options.get("until") or ():
            piece = piece.split(stop)[0]
        return piece

    def _ids(self, text: str) -> list[int]:
        return [int(token) for token in self.tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]]

    def _markers(self) -> Markers:
        return read_markers(self.model, self.tokenizer)

    def _gmask(self, markers: Markers) -> int:
        """[gMASK], or the blank that a model without one has (BERT-like GLM: [MASK])."""
        kinds = markers.kind_of_id
        return next((token for token, kind in kinds.items() if kind == "[gMASK]"), next(iter(kinds)))

    def _end_of_piece(self) -> int:
        known, stops = self.tokenizer.get_vocab(), read_options(self.model, self.tokenizer, {}).stops
        return next((known[name] for name in _END_OF_PIECE if known.get(name) in stops), stops[-1])
