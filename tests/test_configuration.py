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
from glmlike.published import PUBLISHED
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


GLM_TOKENS = {
    # (mask, smask, gmask, sop, eop, pad) by the published tokenizers (THUDM/GLM)
    "glm-2b": (50_260, 50_264, 50_263, 50_257, 50_258, 50_256),
    "glm-10b": (50_260, 50_264, 50_263, 50_257, 50_258, 50_256),
    "glm-515m": (103, 30_525, 30_524, 30_522, 30_523, 0),
    "glm-10b-chinese": (50_003, 50_008, 50_007, 50_006, 50_007, 50_000),
    "glm-large-chinese": (50_003, 50_008, 50_009, 50_006, 50_007, 50_000),
}


def six(config: GlmLikeConfig) -> tuple[Any, ...]:
    blanks = (config.mask_token_id, config.smask_token_id, config.gmask_token_id)
    return (*blanks, config.sop_token_id, config.eos_token_id, config.pad_token_id)


@pytest.mark.parametrize("name", GLM_TOKENS)
def test_token_ids_of_the_glm_10b_line(name: str) -> None:
    """No published config says them; two vocabularies of one size are told apart by the model's."""
    published = {**write_config(PUBLISHED[name].spec, "glm-10b"), "spell_func": "lstm"}
    assert six(GlmLikeConfig.from_dict(published)) == GLM_TOKENS[name]
    own = {"mask_token_id": 5, "sop_token_id": 6, "eos_token_id": 7, "pad_token_id": 8}
    _, smask, gmask, *_ = GLM_TOKENS[name]
    assert six(GlmLikeConfig.from_dict({**published, **own})) == (5, smask, gmask, 6, 7, 8)


def test_token_ids_of_glm_roberta_and_of_unknown_sizes() -> None:
    sizes = {"num_layers": 24, "num_attention_heads": 16, "hidden_size": 1024, "max_sequence_length": 512}
    roberta = {**write_config(PUBLISHED["glm-515m"].spec, "glm-10b"), **sizes, "vocab_size": 50_304}
    assert six(GlmLikeConfig.from_dict(roberta)) == (50_264, None, None, 50_265, 50_266, 2)
    large = {**roberta, "vocab_size": 30_592}
    assert six(GlmLikeConfig.from_dict(large)) == GLM_TOKENS["glm-515m"]
    unknown = {**roberta, "vocab_size": 50_048, "hidden_size": 512}
    assert six(GlmLikeConfig.from_dict(unknown)) == (None,) * 6


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
    "one-dimensional ChatGLM-6B": (
        {**write_config(SPECS["chatglm-6b"], "chatglm-6b"), "position_encoding_2d": False},
        "position_encoding_2d=false",
    ),
    "relative GLM": (
        {**write_config(SPECS["glm-10b"], "glm-10b"), "relative_encoding": True},
        "relative_encoding=True",
    ),
    "GLM-4V": ({"model_type": "chatglm", "vision_config": {}, "padded_vocab_size": 1}, "GLM-4V"),
    "int3": (
        {**write_config(SPECS["chatglm2"], "chatglm"), "quantization_bit": 3},
        r"quantization_bit=3: expected 4 or 8",
    ),
}


@pytest.mark.parametrize("name", LATER)
def test_what_this_version_does_not_read_is_named(name: str) -> None:
    fields, message = LATER[name]
    with pytest.raises(GlmLikeError, match=message):
        read_spec(fields)


def test_two_dimensional_positions_bring_their_pairing_and_share() -> None:
    sizes = {"vocab_size": 64, "hidden_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = GlmLikeConfig(**sizes, attention_mask="prefix", positions="rotary_2d")
    assert (config.rotary_pairing, config.spec.rotary_dim) == ("halves", 32)
    assert GlmLikeConfig(**config.to_dict()).spec == config.spec
    fields = {
        name: value for name, value in config.to_dict().items() if name not in ("rotary_pairing", "rope_parameters")
    }
    assert read_spec(fields) == config.spec
    assert GlmLikeConfig(**sizes).rotary_pairing == "interleaved"
    with pytest.raises(SpecError, match="expected 'default' and 'halves'"):
        GlmLikeConfig(**sizes, attention_mask="prefix", positions="rotary_2d", rotary_pairing="interleaved")
