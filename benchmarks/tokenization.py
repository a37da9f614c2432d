"""Megabytes of text a second: the pipelines in Rust and the exact cutter beside the original Python tokenizers."""

from __future__ import annotations

import functools
import os
from pathlib import Path
from typing import Any

from common import child, interleaved, median, report

SHARED = Path(os.environ.get("GLMLIKE_SHARED", Path(__file__).parents[2] / "shared")) / "originals"
_SETUP = """
import sys
from pathlib import Path
tests, path, kind, language = argument
sys.path.append(tests)
from corpus import sample
from glmlike.tokenization import sentencepiece_bpe, unigram
from glmlike.tokenization.sentencepiece_model import read_model
model = read_model(Path(path))
texts = sample(1_000_000, language, model.pieces)
spelled = model.algorithm == "unigram"
if kind == "original":
    import sentencepiece
    processor = sentencepiece.SentencePieceProcessor(model_file=path)
    def encode(text):  # transformers 4.30's slow path: the original's spelling, pieces, then the id of each one by one
        if spelled:
            text = text.replace("\\n", "<n>").replace("\\t", "<|tab|>")
            for length in range(80, 1, -1):
                text = text.replace(" " * length, f"<|blank_{length}|>")
        ids = []
        for piece in processor.encode(text, out_type=str):
            if piece is None or piece in added:
                ids.append(added[piece])
            else:
                ids.append(processor.piece_to_id(piece))
        return ids
    added = {}
    run = lambda: [encode(text) for text in texts]
elif kind == "exact":
    code = unigram.exact(model)
    run = lambda: [code.encode(text) for text in texts]
else:
    tokenizer = (unigram if spelled else sentencepiece_bpe).build(model)
    run = lambda: [each.ids for each in tokenizer.encode_batch_fast(texts)]
"""
_WORK = "result = [sum(len(text.encode()) for text in texts), sum(map(len, run()))]"
VOCABULARIES = {
    "ChatGLM-6B v1.1": ("chatglm-6b-v1.1/ice_text.model", ("original", "rust", "exact")),
    "ChatGLM2-6B": ("chatglm2-6b/tokenizer.model", ("original", "rust")),
    "GLM-10B-Chinese": ("glm-10b-chinese/cog-pretrain.model", ("original", "rust")),
}


def main(repeats: int = 5) -> None:
    """Measure and write results/tokenization.json."""
    tests = str(Path(__file__).parents[1] / "tests" / "tokenization")
    rows: list[dict[str, Any]] = []
    for name, (file, kinds) in VOCABULARIES.items():
        for language in ("code", "chinese"):
            arguments = {kind: [tests, str(SHARED / file), kind, language] for kind in kinds}
            runs = {
                kind: functools.partial(child, _WORK, setup=_SETUP, argument=each) for kind, each in arguments.items()
            }
            measured = interleaved(runs, repeats)
            speeds = {kind: found[0]["extra"][0] / 1e6 / median(found, "seconds") for kind, found in measured.items()}
            rows += [
                {
                    "vocabulary": name,
                    "text": language,
                    "tokenizer": kind,
                    "MB / s": speed,
                    "ratio to the original": speed / speeds["original"],
                }
                for kind, speed in speeds.items()
            ]
    note = (
        "1 MB of texts of some 3000 characters, every word met for the first time. original: sentencepiece inside the"
        " steps of transformers 4.30's slow tokenizers, without their search for added tokens and padding, which"
        " would only slow it. rust: encode_batch_fast on all cores. exact: one core."
        f" Median of {repeats} new processes, interleaved."
    )
    report("tokenization", rows, note)


if __name__ == "__main__":
    main()
