"""Loading with from_pretrained: every format, and bad input that ends in one clear sentence before any harm."""

from __future__ import annotations

import json
import logging
import pickle
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSequenceClassification
from transformers.utils import logging as transformers_logging

import glmlike
from glmlike import CheckpointError, ConfigError, GlmLikeConfig, GlmLikeError, GlmLikeForCausalLM, SpecError
from specs import SPECS


@pytest.fixture
def folder(golden: Path, tmp_path: Path) -> Path:
    """A ChatGLM3 folder to damage."""
    return Path(shutil.copytree(golden / "chatglm3", tmp_path / "chatglm3"))


def edit(folder: Path, **fields: Any) -> None:
    config = json.loads((folder / "config.json").read_text())
    config.update(fields)
    (folder / "config.json").write_text(json.dumps({k: v for k, v in config.items() if v is not ...}))


def rewrite(folder: Path, change: Callable[[dict[str, torch.Tensor]], Any]) -> None:
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


QKV = "transformer.encoder.layers.1.self_attention.query_key_value.weight"
NORM = "transformer.encoder.final_layernorm.weight"


def load(folder: Path, **arguments: Any) -> Any:
    return AutoModelForCausalLM.from_pretrained(folder, **arguments)


BAD_CONFIGS: dict[str, tuple[dict[str, Any], str]] = {
    "unknown model_type": ({"model_type": "glm5000", "auto_map": ...}, "glm5000"),
    "neither generation": (
        {"padded_vocab_size": ..., "ffn_hidden_size": ...},
        "neither 'padded_vocab_size' .* nor 'inner_hidden_size'",
    ),
    "contradicting layer counts": ({"num_hidden_layers": 7}, "contradictory .*num_layers.*7"),
    "10^9 layers": ({"num_layers": 10**9}, "num_hidden_layers=1000000000: larger than anything .* nothing was"),
    "10^12 tokens": ({"padded_vocab_size": 10**12}, "vocab_size=1000000000000: larger than anything"),
    "many large sizes": (
        {"num_layers": 4000, "hidden_size": 10**6, "ffn_hidden_size": 4 * 10**6},
        "parameters .*one of its sizes is wrong; nothing was allocated",
    ),
    "heads not divisible": (
        {"num_attention_heads": 3},
        "num_attention_heads=3 is not a multiple of num_key_value_heads=2",
    ),
    "NaN head dim": ({"kv_channels": float("nan")}, "head_dim=nan: expected a whole number"),
    "odd rotary width": ({"kv_channels": 6}, "rotates 3 features: expected an even number"),
    "negative": ({"ffn_hidden_size": -5}, "intermediate_size=-5: expected a whole number of at least 1"),
    "text for a number": ({"hidden_size": "64"}, "hidden_size='64': expected a whole number"),
    "infinite base": ({"rope_ratio": float("inf")}, "rope_theta=inf: expected a positive, finite base"),
    "post norms of no generation": ({"apply_residual_connection_post_layernorm": True}, "every published .* has False"),
}


@pytest.mark.parametrize("case", BAD_CONFIGS)
def test_bad_config_is_one_sentence_in_no_time(case: str, folder: Path) -> None:
    fields, message = BAD_CONFIGS[case]
    edit(folder, **fields)
    started = time.process_time()
    with pytest.raises(ValueError, match=message) as raised:
        load(folder)
    assert time.process_time() - started < 1.0  # milliseconds here; a second tells it from allocating anything
    if case != "unknown model_type":  # which transformers' own registry answers
        assert isinstance(raised.value, GlmLikeError)
        with pytest.raises(GlmLikeError, match=message):
            glmlike.detect(folder)


def test_a_config_that_is_not_json_is_refused(folder: Path) -> None:
    (folder / "config.json").write_text("{not json")
    with pytest.raises(OSError, match="config"):
        load(folder)
    with pytest.raises(ConfigError, match="not valid JSON"):
        glmlike.detect(folder)


def test_unknown_model_type_through_our_class_names_what_is_known(folder: Path) -> None:
    edit(folder, model_type="glm5000")
    with pytest.raises(ConfigError, match=r"model_type='glm5000'; known formats: glmlike, glm-10b, .* qwen2"):
        GlmLikeForCausalLM.from_pretrained(folder)


def test_truncated_safetensors(folder: Path) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(CheckpointError, match=r"chatglm3.*safetensors.*(truncated|damaged).*Download it again"):
        load(folder)


def test_a_tensor_of_another_shape_names_the_tensor_and_both_shapes(folder: Path) -> None:
    rewrite(folder, lambda tensors: tensors.update({QKV: tensors[QKV][:, :-8].contiguous()}))
    with pytest.raises(
        CheckpointError, match=r"self_attn.k_proj.weight' has shape \[32, 56\] in .* asks for \[32, 64\]"
    ):
        load(folder)
    rewrite(folder, lambda tensors: tensors.update({QKV: tensors[QKV][:-8].contiguous()}))
    with pytest.raises(CheckpointError, match=rf"{QKV}: found 120 rows, expected 64 \+ 32 \+ 32 = 128"):
        load(folder)
    rewrite(folder, lambda tensors: tensors.update({QKV: torch.ones(128, 64), NORM: torch.ones(63)}))
    with pytest.raises(CheckpointError, match=r"'model.norm.weight' has shape \[63\] in the files"):
        load(folder)
    assert load(folder, ignore_mismatched_sizes=True).model.norm.weight.tolist() == [1.0] * 64


def test_a_missing_tensor_is_never_filled_with_random_numbers(folder: Path) -> None:
    rewrite(folder, lambda tensors: tensors.pop(QKV))
    with pytest.raises(CheckpointError, match=r"tensors of the decoder are in none of its files .*self_attn"):
        load(folder)


def test_more_layers_than_the_config_says(folder: Path) -> None:
    edit(folder, num_layers=2)
    rewrite(folder, lambda tensors: tensors.update({QKV.replace(".1.", ".0."): tensors[QKV].clone()}))
    model = load(folder, num_labels=2)  # deeper layers of a pruned config are a choice, and reported by transformers
    assert model.config.num_hidden_layers == 2
    with pytest.raises(CheckpointError, match="layers.2"):
        glmlike.detect(folder)


def test_a_layer_tensor_without_a_place(folder: Path) -> None:
    extra = "transformer.encoder.layers.1.self_attention.q_norm.weight"
    rewrite(folder, lambda tensors: tensors.update({extra: torch.ones(16)}))
    with pytest.raises(CheckpointError, match=r"have no place in this decoder \(first: .*q_norm"):
        load(folder)


def sharded(folder: Path) -> Path:
    """The folder with its weights in three shards and an index."""
    tensors = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    weight_map = {}
    for number in range(3):
        part = dict(list(tensors.items())[number::3])
        name = f"model-{number + 1:05d}-of-00003.safetensors"
        save_file(part, folder / name, metadata={"format": "pt"})
        weight_map.update(dict.fromkeys(part, name))
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    return folder


def test_a_missing_shard_is_named(folder: Path) -> None:
    (sharded(folder) / "model-00002-of-00003.safetensors").unlink()
    with pytest.raises((CheckpointError, OSError), match="model-00002-of-00003.safetensors"):
        load(folder)


def test_an_index_that_names_an_absent_tensor(folder: Path) -> None:
    index = sharded(folder) / "model.safetensors.index.json"
    content = json.loads(index.read_text())
    path = folder / content["weight_map"][QKV]
    tensors = load_file(path)
    del tensors[QKV]
    save_file(tensors, path, metadata={"format": "pt"})
    with pytest.raises(CheckpointError, match="in none of its files"):
        load(folder)
    with pytest.raises(CheckpointError, match=rf"says that {path.name} holds '{QKV}', but it does not"):
        glmlike.detect(folder)


class Payload:
    """A pickle that would write a file if it were executed."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.write_text, (self.target, "executed"))


@pytest.mark.parametrize("form", ["torch.save", "plain pickle"])
def test_a_pickle_with_code_is_refused_and_not_executed(form: str, folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    harm = folder / "harm"
    if form == "torch.save":
        torch.save({QKV: Payload(harm)}, folder / "pytorch_model.bin")
    else:
        (folder / "pytorch_model.bin").write_bytes(pickle.dumps({QKV: Payload(harm)}))
    for read in (load, glmlike.detect):
        with pytest.raises(CheckpointError, match="not a pickle of plain tensors.*nothing in it was executed"):
            read(folder)
    assert not harm.exists()


@pytest.fixture
def log() -> Iterator[list[str]]:
    """What transformers' logger says, once-warnings forgotten before."""
    transformers_logging.get_logger().warning_once.cache_clear()
    messages: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: messages.append(record.getMessage())  # type: ignore[method-assign]
    logger = logging.getLogger("transformers")
    ours = logging.getLogger("glmlike")
    for each in (logger, ours):
        each.addHandler(handler)
    yield messages
    for each in (logger, ours):
        each.removeHandler(handler)


def test_float16_on_a_cpu_works_and_says_once_how_to_do_better(folder: Path, log: list[str]) -> None:
    edit(folder, torch_dtype="float16")
    models = [load(folder), load(folder)]
    assert {model.dtype for model in models} == {torch.float16}
    assert torch.isfinite(models[0](torch.arange(8)[None]).logits).all()
    assert [message for message in log if "float16" in message and "dtype=torch.bfloat16" in message] != []
    assert sum("ten times slower" in message for message in log) == 1


def test_what_rope_ratio_means_is_asked_only_when_no_field_says(folder: Path, log: list[str]) -> None:
    edit(folder, rope_ratio=50, padded_vocab_size=65_024, _name_or_path=None)
    assert AutoConfig.from_pretrained(folder).spec.rope_theta == 500_000.0
    asked = [message for message in log if 'generation="chatglm2"' in message]
    assert len(asked) == 1
    read = GlmLikeConfig.from_pretrained(folder, generation="chatglm2")
    assert (read.spec.rope_theta, dict(read.spec.rope_scaling)) == (10_000.0, {"rope_type": "linear", "factor": 50.0})
    edit(folder, _name_or_path="THUDM/chatglm2-6b-32k")
    assert AutoConfig.from_pretrained(folder).spec.rope_type == "linear"
    edit(folder, _name_or_path="THUDM/chatglm3-6b-32k")
    assert AutoConfig.from_pretrained(folder).spec.rope_type == "default"
    with pytest.raises(ConfigError, match="generation='chatglm7': expected one of chatglm2, chatglm3, glm4"):
        GlmLikeConfig.from_pretrained(folder, generation="chatglm7")


def test_the_override_reaches_the_model_through_the_auto_class(folder: Path) -> None:
    edit(folder, rope_ratio=4)
    divided = load(folder, generation="chatglm2")
    multiplied = load(folder, generation="chatglm3")
    assert divided.config.spec.rope_type == "linear"
    assert multiplied.config.spec.rope_theta == 40_000.0
    ids = torch.arange(30)[None]
    assert not torch.allclose(divided(ids).logits, multiplied(ids).logits, atol=1e-3)


def test_sharded_loading_of_fused_matrices_is_refused_with_the_command(folder: Path) -> None:
    for argument in ({"tp_plan": "auto"}, {"tp_size": 2}):
        with pytest.raises(ConfigError, match=r"fused matrices .*glmlike convert .*chatglm3 DST --to glmlike"):
            load(folder, **argument)


def test_gguf_is_pointed_to_transformers(folder: Path) -> None:
    with pytest.raises(ConfigError, match=r"x.gguf: .*GgufConfig\(dequantize=True\)"):
        GlmLikeForCausalLM.from_pretrained(folder, gguf_file="x.gguf")


def test_saving_in_the_original_format_is_refused(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="glmlike convert SRC DST --to FORMAT"):
        load(folder).save_pretrained(tmp_path / "out", save_original_format=True)
    assert not (tmp_path / "out").exists()


def test_a_classifier_takes_the_decoder_and_starts_its_head(folder: Path) -> None:
    model = AutoModelForSequenceClassification.from_pretrained(folder, num_labels=3)
    assert type(model) is glmlike.GlmLikeForSequenceClassification
    decoder = load(folder).model.state_dict()
    assert all(torch.equal(tensor, decoder[name]) for name, tensor in model.model.state_dict().items())
    assert model.score.weight.shape == (3, 64)


def test_a_bare_decoder_saves_and_loads_into_a_head(make: Callable[..., Any], tmp_path: Path) -> None:
    model = make(SPECS["tied-recipe"])
    model.model.save_pretrained(tmp_path)
    again = GlmLikeForCausalLM.from_pretrained(tmp_path)
    ids = torch.arange(12)[None]
    assert torch.equal(again(ids).logits, model(ids).logits)


@pytest.mark.parametrize("name", SPECS)
def test_saved_models_reload_exactly(name: str, make: Callable[..., Any], tmp_path: Path) -> None:
    model = make(SPECS[name])
    model.save_pretrained(tmp_path, max_shard_size="30KB")
    assert (tmp_path / "model.safetensors.index.json").exists()
    again = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert type(again) is GlmLikeForCausalLM
    assert again.config.spec == SPECS[name]
    ids = torch.arange(20)[None]
    with torch.no_grad():
        assert torch.equal(again(ids).logits, model(ids).logits)


def test_an_impossible_spec_says_which_rule_it_breaks() -> None:
    with pytest.raises(SpecError, match="norm='layer2': expected one of"):
        GlmLikeConfig(norm="layer2")
