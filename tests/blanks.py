"""A small tokenizer with blanks, and small decoders that fill them with what random numbers say."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from specs import SPECS

ROWS = 320
BLANKS = {"mask_token_id": 300, "gmask_token_id": 301, "smask_token_id": 302, "sop_token_id": 303}
SPECIAL = ("[MASK]", "[gMASK]", "[sMASK]", "<sop>", "<eop>", "[CLS]", "<pad>")
EOP, CLS, PAD = 304, 305, 306
ENDS = [EOP, *range(3, 256, 4)]  # any of them ends a piece: a fifth of what random models say


def byte_level(around: str | None = None) -> PreTrainedTokenizerFast:
    """A byte-level BPE of 256 bytes and 44 joins, then the special tokens from id 300 on."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    joins = [f"{a}{b}" for a in "Ġth" for b in "aeiou"] + [f"{a}{b}" for a in "bcdfgmr" for b in "aeio"] + ["Ġt"]
    names = [*alphabet, *joins]
    tokenizer = Tokenizer(models.BPE({name: i for i, name in enumerate(names)}, [(n[0], n[1]) for n in joins]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([f"<unused{n}>" for n in range(300 - len(names))])
    tokenizer.add_special_tokens([AddedToken(name, lstrip=name.endswith("MASK]"), special=True) for name in SPECIAL])
    if around is not None:
        ids = [(name, 300 + number) for number, name in enumerate(SPECIAL)]
        tokenizer.post_processor = processors.TemplateProcessing(single=around, special_tokens=ids)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<pad>")


def infilling_model(make: Callable[..., Any], name: str, **config: Any) -> Any:
    """Random numbers, with an end of piece likely enough that pieces differ in length."""
    spec = SPECS[name].replace(vocab_size=ROWS)
    return make(spec, **{**BLANKS, "pad_token_id": PAD, "bos_token_id": None, "eos_token_id": ENDS, **config})
