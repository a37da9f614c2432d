"""GLM-130B: a SwissArmyTransformer (SAT) folder, whose launch arguments, ``model_config.json``, say the decoder.

Field names are SAT's arguments (configs/model_glm_130b.sh of THUDM/GLM-130B; sat/training/model_io.py writes them).
Facts that no field states, from sat/model/official/glm130B_model.py: LayerNorm, the residual factor
``sqrt(2 * layers)``, GEGLU, a tied head, one-dimensional rotary positions over the whole head. The SAT that GLM-130B
pins rounds the inverse frequencies to float16; SAT since May 2023 does not in a float32 model, which no argument says.
"""

from __future__ import annotations

import math
from typing import Any

from glmlike.errors import ConfigError
from glmlike.hub_json import early
from glmlike.hub_json.fields import Config, Generation, need, or_default
from glmlike.spec import DecoderSpec

GLM_130B: dict[str, Any] = {
    **early.CHATGLM_6B,
    "feed_forward": "geglu",
    "positions": "rotary",
    "tie_word_embeddings": True,
}

# What the published code and model have; another value is another decoder.
_FIXED: dict[str, Any] = {
    "model_class": "GLM130B",
    "layernorm_order": "post",
    "position_encoding_2d": False,
    "no_glu": False,
    "use_bias": True,
    "use_final_layernorm": True,
    "is_decoder": False,
    "num_multi_query_heads": 0,
    "num_experts": 1,
}
# icetk's ids (20000 image codes, then text): [MASK], [gMASK], [sMASK], sop; eop and </s> end a text.
_TOKENS: dict[int, dict[str, Any]] = {
    150_528: {"mask_token_id": 150_000, "gmask_token_id": 150_001, "smask_token_id": 150_002, "sop_token_id": 150_004}
    | {"bos_token_id": 150_004, "eos_token_id": [150_005, 20_002], "pad_token_id": 20_003}
}


def decoder(*, num_hidden_layers: int, hidden_size: int, num_attention_heads: int, **fields: Any) -> DecoderSpec:
    """A decoder of the GLM-130B kind from its sizes; the residual factor is ``sqrt(2 * layers)`` unless it is given."""
    return DecoderSpec(
        **{
            "num_hidden_layers": num_hidden_layers,
            "hidden_size": hidden_size,
            "num_attention_heads": num_attention_heads,
            "num_key_value_heads": num_attention_heads,
            "head_dim": hidden_size // num_attention_heads,
            "residual_scale": math.sqrt(2 * num_hidden_layers),
            **GLM_130B,
            **fields,
        }
    )


def is_glm_130b(config: Config) -> bool:
    """Whether a config is the launch arguments of a SAT model of this kind."""
    sat = "layernorm_order" in config or config.get("model_class") == "GLM130B"
    return sat and config.get("model_type") is None


def read(config: Config, where: str, _: Generation | None) -> DecoderSpec:
    """The decoder of a ``model_config.json``."""
    for name, expected in _FIXED.items():
        if or_default(config.get(name), expected) != expected:
            raise ConfigError(f"{where}: {name}={config[name]!r}: expected {expected!r}, as GLM-130B has it.")
    sizes = {name: need(config, name, where) for name in ("num_layers", "hidden_size", "num_attention_heads")}
    for name, value in sizes.items():
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            raise ConfigError(f"{where}: {name}={value!r}: expected a whole number of at least 1.")
    if sizes["hidden_size"] % sizes["num_attention_heads"]:
        raise ConfigError(
            f"{where}: hidden_size={sizes['hidden_size']} is not divisible by "
            f"num_attention_heads={sizes['num_attention_heads']}. Correct one."
        )
    given = {} if config.get("residual_scale") is None else {"residual_scale": config["residual_scale"]}
    return decoder(
        num_hidden_layers=sizes["num_layers"],
        hidden_size=sizes["hidden_size"],
        num_attention_heads=sizes["num_attention_heads"],
        vocab_size=need(config, "vocab_size", where),
        intermediate_size=need(config, "inner_hidden_size", where),
        max_position_embeddings=or_default(config.get("max_sequence_length"), 2048),
        norm_eps=or_default(config.get("layernorm_epsilon"), 1e-5),
        **given,
    )


def write(spec: DecoderSpec) -> dict[str, Any]:
    """The launch arguments of a decoder; ``residual_scale`` beside them, which the original fixes."""
    return {
        "model_class": "GLM130B",
        "num_layers": spec.num_hidden_layers,
        "hidden_size": spec.hidden_size,
        "inner_hidden_size": spec.intermediate_size,
        "vocab_size": spec.vocab_size,
        "num_attention_heads": spec.num_attention_heads,
        "max_sequence_length": spec.max_position_embeddings,
        "layernorm_order": "post",
        "layernorm_epsilon": spec.norm_eps,
        "position_encoding_2d": False,
        "residual_scale": spec.residual_scale,
    }


def token_ids(config: Config) -> dict[str, Any]:
    """The ids of blanks, pieces and ends under our names: the config's, over those of the published vocabulary."""
    said = {name: value for name, value in config.items() if name.endswith("_token_id") and value is not None}
    ends = {"eos_token_id": said["eop_token_id"]} if "eop_token_id" in said else {}
    start = {"sop_token_id": said["bos_token_id"]} if "bos_token_id" in said else {}
    known = _TOKENS.get(config.get("vocab_size", 0), {})
    return {name: value for name, value in {**known, **ends, **start, **said}.items() if name != "eop_token_id"}
