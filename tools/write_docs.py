"""Write what README.md, README.zh.md and docs/ say of the code from the code: python tools/write_docs.py

Between marks ``<!-- NAME: written by tools/write_docs.py -->`` and ``<!-- end of NAME -->``; tests compare. The
pictures are drawn by docs_figures.py.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from typer.main import get_command

from glmlike import GlmLikeConfig, GlmLikeForCausalLM
from glmlike.checkpoint.formats import TABLES
from glmlike.checkpoint.gguf_fields import can_be_gguf
from glmlike.cli import EXIT_CODES, app
from glmlike.errors import SpecError
from glmlike.published import PUBLISHED, Published, support_table
from glmlike.spec import DecoderSpec
from glmlike.tokenization.generations import GENERATIONS
from glmlike.tokenization.templates import chat_template

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT / "tools"), str(ROOT / "model_cards"), str(ROOT / "benchmarks")]

from families import FAMILIES  # noqa: E402
from families.family import Family  # noqa: E402
from families.render import OWN_CLASSES  # noqa: E402
from pains import sections, table  # noqa: E402

from common import table as measured_table  # noqa: E402

_KINDS = {
    "ranks": "tiktoken",
    "merges": "GPT-2 BPE",
    "unigram": "SentencePiece unigram",
    "sentencepiece-bpe": "SentencePiece BPE",
    "cog-pretrain": "SentencePiece",
    "wordpiece": "WordPiece",
}
_TOKENIZERS = {
    "glm-10b": ("glm-10b", "glm-10b-chinese", "glm-bert", "glm-roberta"),
    "glm-130b": ("glm-130b",),
    "codegeex2-6b": ("codegeex2",),
    "longwriter-longcite": ("glm-4",),
}
"""Generations of vocabularies, of the families whose cards name none (they have no chat template)."""
_SIDE_BY_SIDE = {
    "GLM-10B": "glm-10b",
    "GLM-130B": "glm-130b",
    "ChatGLM-6B": "chatglm-6b",
    "ChatGLM2": "chatglm2-6b",
    "GLM-4-9B": "glm-4-9b",
    "GLM-4-0414": "glm-4-9b-0414",
    "LLaMA 3 8B": "llama-3-8b",
    "Qwen2.5 7B": "qwen2.5-7b",
}
_IDEAS = {
    "norm": "norm",
    "how a branch is added": "residual",
    "its factor (DeepNorm)": "residual_scale",
    "feed-forward": "feed_forward",
    "where a token stands": "positions",
    "which features turn together": "rotary_pairing",
    "share of a head that turns": "partial_rotary_factor",
    "base of the angles": "rope_theta",
    "frequencies rounded in training": "rotary_precision",
    "who sees whom": "attention_mask",
    "query heads": "num_attention_heads",
    "key-value heads (grouped queries)": "num_key_value_heads",
    "bias of q, k, v": "qkv_bias",
    "bias of the output projection": "output_bias",
    "bias of the feed-forward": "mlp_bias",
    "head and embedding are one": "tie_word_embeddings",
}
_HEADS = {
    "en": ("family", "files", "class", "generate", "blanks", "tokenizer", "chat", "train", "LoRA", "4-bit", "P-tuning"),
    "zh": ("系列", "文件格式", "类", "生成", "填空", "分词器", "对话", "训练", "LoRA", "4 比特", "P-tuning"),
}
_TO = {"en": "converts to", "zh": "可转换为"}
_YES = {"en": "yes", "zh": "是"}


def works_table(language: str = "en") -> str:
    """One row a family: what works with it today, each cell asked of the code."""
    heads = (*_HEADS[language], _TO[language])
    rows = [f"| {' | '.join(heads)} |", "|" + "---|" * len(heads)]
    for family in FAMILIES:
        decoders = [PUBLISHED[each.decoder] for each in family.checkpoints]
        formats = _joined(f"`{each.format}`" for each in decoders)
        facts = [_mark(value, language) for value in _facts(decoders[0].spec).values()]
        generate, blanks, train, lora, four_bit, tuning = facts
        kinds, chats = _tokenizer(family)
        cells = (family.title.removesuffix(" and its line"), formats, _classes(decoders), generate, blanks, kinds)
        cells = (*cells, _mark(chats, language), train, lora, four_bit, tuning, _targets(decoders))
        rows.append(f"| {' | '.join(cells)} |")
    return "\n".join(rows)


def _facts(spec: DecoderSpec) -> dict[str, bool]:
    """What the model of a spec says of itself: no weights, two layers."""
    from peft.utils import constants

    with torch.device("meta"):
        model: Any = GlmLikeForCausalLM(GlmLikeConfig.from_spec(spec.replace(num_hidden_layers=2, layer_types=None)))
    names = {name.rpartition(".")[2] for name, _ in model.named_modules()}
    targets = constants.TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING.get(model.config.model_type, ())
    projections = [module for name, module in model.named_modules() if name.endswith("_proj")]
    return {
        "generate": model.can_generate(),
        "blanks": spec.attention_mask == "prefix",
        "train": model.supports_gradient_checkpointing and any(p.requires_grad for p in model.parameters()),
        "lora": bool(targets) and names.issuperset(targets),
        "four_bit": all(type(module) is torch.nn.Linear for module in projections) and bool(projections),
        "prefix": _takes_a_prefix(spec),
    }


def _takes_a_prefix(spec: DecoderSpec) -> bool:
    try:
        spec.replace(prefix_length=1)
    except SpecError:
        return False
    return True


def _tokenizer(family: Family) -> tuple[str, bool]:
    names = _TOKENIZERS.get(family.name, family.generations)
    kinds = _joined(_KINDS[kind] for name in names for kind in GENERATIONS[name].kinds)
    return kinds, any(chat_template(name) is not None for name in family.generations)


def _classes(decoders: Iterable[Published]) -> str:
    """What the Auto class gives, of the formats that a table reads."""
    given = (OWN_CLASSES.get(each.format, "GlmLikeForCausalLM") for each in decoders if each.format in TABLES)
    return _joined(f"`{name}`" for name in given)


def _targets(decoders: list[Published]) -> str:
    """The formats that every decoder of a family can be written in, but one that all of them have."""
    common = [
        fmt
        for fmt in TABLES
        if all(fmt in each.converts_to for each in decoders) and any(fmt != each.format for each in decoders)
    ]
    gguf = ["gguf"] if all(can_be_gguf(each.spec) for each in decoders) else []
    return ", ".join(f"`{fmt}`" for fmt in (*common, *gguf))


def _joined(parts: Iterable[str]) -> str:
    return ", ".join(dict.fromkeys(parts))


def _mark(value: bool, language: str) -> str:
    return _YES[language] if value else "–"


def ideas_table() -> str:
    """One row an idea: the line of ``spec.py`` that says it, and what each decoder has there."""
    source = (ROOT / "src" / "glmlike" / "spec.py").read_text(encoding="utf8")
    rows = [f"| idea | the line of the spec | {' | '.join(_SIDE_BY_SIDE)} |", "|" + "---|" * (2 + len(_SIDE_BY_SIDE))]
    for idea, name in _IDEAS.items():
        found = re.search(rf"^    ({name}: .*)$", source, re.MULTILINE)
        if found is None:
            raise ValueError(f"spec.py has no field {name}")
        cells = [f"`{_value(PUBLISHED[decoder].spec, name)}`" for decoder in _SIDE_BY_SIDE.values()]
        rows.append(f"| {idea} | `{found[1].replace('|', chr(92) + '|')}` | {' | '.join(cells)} |")
    return "\n".join(rows)


def _value(spec: DecoderSpec, name: str) -> str:
    if spec.positions == "learned_2d" and name.split("_")[0] in ("rotary", "partial", "rope"):
        return "–"
    value = getattr(spec, name)
    return f'"{value}"' if isinstance(value, str) else f"{value:g}" if isinstance(value, float) else str(value)


def command_table() -> str:
    """One row a command: the first sentence of its help."""
    rows = ["| command | what it does |", "|---|---|"]
    commands: Any = get_command(app)
    for name, command in commands.commands.items():
        said = (command.help or "").strip().partition("\n")[0]
        rows.append(f"| `glmlike {name}` | {said} |")
    return "\n".join(rows)


def exit_table() -> str:
    """One row an exit code."""
    rows = ["| exit code | meaning |", "|---|---|"]
    return "\n".join([*rows, *(f"| {code} | {meaning} |" for code, meaning in EXIT_CODES.items())])


def measured(name: str) -> str:
    """The table that a benchmark wrote, and its note."""
    found = json.loads((ROOT / "benchmarks" / "results" / f"{name}.json").read_text(encoding="utf8"))
    return f"{measured_table(found['rows'])}\n\n{found['note']}"


def tables() -> dict[str, str]:
    """Every generated part by the name of its marks."""
    return {
        "works": works_table(),
        "works in Chinese": works_table("zh"),
        "errors": table(),
        "errors in Chinese": table("zh"),
        "all errors": sections(),
        "ideas": ideas_table(),
        "checkpoints": support_table(),
        "commands": command_table(),
        "exit codes": exit_table(),
        "pruning": measured("pruning"),
        "needle": measured("needle"),
        "examples": measured("examples"),
        "quantization": measured("quantization"),
    }


def written(text: str, parts: dict[str, str] | None = None) -> str:
    """A page with every generated part as it should be."""
    for name, part in (tables() if parts is None else parts).items():
        begin, end = f"<!-- {name}: written by tools/write_docs.py -->", f"<!-- end of {name} -->"
        pattern = f"{re.escape(begin)}.*?{re.escape(end)}"
        text = re.sub(pattern, lambda _, whole=f"{begin}\n\n{part}\n\n{end}": whole, text, flags=re.DOTALL)
    return text


def pages() -> list[Path]:
    """The pages that hold generated parts, or may."""
    return [*ROOT.glob("README*.md"), *(ROOT / "docs").glob("*.md")]


if __name__ == "__main__":
    parts = tables()
    for page in pages():
        page.write_text(written(page.read_text(encoding="utf8"), parts), encoding="utf8")
