"""What must be true for every spec and every format it can be written in (the contracts of CONTRIBUTING.md)."""

from __future__ import annotations

import json
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file

from glmlike import GlmIntConfig, GlmLikeConfig, GlmLikeForCausalLM
from glmlike.checkpoint import convert, detect, fingerprint, verify
from glmlike.checkpoint.formats import TABLES
from glmlike.checkpoint.layouts import same_bits
from glmlike.checkpoint.native import native_shapes
from glmlike.checkpoint.rules import by_foreign, by_native
from glmlike.errors import CannotExpressError, GlmLikeError, SpecError
from glmlike.hub_json import FORMATS, Format, cannot_express, read_spec, write_config
from glmlike.hub_json import detect as detect_config
from glmlike.spec import DecoderSpec
from released_integers import of_the_layers, with_the_tables, write_released
from specs import FAMILY, SPECS

PAIRS = [(name, fmt) for name, spec in SPECS.items() for fmt in FORMATS if not cannot_express(spec, fmt)]
REFUSED = [(name, fmt) for name, spec in SPECS.items() for fmt in FORMATS if cannot_express(spec, fmt)]


@st.composite
def random_specs(draw: st.DrawFn) -> DecoderSpec:
    kv_heads, head_dim = draw(st.integers(1, 3)), draw(st.sampled_from([4, 8, 12]))
    residual = draw(st.sampled_from(["pre", "sandwich"]))
    qkv = draw(st.booleans())
    prefix = draw(st.sampled_from([0, 0, 0, 2])) if residual == "pre" else 0
    return DecoderSpec(
        vocab_size=draw(st.integers(1, 20)),
        hidden_size=draw(st.integers(1, 9)),
        intermediate_size=draw(st.integers(1, 9)),
        num_hidden_layers=draw(st.integers(1, 3)),
        num_attention_heads=kv_heads * draw(st.integers(1, 3)),
        num_key_value_heads=kv_heads,
        head_dim=head_dim,
        residual=residual,
        rotary_pairing=draw(st.sampled_from(["interleaved", "halves"])),
        partial_rotary_factor=draw(st.sampled_from([0.5, 1.0])),
        rope_theta=draw(st.sampled_from([10_000.0, 5e6])),
        qkv_bias=qkv,
        output_bias=qkv and residual == "pre" and draw(st.booleans()),
        mlp_bias=residual == "pre" and draw(st.booleans()),
        tie_word_embeddings=draw(st.booleans()),
        prefix_length=prefix,
        prefix_projection=prefix > 0 and draw(st.booleans()),
    )


@st.composite
def random_infilling_specs(draw: st.DrawFn) -> DecoderSpec:
    """Decoders of the GLM-10B, ChatGLM-6B and GLM-130B kind, of any size their formats can say."""
    heads, head_dim = draw(st.integers(1, 4)), draw(st.sampled_from([4, 8, 12]))
    name = draw(st.sampled_from(["glm-10b", "chatglm-6b", "glm-130b"]))
    hidden = heads * head_dim
    prefix = draw(st.sampled_from([0, 2])) if name == "chatglm-6b" else 0
    return SPECS[name].replace(
        vocab_size=draw(st.integers(1, 20)),
        hidden_size=hidden,
        intermediate_size=4 * hidden if name == "glm-10b" else draw(st.integers(1, 30)),
        num_hidden_layers=draw(st.integers(1, 3)),
        num_attention_heads=heads,
        num_key_value_heads=heads,
        head_dim=head_dim,
        max_position_embeddings=draw(st.integers(1, 9)),
        prefix_length=prefix,
        prefix_projection=prefix > 0 and draw(st.booleans()),
    )


def random_native(spec: DecoderSpec) -> dict[str, torch.Tensor]:
    return {name: torch.randn(shape, dtype=torch.bfloat16) for name, shape in native_shapes(spec).items()}


def to_foreign(native: dict[str, torch.Tensor], spec: DecoderSpec, fmt: Format) -> dict[str, torch.Tensor]:
    return {
        name: tensor
        for step in TABLES[fmt].steps(spec)
        for name, tensor in zip(step.foreign, step.layout.to_foreign([native[key] for key in step.native]), strict=True)
    }


def to_native(foreign: dict[str, torch.Tensor], spec: DecoderSpec, fmt: Format) -> dict[str, torch.Tensor]:
    return {
        name: tensor
        for step in TABLES[fmt].steps(spec)
        for name, tensor in zip(step.native, step.layout.to_native([foreign[key] for key in step.foreign]), strict=True)
    }


@settings(max_examples=100, deadline=None, derandomize=True)
@given(random_specs() | random_infilling_specs(), st.sampled_from(FORMATS))
def test_tables_are_bijections_on_random_specs(spec: DecoderSpec, fmt: Format) -> None:
    """Contract 1: to_native(to_foreign(x)) == x bit for bit, names unique, declared shapes true."""
    if cannot_express(spec, fmt):
        return
    native = random_native(spec)
    foreign = to_foreign(native, spec, fmt)
    back = to_native(foreign, spec, fmt)
    assert back.keys() == native.keys()
    assert all(same_bits(back[name], native[name]) for name in native)
    assert {name: tuple(tensor.shape) for name, tensor in foreign.items()} == TABLES[fmt].foreign_shapes(spec)
    steps = TABLES[fmt].steps(spec)
    assert by_native(steps).keys() == native.keys()
    assert by_foreign(steps).keys() == foreign.keys()


@settings(max_examples=100, deadline=None, derandomize=True)
@given(random_specs() | random_infilling_specs(), st.sampled_from(FORMATS))
def test_a_config_written_for_a_format_reads_back_as_the_same_spec(spec: DecoderSpec, fmt: Format) -> None:
    if not cannot_express(spec, fmt):
        assert read_spec(json.loads(json.dumps(write_config(spec, fmt)))).differences(spec) == {}


@pytest.mark.parametrize("name", SPECS)
def test_native_names_are_the_models_state_dict(name: str) -> None:
    """Contract 2, where the model and the checkpoint room meet."""
    with torch.device("meta"):
        model = GlmLikeForCausalLM(GlmLikeConfig.from_spec(SPECS[name]))
    state = {key: tuple(tensor.shape) for key, tensor in model.state_dict().items()}
    if SPECS[name].tie_word_embeddings:
        assert state.pop("lm_head.weight") == state["model.embed_tokens.weight"]
    assert native_shapes(SPECS[name]) == state
    assert sum(tensor.numel() for tensor in set(model.parameters())) == SPECS[name].num_parameters


INDICES = (
    ("chatglm2-6b", "pytorch_model.bin.index.json"),
    ("chatglm3-6b", "pytorch_model.bin.index.json"),
    ("chatglm3-6b", "model.safetensors.index.json"),
    ("codegeex2-6b", "pytorch_model.bin.index.json"),
    ("chatglm-6b-v1.1", "pytorch_model.bin.index.json"),
)


@pytest.mark.parametrize(("name", "file"), INDICES)
def test_foreign_names_are_the_published_index(name: str, file: str, shared: Path) -> None:
    """Contract 2: the table's names and the published names, minus the declared drops."""
    folder = shared / "originals" / name
    config = json.loads((folder / "config.json").read_text(encoding="utf8"))
    index = json.loads((folder / file).read_text(encoding="utf8"))
    spec = read_spec(config)
    table = TABLES[detect_config(config)]
    shapes = table.foreign_shapes(spec)
    assert index["weight_map"].keys() - table.dropped_names(spec) == shapes.keys()
    if table.name == "chatglm-6b":
        return  # its index still counts the 20000 rows that were removed, and LayerNorms of float32
    size = sum(torch.Size(shape).numel() for shape in shapes.values()) * 2
    assert 0 <= index["metadata"]["total_size"] - size <= 64 * 4  # the rest is the dropped table of 32 angles


@pytest.fixture(scope="session")
def written(make: Callable[..., Any], tmp_path_factory: pytest.TempPathFactory) -> Callable[[str, str], Path]:
    """``written(spec_name, format)``: a checkpoint folder of that spec in that format, made once."""
    root = tmp_path_factory.mktemp("contracts")

    def folder(name: str, fmt: str) -> Path:
        native = root / name / "glmlike"
        if not native.exists():
            make(SPECS[name]).save_pretrained(native)
        target = root / name / fmt
        if not target.exists():
            convert(native, target, to=fmt)  # type: ignore[arg-type]
        return target

    return folder


@pytest.mark.parametrize(("name", "fmt"), PAIRS)
def test_on_the_fly_is_offline_conversion(name: str, fmt: Format, written: Any, tmp_path: Path) -> None:
    """Contract 3: loading any format gives the tensors conversion gives, and saving writes native names."""
    generation = "chatglm2" if name == "chatglm2-32k" else None
    model = GlmLikeForCausalLM.from_pretrained(written(name, fmt), generation=generation)
    assert type(model.config) is GlmLikeConfig
    assert model.config.spec.differences(SPECS[name]) == {}
    model.save_pretrained(tmp_path / "saved")
    offline = load_file(written(name, "glmlike") / "model.safetensors")
    saved = load_file(tmp_path / "saved" / "model.safetensors")
    assert saved.keys() == offline.keys() == native_shapes(SPECS[name]).keys()
    assert all(same_bits(saved[key], offline[key]) for key in saved)


@pytest.mark.parametrize(("bits", "chosen"), [(4, of_the_layers), (8, with_the_tables)])
@pytest.mark.parametrize(
    ("name", "fmt"),
    [pair for pair in PAIRS if pair[1] in ("chatglm", "chatglm-6b") and not SPECS[pair[0]].tie_word_embeddings],
)
def test_on_the_fly_is_offline_conversion_of_integers(
    name: str, fmt: Format, bits: int, chosen: Any, written: Any, tmp_path: Path
) -> None:
    """Contract 3 for pre-quantized folders, whose matrices have scales beside them: the floats that they stand for."""
    folder = write_released(written(name, fmt), tmp_path / "released", bits, chosen)
    generation: Any = "chatglm2" if name == "chatglm2-32k" else None
    convert(folder, tmp_path / "offline", to="glmlike", generation=generation)
    offline = load_file(tmp_path / "offline" / "model.safetensors")
    assert fingerprint(folder.parent / "floats", generation=generation) == fingerprint(tmp_path / "offline")
    for keep in (False, True):
        model = GlmLikeForCausalLM.from_pretrained(
            folder, generation=generation, quantization_config=GlmIntConfig(dequantize=not keep)
        )
        model.save_pretrained(tmp_path / f"saved-{keep}")
        assert fingerprint(tmp_path / f"saved-{keep}") == fingerprint(tmp_path / "offline")
    saved = load_file(tmp_path / "saved-False" / "model.safetensors")
    assert saved.keys() == offline.keys() == native_shapes(SPECS[name]).keys()
    assert all(same_bits(saved[key], offline[key]) for key in saved)


@pytest.mark.parametrize(("name", "fmt"), PAIRS)
def test_conversion_there_and_back_is_exact(name: str, fmt: Format, written: Any, tmp_path: Path) -> None:
    """Contract 1 on files: the way back gives the same files' tensors, and verify agrees across formats."""
    there, origin = written(name, fmt), written(name, "glmlike")
    assert detect(there).format == fmt
    assert verify(origin, there) == len(native_shapes(SPECS[name]))
    convert(there, tmp_path / "back", to="glmlike", max_shard_size="20KB")
    assert fingerprint(tmp_path / "back") == fingerprint(origin)


@pytest.mark.parametrize(("name", "fmt"), REFUSED)
def test_what_a_format_cannot_say_is_refused_and_nothing_written(
    name: str, fmt: Format, written: Any, tmp_path: Path
) -> None:
    able = [other for other in FORMATS if not cannot_express(SPECS[name], other)]
    with pytest.raises(CannotExpressError, match=f"'{fmt}' cannot express .* Formats that can: {', '.join(able)}"):
        convert(written(name, "glmlike"), tmp_path / "out", to=fmt)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", SPECS)
def test_detection_goes_by_fields_not_by_the_folders_name(name: str, written: Any, tmp_path: Path) -> None:
    """Contract 4."""
    misleading = tmp_path / "llama-3-8b-chatglm2-qwen"
    misleading.symlink_to(written(name, FAMILY[name]))
    found = detect(misleading)
    assert (found.format, found.spec) == (FAMILY[name], SPECS[name])


@settings(max_examples=200, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])
@given(st.dictionaries(st.sampled_from([*write_config(SPECS["chatglm2"], "chatglm"), "x"]), st.none() | st.integers()))
def test_a_config_of_random_fields_is_read_or_refused_in_our_words(fields: dict[str, Any]) -> None:
    for base in (write_config(SPECS["chatglm2"], "chatglm"), write_config(SPECS["llama-3"], "llama")):
        damaged = {**base, **{key: value for key, value in fields.items() if key != "model_type"}}
        with suppress(GlmLikeError):
            assert isinstance(read_spec(damaged), DecoderSpec)


def test_a_spec_names_its_differences() -> None:
    left = SPECS["chatglm2"]
    assert left.differences(left.replace(rope_theta=5.0)) == {"rope_theta": (10_000.0, 5.0)}
    with pytest.raises(SpecError, match="num_attention_heads=4 is not a multiple of num_key_value_heads=3"):
        left.replace(num_key_value_heads=3)
