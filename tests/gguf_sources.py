"""Small folders to write GGUF from: random numbers of a spec, and tokenizers trained on a few lines of our own."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors, trainers

from glmlike.checkpoint.gguf_words import pre_tokenizer_of
from glmlike.checkpoint.native import native_shapes
from glmlike.hub_json import write_config
from glmlike.spec import DecoderSpec

LINES = (
    "The river runs past the mill, and 1234 stones lie in its bed.",
    "她 说：今天 下雨，明天 晴。 It's raining; we'll stay.",
    "def area(w, h):\n    return w * h  # 12 x 7 = 84\n\n\tdone",
    "ñandú 🚀 naïve café — “quoted” text…   with   blanks",
)
SPECIALS = ("<|endoftext|>", "[gMASK]", "<sop>", "<|user|>", "<|assistant|>", "<|observation|>")
TEMPLATE = "[gMASK]<sop>{% for m in messages %}<|{{ m.role }}|>\n{{ m.content }}{% endfor %}<|assistant|>"


def write_folder(folder: Path, spec: DecoderSpec, dtype: torch.dtype = torch.float32, seed: int = 0) -> Path:
    """A folder of the native format with random numbers; norms near one, as in a model."""
    generator = torch.Generator().manual_seed(seed)
    tensors = {}
    for name, shape in native_shapes(spec).items():
        noise = torch.randn(shape, generator=generator)
        norm = len(shape) == 1 and name.endswith("norm.weight")
        tensors[name] = (1 + 0.1 * noise if norm else 0.2 * noise).to(dtype)
    folder.mkdir(parents=True)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    said = {"eos_token_id": [0, 3, 5], "pad_token_id": 0, "dtype": str(dtype).removeprefix("torch.")}
    (folder / "config.json").write_text(json.dumps({**write_config(spec, "glmlike"), **said}))
    return folder


def train_bytes(pre: str, **model: Any) -> Tokenizer:
    """A byte-level BPE that cuts words as llama.cpp's ``pre`` does; the special tokens have the first ids."""
    words = pre_tokenizer_of(pre)
    assert words is not None
    shell = Tokenizer(models.BPE(ignore_merges=words[1], **model))
    fields = json.loads(shell.to_str())
    shell = Tokenizer.from_str(json.dumps({**fields, "pre_tokenizer": words[0]}))
    shell.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=420,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        special_tokens=[AddedToken(text, special=True) for text in SPECIALS],
        show_progress=False,
    )
    shell.train_from_iterator(LINES, trainer)
    return shell


def save_tokenizer(folder: Path, tokenizer: Tokenizer, *, bos: str | None = None) -> Path:
    """tokenizer.json, its settings and a chat template in ``folder``."""
    if bos is not None:
        number = tokenizer.token_to_id(bos)
        tokenizer.post_processor = processors.TemplateProcessing(single=f"{bos} $A", special_tokens=[(bos, number)])
    tokenizer.save(str(folder / "tokenizer.json"))
    settings = {"eos_token": SPECIALS[0], "pad_token": SPECIALS[0], **({"bos_token": bos} if bos else {})}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    (folder / "chat_template.jinja").write_text(TEMPLATE)
    return folder
