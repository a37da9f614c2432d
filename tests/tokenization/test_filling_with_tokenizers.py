"""Filling blanks with the real tokenizers: what they put around a text is read, and is no part of what is filled."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from glmlike import GlmLikeTokenizer
from glmlike.infilling import fill
from glmlike.infilling.context import read_context, read_markers
from specs import SPECS

# generation -> (folder, spec, rows, the config's ids, tokens before and after a text)
CASES: dict[str, tuple[str, str, int, dict[str, int], list[int], list[int]]] = {
    "glm-10b": (
        *("glm-10b", "glm-10b", 50_304),
        {"mask_token_id": 50_260, "gmask_token_id": 50_263, "smask_token_id": 50_264, "sop_token_id": 50_257},
        *([50_259], [50_256]),
    ),
    "glm-10b-chinese": (
        *("glm-10b-chinese", "glm-10b", 50_048),
        {"mask_token_id": 50_003, "gmask_token_id": 50_007, "smask_token_id": 50_008, "sop_token_id": 50_006},
        *([50_002], [50_000]),
    ),
    "chatglm-6b": (
        *("chatglm-6b-v1.1", "chatglm-6b", 130_528),
        {"mask_token_id": 130_000, "gmask_token_id": 130_001, "smask_token_id": 130_002, "sop_token_id": 130_004},
        *([], []),
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_fill(name: str, make: Callable[..., Any], shared: Path) -> None:
    folder, spec, rows, ids, before, after = CASES[name]
    tokenizer = GlmLikeTokenizer.from_pretrained(shared / "originals" / folder)
    model = make(SPECS[spec].replace(vocab_size=rows), **ids, eos_token_id=rows - 1, pad_token_id=0, bos_token_id=None)
    text = "one [MASK] two [sMASK] three [gMASK]"
    context = read_context(text, tokenizer, read_markers(model, tokenizer))
    assert (list(context.before), list(context.after)) == (before, after)
    assert context.kinds == ("[MASK]", "[sMASK]", "[gMASK]")
    assert [text[slice(*each)] for each in context.offsets] == list(context.kinds)
    filled = fill(model, tokenizer, text, max_new_tokens=2)
    assert [len(span.token_ids) for span in filled.spans] == [2, 2, 2]
    assert [filled.filled_text[slice(*span.span)] for span in filled.spans] == [span.text for span in filled.spans]
    for word in ("one", "two", "three"):
        assert word in filled.filled_text
