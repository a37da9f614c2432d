"""Small checkpoints under the names that the README and the docs use: each in its published layout, none of any use.

They have the embedded model's tokenizer and their generation's chat template, so that every line of a page runs.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file

import glmlike
from gguf_sources import save_tokenizer, train_bytes
from glmlike.data import TINY
from glmlike.tokenization.templates import chat_template
from specs import SPECS

SMALL: dict[str, tuple[str, str, str | None]] = {
    "glm-10b": ("glm-10b", "glm-10b", None),
    "chatglm-6b": ("chatglm-6b", "chatglm-6b", "chatglm-6b"),
    "chatglm3-6b": ("chatglm2", "chatglm", "chatglm3"),
    "glm-4-9b-chat": ("glm-4-9b", "chatglm", "glm-4"),
    "GLM-4-9B-0414": ("glm-4-0414", "glm4", "glm-4-0414"),
    "Qwen2.5-0.5B": ("qwen2.5", "qwen2", "qwen2.5"),
}
"""Of each name: the small decoder of ``specs``, the layout of its files, the generation of its chats."""
GOLDEN = {"chatglm2-6b-int4": "chatglm2_int4", "glm-130b-sat": "glm130b", "chatglm2-6b-ptuned": "chatglm2_ptuning"}
APART = ("chatglm2-6b", "chatglm2-6b-prefix")
NAMES = (*SMALL, *GOLDEN, *APART)


def write_stand_ins(place: Path, make: Callable[..., Any], golden: Path) -> None:
    """Write a small checkpoint under every name of ``NAMES`` to the folder ``place``."""
    known = json.loads((TINY / "config.json").read_text(encoding="utf8"))
    ids = {name: value for name, value in known.items() if name.endswith("token_id")}
    as_llama_cpp = train_bytes("glm4")  # what it reads are vocabularies that cut words as published ones do
    for name, (small, fmt, generation) in SMALL.items():
        hidden = 64 * SPECS[small].num_attention_heads
        sizes = {"hidden_size": hidden, "intermediate_size": 192, "head_dim": 64, "vocab_size": known["vocab_size"]}
        if generation == "glm-4":
            sizes["vocab_size"] = as_llama_cpp.get_vocab_size()
        if fmt == "glm-10b":
            sizes["intermediate_size"] = 4 * hidden
        native = place / f"{name}.native"
        make(SPECS[small].replace(**sizes), **ids).save_pretrained(native)
        glmlike.convert(native, place / name, to=fmt, verify="none")  # type: ignore[arg-type]
        shutil.rmtree(native)
        for path in TINY.glob("tokenizer*"):
            shutil.copy(path, place / name)
        if generation == "glm-4":
            save_tokenizer(place / name, as_llama_cpp)
        if generation is not None:
            said = json.loads((place / name / "tokenizer_config.json").read_text(encoding="utf8"))
            said |= {"tokenizer_class": "GlmLikeTokenizer", "generation": generation}
            (place / name / "tokenizer_config.json").write_text(json.dumps(said), encoding="utf8")
            (place / name / "chat_template.jinja").write_text(chat_template(generation) or "", encoding="utf8")
    for name, fixture in GOLDEN.items():
        shutil.copytree(golden / fixture, place / name)
    _apart(place / "chatglm2-6b-ptuned", *(place / name for name in APART))


def _apart(source: Path, base: Path, prefix: Path) -> None:
    """A P-tuned checkpoint as its base model and as what the original training script saves, the prefix alone."""
    tensors = load_file(source / "model.safetensors")
    config = json.loads((source / "config.json").read_text())
    of_prefix = {name for name in tensors if "prefix_encoder" in name}
    for folder, names in ((base, tensors.keys() - of_prefix), (prefix, of_prefix)):
        folder.mkdir()
        save_file({name: tensors[name] for name in names}, folder / "model.safetensors", metadata={"format": "pt"})
        kept = config if folder == prefix else {k: v for k, v in config.items() if k != "pre_seq_len"}
        (folder / "config.json").write_text(json.dumps(kept))
