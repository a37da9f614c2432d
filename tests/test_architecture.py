"""The rooms keep to their imports, and importing the package stays light."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

SOURCE = Path(__file__).parents[1] / "src" / "glmlike"
STANDARD = set(sys.stdlib_module_names)

# room -> (what it may import beyond the standard library, also inside functions)
MAY: dict[str, set[str]] = {
    "errors": set(),
    "spec": {"glmlike.errors"},
    "hub_json/fields": {"glmlike.errors"},
    "hub_json/early": {"glmlike.errors", "glmlike.hub_json.fields", "glmlike.spec"},
    "hub_json/sat": {"glmlike.errors", "glmlike.hub_json.early", "glmlike.hub_json.fields", "glmlike.spec"},
    "hub_json/chatglm": {"glmlike.errors", "glmlike.hub_json.early", "glmlike.hub_json.fields", "glmlike.spec"},
    "hub_json/llama_style": {"glmlike.errors", "glmlike.hub_json.fields", "glmlike.spec"},
    "hub_json/__init__": {
        *("glmlike.errors", "glmlike.spec"),
        *("glmlike.hub_json.fields", "glmlike.hub_json.chatglm", "glmlike.hub_json.early"),
        *("glmlike.hub_json.llama_style", "glmlike.hub_json.meta", "glmlike.hub_json.sat"),
    },
    "hub_json/meta": {"glmlike.errors", "glmlike.hub_json.fields", "glmlike.spec"},
    "published": {"glmlike.hub_json", "glmlike.hub_json.early", "glmlike.hub_json.sat", "glmlike.spec"},
    "configuration": {
        "glmlike",
        "glmlike.hub_json",
        "glmlike.errors",
        "glmlike.spec",
        "transformers",
        "huggingface_hub",
    },
    "norms": {"torch", "transformers", "glmlike.configuration"},
    "packing": {"torch"},
    "loss": {"torch", "liger_kernel", "glmlike.loss_chunks"},
    "loss_chunks": {"torch"},
    "outputs": {"torch", "transformers"},
    "prefix": {"torch", "glmlike.configuration", "glmlike.errors", "glmlike.packing"},
    "long_context": {"transformers", "glmlike.configuration", "glmlike.errors", "glmlike.spec"},
    "pruning/__init__": {"glmlike.pruning.depth", "glmlike.pruning.tying", "glmlike.pruning.width"},
    "pruning/calibration": {"torch", "transformers", "glmlike.configuration", "glmlike.errors"},
    "pruning/depth": {
        *("torch", "transformers", "glmlike.errors", "glmlike.prefix_encoder", "glmlike.pruning.calibration"),
    },
    "pruning/tying": {"torch", "transformers", "glmlike.errors", "glmlike.pruning.calibration"},
    "pruning/width": {"torch", "transformers", "glmlike.errors", "glmlike.pruning.calibration"},
    "feed_forward": {"torch", "transformers", "glmlike.configuration"},
    "rotary": {"torch", "transformers", "glmlike.configuration"},
    "attention": {"torch", "transformers", "glmlike.configuration", "glmlike.prefix_encoder", "glmlike.rotary"},
    "prefix_encoder": {"torch", "transformers", "glmlike.configuration", "glmlike.errors"},
    "ptuning": {
        *("torch", "transformers", "glmlike.configuration", "glmlike.errors", "glmlike.hub_json", "glmlike.spec"),
        *("glmlike.prefix_encoder", "glmlike.rotary", "glmlike.checkpoint.prefix_files", "glmlike.checkpoint.shards"),
    },
    "checkpoint/prefix_files": {
        *("torch", "glmlike.errors", "glmlike.hub_json", "glmlike.spec"),
        *("glmlike.checkpoint.native", "glmlike.checkpoint.shards"),
    },
    "cards/identifiers": set(),
    "cards/checks": {"yaml", "huggingface_hub", "glmlike.cards.identifiers"},
    "cards/parts": {"glmlike.hub_json", "glmlike.spec"},
    "cards/training": {"glmlike.errors", "glmlike.checkpoint.shards"},
    "cards/curve": {"matplotlib", "glmlike.cards.training"},
    "cards/folder": {
        *("glmlike.errors", "glmlike.spec", "glmlike.hub_json", "glmlike.checkpoint.shards", "glmlike.cards.training"),
    },
    "cards/finetune": {
        *("huggingface_hub", "glmlike.cards.curve", "glmlike.cards.folder", "glmlike.cards.parts"),
        *("glmlike.cards.training", "glmlike.cards.eval_results", "glmlike.cards.variants"),
    },
    "cards/variants": {
        *("glmlike.errors", "glmlike.checkpoint.shards", "glmlike.cards.parts", "glmlike.cards.training"),
    },
    "cards/eval_results": {"huggingface_hub", "glmlike.errors", "glmlike.cards.training"},
    "cards/readme": {
        *("jinja2", "huggingface_hub", "glmlike.errors", "glmlike.cards.checks", "glmlike.cards.eval_results"),
        "glmlike.cards.finetune",
    },
    "chat": {
        *("transformers", "glmlike.generation_defaults"),
        *("glmlike.tokenization.prompts", "glmlike.tokenization.replies"),
    },
    "doctor": {"glmlike", "glmlike.data", "huggingface_hub", "packaging", "torch", "transformers"},
    "evaluation/__init__": {
        "glmlike.errors",
        "glmlike.evaluation.blanks",
        "glmlike.long_context",
        "lm_eval",
        "torch",
        "transformers",
    },
    "evaluation/blanks": {
        *("lm_eval", "glmlike.errors", "glmlike.infilling.context", "glmlike.infilling.decoding"),
        "glmlike.infilling.filling",
    },
    "evaluation/tasks/rows": {"datasets"},
    "startup/sitecustomize": {"glmlike"},
    "terminal_chat": {
        *("torch", "transformers", "glmlike.errors", "glmlike.generation_defaults"),
        "glmlike.tokenization.replies",
    },
    "generation_defaults": {"transformers", "glmlike.errors"},
    "tokenization/__init__": {"glmlike.tokenization.tokenizer"},
    "tokenization/alignment": {"glmlike.tokenization.charsmap"},
    "tokenization/corners": {
        *("numpy", "tokenizers", "glmlike.tokenization.alignment", "glmlike.tokenization.charsmap"),
        *("glmlike.tokenization.sentencepiece_bpe", "glmlike.tokenization.sentencepiece_model"),
        *("glmlike.tokenization.unigram", "glmlike.tokenization.unigram_exact", "glmlike.tokenization.remembered"),
    },
    "tokenization/cutting": {"numpy"},
    "tokenization/stretches": {"tokenizers"},
    "tokenization/remembered": {
        *("tokenizers", "glmlike.tokenization.byte_bpe", "glmlike.tokenization.cutting"),
        "glmlike.tokenization.sentencepiece_model",
    },
    "tokenization/direct": {
        "transformers",
        "tokenizers",
        "glmlike.tokenization.remembered",
        "glmlike.tokenization.stretches",
    },
    "tokenization/mixed": {
        *("tokenizers", "glmlike.tokenization.alignment", "glmlike.tokenization.corners"),
        *("glmlike.tokenization.unigram", "glmlike.tokenization.stretches"),
    },
    "tokenization/sentencepiece_model": {"glmlike.errors"},
    "tokenization/charsmap": {"numpy", "tokenizers", "glmlike.errors"},
    "tokenization/unigram_exact": {
        *("numpy", "glmlike.tokenization.charsmap", "glmlike.tokenization.sentencepiece_model"),
        *("glmlike.tokenization.alignment", "glmlike.tokenization.cutting", "glmlike.tokenization.remembered"),
        "glmlike.tokenization.unigram_paths",
    },
    "tokenization/unigram_paths": {"numpy", "glmlike.tokenization.cutting"},
    "tokenization/unigram": {
        *("tokenizers", "glmlike.errors", "glmlike.tokenization.charsmap"),
        *("glmlike.tokenization.sentencepiece_model", "glmlike.tokenization.unigram_exact"),
    },
    "tokenization/sentencepiece_bpe": {
        *("tokenizers", "glmlike.errors", "glmlike.tokenization.charsmap", "glmlike.tokenization.sentencepiece_model"),
    },
    "tokenization/byte_bpe": {"tokenizers", "glmlike.errors"},
    "tokenization/wordpiece": {"tokenizers", "glmlike.errors"},
    "tokenization/generations": {"glmlike.errors"},
    "tokenization/detection": {"tokenizers", "glmlike.errors", "glmlike.hub_json", "glmlike.tokenization.generations"},
    "tokenization/kinds": {
        *("tokenizers", "glmlike.errors", "glmlike.tokenization.byte_bpe", "glmlike.tokenization.wordpiece"),
        *("glmlike.tokenization.generations", "glmlike.tokenization.sentencepiece_bpe"),
        *("glmlike.tokenization.sentencepiece_model", "glmlike.tokenization.unigram"),
    },
    "tokenization/assembly": {
        *("tokenizers", "glmlike.errors", "glmlike.hub_json", "glmlike.tokenization.detection"),
        *("glmlike.tokenization.generations", "glmlike.tokenization.kinds", "glmlike.tokenization.templates"),
        *("glmlike.tokenization.corners", "glmlike.tokenization.sentencepiece_model"),
    },
    "tokenization/tokenizer": {
        *("transformers", "glmlike.errors", "glmlike.tokenization.assembly", "glmlike.tokenization.chat"),
        *("glmlike.tokenization.detection", "glmlike.tokenization.generations", "glmlike.tokenization.kinds"),
        *("glmlike.tokenization.prompts", "glmlike.tokenization.corners", "glmlike.tokenization.mixed"),
        *("glmlike.tokenization.direct", "glmlike.tokenization.remembered", "glmlike.tokenization.stretches"),
    },
    "tokenization/probes": {"glmlike.tokenization.generations"},
    "tokenization/one_step": {
        *("glmlike.tokenization.generations", "glmlike.tokenization.probes", "glmlike.tokenization.tokenizer"),
    },
    "tokenization/without_glmlike": {"transformers"},
    "tokenization/templates": {"glmlike.errors"},
    "tokenization/untrusted": set(),
    "tokenization/pieces": {"transformers", "glmlike.tokenization.untrusted"},
    "tokenization/chat": {"transformers", "glmlike.tokenization.pieces", "glmlike.tokenization.untrusted"},
    "tokenization/prompts": {"glmlike.errors", "glmlike.tokenization.piece_inputs"},
    "tokenization/piece_inputs": {"torch", "transformers", "glmlike.errors"},
    "tokenization/replies": {"glmlike.errors"},
    "renamed": {"transformers"},
    "integers": {"torch", "glmlike.errors"},
    "four_bits": {"torch", "bitsandbytes"},
    "quantizing/methods": {"torch", "torchao", "transformers", "glmlike.errors", "glmlike.quantization"},
    "quantizing/matrices": {
        *("torch", "torchao", "transformers", "bitsandbytes", "glmlike.checkpoint.quantized", "glmlike.configuration"),
        *("glmlike.errors", "glmlike.integers", "glmlike.modeling", "glmlike.quantizing.methods"),
    },
    "quantization": {"torch", "transformers", "glmlike.errors", "glmlike.hub_json", "glmlike.integers"},
    "loading": {
        *("torch", "transformers", "safetensors"),
        *("glmlike.configuration", "glmlike.errors", "glmlike.hub_json", "glmlike.quantization"),
        "glmlike.packed_loading",
    },
    "packed_loading": {
        *("transformers", "compressed_tensors", "glmlike.configuration", "glmlike.errors", "glmlike.hub_json"),
    },
    "masking": {
        *("torch", "transformers"),
        *("glmlike.configuration", "glmlike.packing", "glmlike.prefix", "glmlike.renamed"),
    },
    "modeling": {
        *("torch", "transformers"),
        *(
            "glmlike.attention",
            "glmlike.chat",
            "glmlike.configuration",
            "glmlike.errors",
            "glmlike.feed_forward",
            "glmlike.four_bits",
        ),
        *(
            "glmlike.loading",
            "glmlike.lora",
            "glmlike.masking",
            "glmlike.norms",
            "glmlike.packed_loading",
            "glmlike.packing",
            "glmlike.prefix",
            "glmlike.renamed",
        ),
        *("glmlike.generation", "glmlike.prefix_encoder", "glmlike.rotary", "glmlike.spec"),
        *("glmlike.loss", "glmlike.outputs", "glmlike.tables"),
    },
    "generation": {
        *("torch", "transformers", "glmlike.generation_defaults"),
        *("glmlike.configuration", "glmlike.prefix", "glmlike.prefix_encoder", "glmlike.renamed"),
    },
    "tables": {"torch", "glmlike.errors"},
    "infilling/__init__": {
        *("glmlike.infilling.collator", "glmlike.infilling.decoding", "glmlike.infilling.filling"),
        *("glmlike.infilling.objective", "glmlike.infilling.pipeline"),
    },
    "infilling/objective": {"numpy", "glmlike.errors"},
    "infilling/collator": {"numpy", "torch", "transformers", "glmlike.errors", "glmlike.infilling.objective"},
    "infilling/context": {"glmlike.errors"},
    "infilling/decoding": {
        *("torch", "transformers", "glmlike.errors", "glmlike.renamed", "glmlike.infilling.context"),
    },
    "infilling/filling": {"glmlike.errors", "glmlike.infilling.context", "glmlike.infilling.decoding"},
    "infilling/pipeline": {
        *("transformers", "glmlike.errors"),
        *("glmlike.infilling.context", "glmlike.infilling.decoding", "glmlike.infilling.filling"),
    },
    "source_merge": set(),
    "remote_code": {"glmlike", "glmlike.errors", "glmlike.source_merge"},
    "push_checks": {
        *("huggingface_hub", "transformers", "yaml", "glmlike.errors"),
        *("glmlike.checkpoint.inside", "glmlike.checkpoint.shards"),
    },
    "push": {
        *("huggingface_hub", "glmlike.errors", "glmlike.hub_json", "glmlike.checkpoint.convert"),
        *("glmlike.push_checks", "glmlike.remote_code", "glmlike.checkpoint.tokenizers"),
    },
    "checkpoint/layouts": {"torch", "glmlike.errors"},
    "checkpoint/rules": {"glmlike.errors", "glmlike.checkpoint.layouts"},
    "packed_integers": {"torch"},
    "checkpoint/packed_streams": {
        *("torch", "glmlike.errors", "glmlike.packed_integers"),
        *("glmlike.checkpoint.headers", "glmlike.checkpoint.streams"),
    },
    "checkpoint/packed_configs": {"glmlike.errors", "glmlike.checkpoint.packed_streams"},
    "checkpoint/packed": {
        *("torch", "glmlike.errors", "glmlike.checkpoint.headers", "glmlike.checkpoint.packed_configs"),
        *("glmlike.checkpoint.packed_streams", "glmlike.checkpoint.shards", "glmlike.checkpoint.streams"),
    },
    "checkpoint/quantized": {"glmlike.errors", "glmlike.checkpoint.headers"},
    "checkpoint/quantizer": {
        *("torch", "transformers", "glmlike.errors", "glmlike.hub_json", "glmlike.integers", "glmlike.quantization"),
        *("glmlike.checkpoint.formats", "glmlike.checkpoint.layouts", "glmlike.checkpoint.rules"),
        *("glmlike.checkpoint.headers", "glmlike.checkpoint.on_the_fly", "glmlike.checkpoint.quantized"),
        "glmlike.checkpoint.shards",
    },
    "lora": {"huggingface_hub", "peft", "glmlike.errors"},
    "checkpoint/adapter_files": {
        *("torch", "glmlike.errors", "glmlike.checkpoint.containers", "glmlike.checkpoint.layouts"),
        *("glmlike.checkpoint.shards", "glmlike.checkpoint.streams"),
    },
    "checkpoint/adapters": {
        *("torch", "glmlike.errors", "glmlike.hub_json", "glmlike.spec", "glmlike.checkpoint.adapter_files"),
        *("glmlike.checkpoint.destination", "glmlike.checkpoint.formats", "glmlike.checkpoint.headers"),
        *("glmlike.checkpoint.layouts", "glmlike.checkpoint.native", "glmlike.checkpoint.rules"),
        *("glmlike.checkpoint.shards", "glmlike.checkpoint.streams", "glmlike.checkpoint.through_layouts"),
    },
    "checkpoint/merged": {
        *("torch", "glmlike.errors", "glmlike.checkpoint.adapter_files", "glmlike.checkpoint.adapters"),
        *("glmlike.checkpoint.layouts", "glmlike.checkpoint.streams"),
    },
    "checkpoint/merging": {
        *("glmlike.errors", "glmlike.hub_json", "glmlike.spec", "glmlike.checkpoint.adapter_files"),
        *("glmlike.checkpoint.adapters", "glmlike.checkpoint.companions", "glmlike.checkpoint.convert"),
        *("glmlike.checkpoint.destination", "glmlike.checkpoint.detection", "glmlike.checkpoint.formats"),
        *("glmlike.checkpoint.merged", "glmlike.checkpoint.native", "glmlike.checkpoint.plan"),
        *("glmlike.checkpoint.provenance", "glmlike.checkpoint.shards", "glmlike.checkpoint.streams"),
    },
    "parity": {
        *("torch", "glmlike.checkpoint.convert", "glmlike.configuration", "glmlike.errors", "glmlike.hub_json"),
        *("glmlike.modeling", "glmlike.rotary", "glmlike.spec"),
    },
    "checkpoint/sources": {"huggingface_hub", "glmlike.errors"},
    "checkpoint/byte_files": {"glmlike.errors"},
    "checkpoint/streams": {
        *("numpy", "torch", "glmlike.errors", "glmlike.integers"),
        *("glmlike.checkpoint.byte_files", "glmlike.checkpoint.checksums", "glmlike.checkpoint.headers"),
    },
    "checkpoint/through_layouts": {"torch", "glmlike.checkpoint.layouts", "glmlike.checkpoint.streams"},
    "checkpoint/containers": {
        "glmlike.checkpoint.byte_files",
        *("torch", "glmlike.errors", "glmlike.checkpoint.headers", "glmlike.checkpoint.streams"),
    },
    "checkpoint/memory": {"glmlike.errors", "glmlike.checkpoint.streams"},
    "checkpoint/journal": {"glmlike.errors", "glmlike.checkpoint.containers"},
    "checkpoint/provenance": {"glmlike.errors", "glmlike.checkpoint.checksums", "glmlike.checkpoint.containers"},
    "checkpoint/shards": {
        *("torch", "safetensors", "glmlike.errors", "glmlike.checkpoint.inside", "glmlike.checkpoint.torch_zip"),
        *("glmlike.checkpoint.byte_files", "glmlike.checkpoint.headers", "glmlike.checkpoint.streams"),
    },
    "checkpoint/execute": {
        *("glmlike.errors", "glmlike.checkpoint", "glmlike.checkpoint.byte_files", "glmlike.checkpoint.checksums"),
        *("glmlike.checkpoint.containers", "glmlike.checkpoint.journal", "glmlike.checkpoint.plan"),
        *("glmlike.checkpoint.provenance", "glmlike.checkpoint.streams"),
    },
    "checkpoint/splits": {
        *("torch", "glmlike.errors", "glmlike.checkpoint.layouts", "glmlike.checkpoint.streams"),
    },
    "checkpoint/lazy": {"torch"},
    "checkpoint/spooled": {
        *("torch", "glmlike.checkpoint.containers", "glmlike.checkpoint.headers", "glmlike.checkpoint.shards"),
        *("glmlike.checkpoint.checksums", "glmlike.checkpoint.streams", "glmlike.errors"),
    },
    "checkpoint/ranks": {
        *("torch", "glmlike.errors", "glmlike.integers", "glmlike.checkpoint.headers", "glmlike.checkpoint.layouts"),
        *("glmlike.checkpoint.quantized", "glmlike.checkpoint.shards", "glmlike.checkpoint.splits"),
        *("glmlike.checkpoint.inside", "glmlike.checkpoint.streams", "glmlike.checkpoint.torch_zip"),
    },
    "checkpoint/inside": {"glmlike.errors"},
    "checkpoint/pickles": set(),
    "checkpoint/headers": {"glmlike.errors"},
    "checkpoint/checksums": {"xxhash", "glmlike.errors"},
    "checkpoint/torch_zip": {
        *("torch", "glmlike.errors", "glmlike.checkpoint.byte_files", "glmlike.checkpoint.checksums"),
        *("glmlike.checkpoint.headers", "glmlike.checkpoint.pickles", "glmlike.checkpoint.streams"),
    },
    "checkpoint/given": {"glmlike.errors", "glmlike.published", "glmlike.spec"},
    "checkpoint/ranked": {
        *("glmlike.hub_json", "glmlike.spec"),
        *("glmlike.checkpoint.meta", "glmlike.checkpoint.ranks", "glmlike.checkpoint.sat"),
    },
    "checkpoint/companions": {
        *("glmlike.hub_json", "glmlike.checkpoint.detection", "glmlike.checkpoint.inside", "glmlike.checkpoint.packed"),
        *("glmlike.checkpoint.shards", "glmlike.checkpoint.tokenizers"),
    },
    "checkpoint/contents": {
        *("glmlike.hub_json", "glmlike.checkpoint.companions", "glmlike.checkpoint.detection"),
        *("glmlike.checkpoint.shards", "glmlike.checkpoint.tokenizers"),
    },
    "checkpoint/tokenizer_processes": {"glmlike.errors"},  # they read vocabularies
    "checkpoint/tokenizers": {
        *("glmlike.errors", "glmlike.hub_json", "glmlike.checkpoint.inside", "glmlike.checkpoint.shards"),
        "glmlike.checkpoint.tokenizer_processes",
    },
    "checkpoint/destination": {
        *("glmlike.errors", "glmlike.checkpoint", "glmlike.checkpoint.provenance", "glmlike.checkpoint.byte_files"),
        *("glmlike.checkpoint.journal", "glmlike.checkpoint.plan"),
    },
    "checkpoint/gguf_words": {"glmlike.checkpoint.formats.llama_cpp"},
    "checkpoint/gguf_fields": {"glmlike.checkpoint.formats.llama_cpp", "glmlike.errors", "glmlike.spec"},
    "checkpoint/gguf_vocabulary": {
        *("glmlike.checkpoint.formats.llama_cpp", "glmlike.checkpoint.gguf_words", "glmlike.checkpoint.shards"),
        *("glmlike.errors", "glmlike.hub_json", "glmlike.spec", "sentencepiece"),
    },
    "checkpoint/gguf_headers": {"glmlike.errors", "glmlike.checkpoint.headers"},
    "checkpoint/gguf_blocks": {
        *("gguf", "numpy", "glmlike.errors", "glmlike.checkpoint.headers", "glmlike.checkpoint.streams"),
    },
    "checkpoint/gguf_file": {"gguf", "numpy", "glmlike.checkpoint.containers", "glmlike.checkpoint.gguf_blocks"},
    "checkpoint/gguf_reading": {
        *("torch", "numpy", "gguf", "glmlike.errors", "glmlike.hub_json", "glmlike.spec", "glmlike.checkpoint"),
        *("glmlike.checkpoint.byte_files", "glmlike.checkpoint.detection", "glmlike.checkpoint.formats"),
        *("glmlike.checkpoint.formats.llama_cpp", "glmlike.checkpoint.gguf_blocks", "glmlike.checkpoint.gguf_fields"),
        *("glmlike.checkpoint.gguf_headers", "glmlike.checkpoint.gguf_vocabulary", "glmlike.checkpoint.headers"),
        *("glmlike.checkpoint.gguf_file", "glmlike.checkpoint.provenance"),
        *("glmlike.checkpoint.rules", "glmlike.checkpoint.shards", "glmlike.checkpoint.streams"),
    },
    "checkpoint/on_the_fly": {
        *("torch", "transformers", "glmlike.errors", "glmlike.spec", "glmlike.checkpoint.rules"),
        *("glmlike.checkpoint.detection", "glmlike.checkpoint.lazy", "glmlike.checkpoint.native"),
        *("glmlike.checkpoint.inside", "glmlike.checkpoint.ranked", "glmlike.checkpoint.shards"),
        *("glmlike.checkpoint.companions", "glmlike.checkpoint.packed", "glmlike.checkpoint.streams"),
        *("glmlike.checkpoint.packed_configs", "glmlike.checkpoint.sources"),
        *("glmlike.checkpoint.formats", "glmlike.checkpoint.layouts", "glmlike.hub_json"),
    },
}
FORMATS_MAY = {
    *("glmlike.spec", "glmlike.hub_json", "glmlike.checkpoint.rules", "glmlike.checkpoint.layouts"),
    *("glmlike.checkpoint.native", "glmlike.checkpoint.splits"),
}


def imports(path: Path) -> set[str]:
    """Every module a file imports anywhere: glmlike's by full name, others by their top package."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            names = {f"{node.module}.{alias.name}" for alias in node.names}
            modules = {name for name in names if _is_module(name)}
            found |= modules or {str(node.module)}
    return {name if name.startswith("glmlike") else name.split(".")[0] for name in found} - STANDARD


def _is_module(name: str) -> bool:
    if not name.startswith("glmlike."):
        return False
    path = SOURCE.joinpath(*name.split(".")[1:])
    return path.is_dir() or path.with_suffix(".py").exists()


@pytest.mark.parametrize("room", MAY)
def test_room_imports_only_what_it_may_know(room: str) -> None:
    assert imports(SOURCE / f"{room}.py") - MAY[room] == set()


def test_format_tables_know_no_files_no_transformers_and_not_each_other() -> None:
    tables = [path for path in (SOURCE / "checkpoint" / "formats").glob("*.py") if path.stem != "__init__"]
    assert tables
    for path in tables:
        # A table written as a difference may know the table it differs from: glm4 is glm and two norms, GLM-10B has the
        # layer names of ChatGLM-6B.
        base = {"glm4": "glm", "glm10b": "chatglm1"}.get(path.stem)
        allowed = FORMATS_MAY | ({f"glmlike.checkpoint.formats.{base}"} if base else set())
        assert imports(path) - allowed == set(), path


def test_the_checkpoint_room_never_imports_the_model() -> None:
    model = {
        f"glmlike.{name}" for name in ("modeling", "attention", "rotary", "feed_forward", "norms", "configuration")
    }
    for path in (SOURCE / "checkpoint").rglob("*.py"):
        assert imports(path) & model == set(), path


def run(code: str) -> str:
    return subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout


def test_importing_the_package_imports_neither_torch_nor_transformers() -> None:
    rooms = "glmlike, glmlike.cards, glmlike.checkpoint, glmlike.cli, glmlike.doctor, glmlike.evaluation, "
    rooms += "glmlike.infilling, glmlike.push"
    code = f"import sys, {rooms}; print({{'torch', 'transformers'}} & set(sys.modules))"
    assert run(code).strip() == "set()"


def test_every_public_name_resolves() -> None:
    assert run("import glmlike\nfor name in glmlike.__all__: getattr(glmlike, name)\nprint('ok')").strip() == "ok"
