"""The decoder as one file beside its weights, for people without glmlike: ``trust_remote_code=True`` loads it.

The file is merged from this package's own modules. Left out is what a checkpoint in native names does not need:
reading other formats, chat, P-tuning's tools, the integers of pre-quantized releases. With glmlike installed, its
classes are taken and the file is not run.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

from glmlike.errors import ConfigError
from glmlike.source_merge import Cut, Import, merge

FILE = "modeling_glmlike.py"

AUTO_MAP: Mapping[str, str] = {
    "AutoConfig": "modeling_glmlike.GlmLikeConfig",
    "AutoModel": "modeling_glmlike.GlmLikeModel",
    "AutoModelForCausalLM": "modeling_glmlike.GlmLikeForCausalLM",
    "AutoModelForSequenceClassification": "modeling_glmlike.GlmLikeForSequenceClassification",
    "AutoModelForTokenClassification": "modeling_glmlike.GlmLikeForTokenClassification",
    "AutoModelForQuestionAnswering": "modeling_glmlike.GlmLikeForQuestionAnswering",
}
"""What a config.json says so that the Auto classes find the file. Tokenizers are transformers' own: no entry."""

_CUTS = {
    ("glmlike.configuration", "GlmLikeConfig"): Cut(
        members=("from_spec", "from_pretrained", "from_dict", "to_dict", "fused_format", "dropped_rows"),
        statements=("kwargs.pop('auto_map', None)",),  # here it is what names this file, and is saved again
        docstring="Configuration of every decoder of the GLM family; its fields are those of DecoderSpec.",
    ),
    ("glmlike.modeling", "GlmLikePreTrainedModel"): Cut(
        members=("__init__", "from_pretrained", "save_pretrained"),
        docstring="What all heads share. Weights are in native names; glmlike itself reads other formats too.",
    ),
    ("glmlike.modeling", "GlmLikeForCausalLM"): Cut(bases=("ChatMixin",)),
    ("glmlike.modeling", "GlmLikeForSequenceClassification"): Cut(members=("__init__",)),
    ("glmlike.modeling", "GlmLikeForTokenClassification"): Cut(members=("__init__",)),
    ("glmlike.modeling", "GlmLikeForQuestionAnswering"): Cut(members=("__init__",)),
}

_HEADER = '''"""The decoder of the GLM family and its heads in one file, written by glmlike {version}.

Do not edit it: it is merged from the modules of glmlike, where its parts have their tests.

For transformers from 5.16 on, with trust_remote_code=True. Where glmlike is installed, its classes are used instead.
Licence of this code: Apache-2.0.
"""
'''
_FOOTER = """

AutoModel.register(GlmLikeConfig, GlmLikeModel, exist_ok=True)  # heads build their decoder by its config
"""


@cache
def source() -> str:
    """The text of the file; the same for every checkpoint of a version of glmlike."""
    import glmlike

    wanted = [("glmlike.modeling", name.rpartition(".")[2]) for auto, name in AUTO_MAP.items() if auto != "AutoConfig"]
    header = _HEADER.format(version=glmlike.__version__)
    needed = [Import("transformers", "AutoModel", "AutoModel")]
    return merge(Path(__file__).parent, wanted, _CUTS, header=header, footer=_FOOTER, imports=needed)


def with_auto_map(config: Mapping[str, Any], where: str = "config.json") -> dict[str, Any]:
    """The fields of a native config.json with the ``auto_map`` that names the file.

    Raises:
        ConfigError: the config is of another format, or asks for a quantizer that only glmlike has.
    """
    if config.get("model_type") != "glmlike":
        raise ConfigError(
            f"{where}: model_type={config.get('model_type')!r}: remote code reads native checkpoints. First run "
            "`glmlike convert SRC DST --to glmlike`."
        )
    if (config.get("quantization_config") or {}).get("quant_method") == "glm_int":
        raise ConfigError(
            f"{where}: integers of a pre-quantized release, which only glmlike's own quantizer reads. First run "
            "`glmlike convert SRC DST --to glmlike`, which makes floats of them."
        )
    return {**config, "auto_map": dict(AUTO_MAP)}


def write_remote_code(source_folder: Path, folder: Path) -> list[Path]:
    """Write config.json of ``source_folder`` with its ``auto_map``, and the file, to ``folder``; the two paths.

    Raises:
        ConfigError: see :func:`with_auto_map`.
    """
    path = source_folder / "config.json"
    fields = with_auto_map(json.loads(path.read_text(encoding="utf8")), str(path))
    written = [folder / "config.json", folder / FILE]
    written[0].write_text(json.dumps(fields, indent=2, ensure_ascii=False) + "\n", encoding="utf8")
    written[1].write_text(source(), encoding="utf8")
    return written
