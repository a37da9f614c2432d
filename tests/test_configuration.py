"""GlmLikeConfig: ordinary transformers arguments, the spec's choices, and foreign configs translated."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoConfig, GlmConfig, LlamaConfig, Qwen2Config

from glmlike import ChatGLMConfig, ConfigError, GlmLikeConfig, GlmLikeError, SpecError
from glmlike.configuration import as_native, translate
from glmlike.hub_json import FORMATS, cannot_express, detect, read_spec, write_config
from specs import FAMILY, SPECS


def test_defaults_are_the_recipe_of_the_report() -> None:
    config = GlmLikeConfig()
    assert (config.hidden_size, config.intermediate_size, config.head_dim) == (4096, 13_696, 128)
    spec = config.spec
    assert (spec.qkv_bias, spec.output_bias, spec.mlp_bias) == (True, False, False)
    assert (spec.norm, spec.feed_forward, spec.partial_rotary_factor) == ("rms", "swiglu", 0.5)
    assert spec.num_key_value_heads < spec.num_attention_heads


@pytest.mark.parametrize("name", SPECS)
def test_spec_to_config_to_file_to_spec(name: str, tmp_path: Path) -> None:
    config = GlmLikeConfig.from_spec(SPECS[name], eos_token_id=[1, 2], pad_token_id=0)
    assert config.spec == SPECS[name]
    config.save_pretrained(tmp_path)
    again = AutoConfig.from_pretrained(tmp_path)
    assert type(again) is GlmLikeConfig
    assert again.spec == SPECS[name]
    assert (again.eos_token_id, again.pad_token_id) == ([1, 2], 0)
    own = {"_name_or_path", "transformers_version"}
    left, right = ({k: v for k, v in each.to_dict().items() if k not in own} for each in (config, again))
    assert left == right
    assert copy.deepcopy(again).spec == SPECS[name]


@pytest.mark.parametrize("name", SPECS)
@pytest.mark.parametrize("fmt", FORMATS)
def test_every_format_reads_as_our_config(name: str, fmt: Any, tmp_path: Path) -> None:
    if cannot_express(SPECS[name], fmt):
        pytest.skip(f"{fmt} cannot express this decoder; test_contracts holds that it is refused")
    fields = write_config(SPECS[name], fmt)
    (tmp_path / "config.json").write_text(json.dumps(fields))
    generation = "chatglm2" if name == "chatglm2-32k" else None
    config = GlmLikeConfig.from_pretrained(tmp_path, generation=generation)
    assert config.spec == SPECS[name]
    fused = fmt in ("glm-10b", "glm-130b", "chatglm-6b", "chatglm", "glm", "glm4")
    assert config.fused_format == (fmt if fused else None)
    saved = json.loads(config.to_json_string(use_diff=False))
    assert saved["model_type"] == config.model_type == "glmlike"
    assert "_origin_format" not in saved


def test_ordinary_arguments_keep_their_meaning() -> None:
    config = GlmLikeConfig(
        vocab_size=100,
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=None,
        rms_norm_eps=1e-6,
        attention_bias=False,
        mlp_bias=True,
        rope_theta=5000.0,
        partial_rotary_factor=1.0,
        tie_word_embeddings=True,
        max_position_embeddings=77,
        attention_dropout=0.1,
        num_labels=5,
        unknown_to_us="kept",
    )
    spec = config.spec
    assert (spec.num_key_value_heads, spec.head_dim, spec.rope_theta, spec.partial_rotary_factor) == (
        4,
        16,
        5000.0,
        1.0,
    )
    assert (spec.qkv_bias, spec.mlp_bias, spec.tie_word_embeddings, spec.norm_eps) == (False, True, True, 1e-6)
    assert (config.attention_dropout, config.num_labels, config.unknown_to_us) == (0.1, 5, "kept")


@pytest.mark.parametrize("form", ["rope_parameters", "rope_scaling"])
def test_rope_settings_of_both_transformers(form: str) -> None:
    sizes = {"hidden_size": 64, "num_attention_heads": 4, "num_key_value_heads": 2}
    settings = {"rope_type": "linear", "factor": 4.0}
    if form == "rope_parameters":
        config = GlmLikeConfig(**sizes, rope_parameters={**settings, "rope_theta": 7.0})
    else:
        config = GlmLikeConfig(**sizes, rope_scaling=settings, rope_theta=7.0)
    assert (config.spec.rope_type, config.spec.rope_theta) == ("linear", 7.0)
    assert config.rope_parameters["partial_rotary_factor"] == 0.5


def test_original_names_read_and_write_the_same_values() -> None:
    config = ChatGLMConfig(
        padded_vocab_size=320, hidden_size=64, ffn_hidden_size=96, num_layers=3, kv_channels=16,
        num_attention_heads=4, multi_query_group_num=2, seq_length=128, layernorm_epsilon=1e-5, add_qkv_bias=True,
    )  # fmt: skip
    assert (config.num_layers, config.num_hidden_layers) == (3, 3)
    assert (config.padded_vocab_size, config.kv_channels, config.multi_query_group_num) == (320, 16, 2)
    config.num_layers = 2
    assert config.native().spec.num_hidden_layers == 2


def test_auto_map_is_never_saved_again() -> None:
    config = GlmLikeConfig(auto_map={"AutoModel": "modeling_x.X"})
    assert not hasattr(config, "auto_map")
    assert "auto_map" not in config.to_json_string(use_diff=False)


@pytest.mark.parametrize("theirs", [GlmConfig(), LlamaConfig(), Qwen2Config(), GlmConfig(attention_bias=False)])
def test_transformers_own_configs_become_ours(theirs: Any) -> None:
    ours = as_native(theirs)
    assert type(ours) is GlmLikeConfig
    assert ours.spec == read_spec(theirs.to_dict())
    assert as_native(ours) is ours


def test_two_families_share_the_type_glm(tmp_path: Path) -> None:
    """transformers alone reads GLM-10B's config as a wrong decoder of 40 layers, in silence."""
    own = GlmConfig(num_hidden_layers=3)
    own.save_pretrained(tmp_path / "own")
    assert type(AutoConfig.from_pretrained(tmp_path / "own")) is GlmConfig
    assert type(AutoConfig.for_model("glm", num_hidden_layers=3)) is GlmConfig
    assert AutoConfig.for_model("glm", num_hidden_layers=3).num_hidden_layers == 3
    (tmp_path / "config.json").write_text(json.dumps(write_config(SPECS["glm-10b"], "glm-10b")))
    for trust in (None, False, True):
        early = AutoConfig.from_pretrained(tmp_path, trust_remote_code=trust)
        assert type(early) is GlmLikeConfig
        assert early.spec == SPECS["glm-10b"]


def test_token_ids_of_blanks() -> None:
    early = GlmLikeConfig.from_dict({**write_config(SPECS["glm-10b"], "glm-10b"), "vocab_size": 50_304})
    blanks = (early.mask_token_id, early.gmask_token_id, early.smask_token_id, early.sop_token_id, early.eos_token_id)
    assert blanks == (50_260, 50_263, 50_264, 50_257, 50_258)
    said = {"bos_token_id": 130_004, "mask_token_id": 130_000, "gmask_token_id": 130_001, "vocab_size": 130_528}
    chat = ChatGLMConfig.from_dict({**write_config(SPECS["chatglm-6b"], "chatglm-6b"), **said})
    blanks = (chat.mask_token_id, chat.gmask_token_id, chat.smask_token_id, chat.sop_token_id)
    assert blanks == (130_000, 130_001, 130_002, 130_004)


def test_what_is_no_config_of_the_family_is_refused() -> None:
    from transformers import BertConfig

    with pytest.raises(ConfigError, match="model_type='bert'; known formats: glmlike"):
        as_native(BertConfig())
    with pytest.raises(ConfigError, match="expected a config object, got dict"):
        as_native({"model_type": "glmlike"})  # type: ignore[arg-type]


def test_editing_a_config_is_checked_when_the_spec_is_read() -> None:
    config = GlmLikeConfig()
    config.num_key_value_heads = 3
    with pytest.raises(SpecError, match="not a multiple"):
        _ = config.spec


def test_fields_nobody_answers_for_survive_translation() -> None:
    fields = {**write_config(SPECS["chatglm2"], "chatglm"), "eos_token_id": 2, "my_note": 5, "auto_map": {"a": "b"}}
    translated = translate(fields)
    assert (translated["eos_token_id"], translated["my_note"]) == (2, 5)
    assert "auto_map" not in translated


@pytest.mark.parametrize("name", SPECS)
def test_detection_names_one_format(name: str) -> None:
    """Contract 4, on configs alone."""
    for fmt in FORMATS:
        if not cannot_express(SPECS[name], fmt):
            assert detect(write_config(SPECS[name], fmt)) == fmt
    assert not cannot_express(SPECS[name], FAMILY[name])


LATER = {
    "ChatGLM-6B v1.0": ({**write_config(SPECS["chatglm-6b"], "chatglm-6b"), "vocab_size": 150_528}, "first release"),
    "one-dimensional ChatGLM-6B": (
        {**write_config(SPECS["chatglm-6b"], "chatglm-6b"), "position_encoding_2d": False},
        "position_encoding_2d=false",
    ),
    "relative GLM": (
        {**write_config(SPECS["glm-10b"], "glm-10b"), "relative_encoding": True},
        "relative_encoding=True",
    ),
    "GLM-4V": ({"model_type": "chatglm", "vision_config": {}, "padded_vocab_size": 1}, "GLM-4V"),
    "int4": ({**write_config(SPECS["chatglm2"], "chatglm"), "quantization_bit": 4}, "quantization_bit=4"),
    "int4 ChatGLM-6B": (
        {**write_config(SPECS["chatglm-6b"], "chatglm-6b"), "quantization_bit": 4},
        "quantization_bit=4: pre-quantized weights",
    ),
    "prefix of ChatGLM-6B": (
        {**write_config(SPECS["chatglm-6b"], "chatglm-6b"), "pre_seq_len": 128},
        "pre_seq_len=128: a P-tuning v2 prefix",
    ),
    "prefix": ({**write_config(SPECS["chatglm2"], "chatglm"), "pre_seq_len": 128}, "pre_seq_len=128"),
}


@pytest.mark.parametrize("name", LATER)
def test_what_this_version_does_not_read_is_named(name: str) -> None:
    fields, message = LATER[name]
    with pytest.raises(GlmLikeError, match=message):
        read_spec(fields)
