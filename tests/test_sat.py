"""GLM-130B's folders of rank files: what they hold, loaded, converted, written; and what is refused."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file
from torch.testing import assert_close

import glmlike
import rank_files
from glmlike import CannotExpressError, CheckpointError, ConfigError, GlmLikeForCausalLM, GlmLikeModel
from glmlike.checkpoint import on_the_fly
from glmlike.checkpoint.convert import native_tensors
from glmlike.checkpoint.layouts import same_bits
from glmlike.checkpoint.native import native_shapes
from glmlike.published import PUBLISHED
from glmlike.spec import DecoderSpec
from specs import SPECS

SPEC = SPECS["glm-130b"]
CASES = ("gmask", "mask", "smask")


@pytest.fixture
def folder(golden: Path, tmp_path: Path) -> Path:
    """The golden folder (two ranks), to change."""
    return Path(shutil.copytree(golden / "glm130b", tmp_path / "glm130b"))


def numbers(spec: DecoderSpec, seed: int = 0) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {name: torch.randn(shape, generator=generator).half() for name, shape in native_shapes(spec).items()}


@pytest.mark.parametrize("case", CASES)
@torch.no_grad()
def test_golden_logits_with_explicit_and_derived_positions(case: str, golden: Path, tmp_path: Path) -> None:
    """Loaded from the original's files, and from their conversion: the original's logits, twice the same bits."""
    tolerance = json.loads((golden / "glm130b" / "cases.json").read_text())["tolerance"]
    expected = load_file(golden / "glm130b" / "expected.safetensors")
    ids, positions = expected[f"{case}.input_ids"], expected[f"{case}.position_ids"]
    model = GlmLikeForCausalLM.from_pretrained(golden / "glm130b")
    assert torch.equal(model.infilling_positions(ids), positions)
    mask = ~expected[f"{case}.attention_mask"]
    for arguments in ({}, {"position_ids": positions}, {"position_ids": positions, "attention_mask": mask}):
        assert_close(model(ids, **arguments).logits, expected[f"{case}.logits"], atol=tolerance, rtol=0)
    glmlike.convert(golden / "glm130b", tmp_path / "converted", to="glmlike")
    converted = GlmLikeForCausalLM.from_pretrained(tmp_path / "converted")
    assert torch.equal(converted(ids).logits, model(ids).logits)
    places = [loaded.config.to_dict().pop("_name_or_path") for loaded in (model, converted)]
    assert places == [str(golden / "glm130b"), str(tmp_path / "converted")]
    fields = [{**loaded.config.to_dict(), "_name_or_path": None} for loaded in (model, converted)]
    assert fields[0] == fields[1]


@st.composite
def layouts(draw: st.DrawFn) -> tuple[DecoderSpec, int, int | None]:
    """A spec that the ranks can hold in whole heads, and int4 in whole bytes."""
    ranks = draw(st.sampled_from([1, 2, 4]))
    heads, head_dim = ranks * draw(st.integers(1, 3)), draw(st.sampled_from([2, 4, 6]))
    spec = SPEC.replace(
        vocab_size=ranks * draw(st.integers(1, 5)),
        hidden_size=heads * head_dim,
        intermediate_size=2 * ranks * draw(st.integers(1, 5)),
        num_hidden_layers=draw(st.integers(1, 3)),
        num_attention_heads=heads,
        num_key_value_heads=heads,
        head_dim=head_dim,
    )
    spec = spec.replace(residual_scale=(2 * spec.num_hidden_layers) ** 0.5)
    return spec, ranks, draw(st.sampled_from([None, 8, 4]))


@settings(max_examples=40, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])
@given(layouts())
def test_native_tensors_of_any_ranks_and_bits(
    tmp_path_factory: pytest.TempPathFactory, case: tuple[DecoderSpec, int, int | None]
) -> None:
    """Rank files written by indices hold, read by the tables, the numbers that the same indices put back."""
    spec, ranks, bits = case
    native = numbers(spec)
    modules = [rank_files.rank_module(native, spec, rank, ranks) for rank in range(ranks)]
    files = [rank_files.quantized(module, bits) for module in modules] if bits else modules
    wanted = rank_files.native_of([rank_files.rounded(module, bits) for module in modules], spec) if bits else native
    folder = rank_files.write(tmp_path_factory.mktemp("ranks") / "folder", files, rank_files.arguments(spec))
    found = glmlike.detect(folder)
    assert (found.spec, found.format) == (spec, "glm-130b")
    read = dict(native_tensors(found))
    assert read.keys() == wanted.keys()
    assert all(same_bits(read[name], wanted[name]) for name in wanted)
    lazy = on_the_fly.lazy_tensors(found)
    assert all(same_bits(lazy[name][...], wanted[name]) for name in sorted(wanted))
    assert all((lazy[name].shape, lazy[name].dtype) == (wanted[name].shape, torch.float16) for name in wanted)


@pytest.mark.parametrize("bits", [8, 4])
def test_quantized_ranks_load_as_their_numbers(bits: int, tmp_path: Path) -> None:
    """Each rank has scales of its own for the matrices that are cut along their columns."""
    native = numbers(SPEC)
    modules = [rank_files.rank_module(native, SPEC, rank, 2) for rank in range(2)]
    files = [rank_files.quantized(module, bits) for module in modules]
    folder = rank_files.write(tmp_path / "folder", files, rank_files.arguments(SPEC))
    wanted = rank_files.native_of([rank_files.rounded(module, bits) for module in modules], SPEC)
    state = GlmLikeForCausalLM.from_pretrained(folder).state_dict()
    assert state.keys() == wanted.keys() | {"lm_head.weight"}
    assert all(same_bits(state[name], wanted[name]) for name in wanted)
    report = glmlike.convert(folder, tmp_path / "out", to="glmlike")
    assert report.tensors == len(wanted)
    assert glmlike.verify(folder, tmp_path / "out") == len(wanted)
    assert {info.dtype for info in glmlike.detect(folder).checkpoint.tensors.values()} == {"F16", f"I{bits}"}


@pytest.mark.parametrize("ranks", [1, 2, 4])
def test_written_ranks_are_cut_as_the_published_ones(ranks: int, make: Callable[..., Any], tmp_path: Path) -> None:
    make(SPEC).save_pretrained(tmp_path / "native")
    native = load_file(tmp_path / "native" / "model.safetensors")
    report = glmlike.convert(tmp_path / "native", tmp_path / "sat", to="glm-130b", tensor_parallel=ranks)
    assert not (tmp_path / "sat" / "config.json").exists()
    files = sorted((tmp_path / "sat" / "1").iterdir())
    assert [file.name for file in files] == [f"mp_rank_{rank:02d}_model_states.pt" for rank in range(ranks)]
    for rank, file in enumerate(files):
        module = torch.load(file, weights_only=True)["module"]
        wanted = rank_files.rank_module(native, SPEC, rank, ranks)
        assert module.keys() == wanted.keys()
        assert all(same_bits(module[name], wanted[name]) for name in wanted)
        assert file.stat().st_size < sum(tensor.nbytes for tensor in wanted.values()) + 100_000  # no view's whole
    assert report.tensors == ranks * len(wanted)
    found = glmlike.detect(tmp_path / "sat")
    assert (found.spec, found.config["sop_token_id"], found.config["model_parallel_size"]) == (SPEC, 93, ranks)


def test_what_loading_takes_and_gives(golden: Path, tmp_path: Path) -> None:
    """dtype, device_map, subfolder, config fields, a config object, the bare decoder, saving."""
    where = golden / "glm130b"
    model, info = GlmLikeForCausalLM.from_pretrained(where, output_loading_info=True, use_cache=False)
    assert (model.dtype, model.name_or_path, model.config.use_cache) == (torch.float32, str(where), False)
    assert not any(info[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    blanks = ("mask_token_id", "gmask_token_id", "smask_token_id", "sop_token_id", "eos_token_id", "bos_token_id")
    assert [getattr(model.config, name) for name in blanks] == [300, 301, 306, 304, 305, 304]
    assert model.generation_config.eos_token_id == 305
    assert model.lm_head.weight is model.model.embed_tokens.weight

    state = model.state_dict()
    halved = GlmLikeForCausalLM.from_pretrained(golden, subfolder="glm130b", dtype=torch.bfloat16, device_map="cpu")
    assert halved.dtype == torch.bfloat16
    assert all(torch.equal(tensor, state[name].bfloat16()) for name, tensor in halved.state_dict().items())
    bare = GlmLikeModel.from_pretrained(where)
    assert all(torch.equal(tensor, state[f"model.{name}"]) for name, tensor in bare.state_dict().items())
    again = GlmLikeForCausalLM.from_pretrained(where, config=model.config, attn_implementation="eager")
    assert again.config._attn_implementation == "eager"
    assert all(torch.equal(tensor, state[name]) for name, tensor in again.state_dict().items())

    model.save_pretrained(tmp_path / "saved")
    assert glmlike.verify(where, tmp_path / "saved") == len(state) - 1


def test_nothing_of_the_model_is_a_view_of_the_files(folder: Path) -> None:
    """The files can go once the model is there."""
    glmlike.convert(folder, folder.parent / "one", to="glm-130b")
    model = GlmLikeForCausalLM.from_pretrained(folder.parent / "one")
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    for file in (folder.parent / "one" / "1").iterdir():
        file.write_bytes(bytes(file.stat().st_size))
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def test_each_foreign_tensor_is_read_once_and_let_go(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Loading makes each native tensor when it is needed; nothing is kept beside the model."""
    opened, kept = [], []

    def open_folder(*arguments: Any) -> Any:
        found = on_the_fly.open_folder(*arguments)
        if found is not None:
            kept.extend(found[1].values())
        return found

    read = glmlike.checkpoint.ranks.RankedCheckpoint.read

    def counting(self: Any, name: str) -> torch.Tensor:
        opened.append(name)
        return read(self, name)

    monkeypatch.setitem(glmlike.loading.folder_readers, "glm-130b", open_folder)
    monkeypatch.setattr(glmlike.checkpoint.ranks.RankedCheckpoint, "read", counting)
    GlmLikeForCausalLM.from_pretrained(folder)
    matrices = [name for name in opened if name.endswith(("query_key_value.weight", "4h.weight", "h.weight"))]
    assert sorted(matrices) == sorted(set(matrices))
    assert len(kept) == len(native_shapes(glmlike.detect(folder).spec))
    assert not any(lazy._step._ready for lazy in kept)


# Which decoder it is.


def test_the_published_files_have_the_published_ids(tmp_path: Path) -> None:
    """No config says GLM-130B's token ids; its vocabulary does."""
    spec = SPEC.replace(vocab_size=150_528, num_hidden_layers=1, residual_scale=2**0.5)
    native = {name: torch.zeros(shape, dtype=torch.float16) for name, shape in native_shapes(spec).items()}
    folder = rank_files.write(tmp_path / "folder", [rank_files.rank_module(native, spec, rank, 2) for rank in range(2)])
    config = GlmLikeForCausalLM.from_pretrained(folder, spec=spec).config
    assert (config.mask_token_id, config.gmask_token_id, config.smask_token_id) == (150_000, 150_001, 150_002)
    assert (config.sop_token_id, config.eos_token_id, config.pad_token_id) == (150_004, [150_005, 20_002], 20_003)
    assert config.spec == spec
    assert config.dtype == torch.float16


def test_shapes_alone_say_the_decoder_where_the_angles_are_there(folder: Path) -> None:
    """A head has two features for each angle that the files hold."""
    said = glmlike.detect(folder).spec
    (folder / "model_config.json").unlink()
    assert glmlike.detect(folder).spec == said.replace(max_position_embeddings=2048)
    change_ranks(folder, lambda module: [module.pop(name) for name in list(module) if "inv_freq" in name])
    with pytest.raises(ConfigError, match=r"do not say the number of attention heads. Pass spec= .* model_config.json"):
        glmlike.detect(folder)
    assert glmlike.detect(folder, spec=said).spec == said
    assert GlmLikeForCausalLM.from_pretrained(folder, spec=said).config.spec == said


def test_a_spec_is_checked_against_what_the_folder_says(folder: Path, golden: Path) -> None:
    said = glmlike.detect(folder).spec
    assert glmlike.detect(folder, spec=said.replace(rotary_precision="float32")).spec.rotary_precision == "float32"
    with pytest.raises(ConfigError, match=r"contradict each other: {'num_attention_heads': \(4, 2\)"):
        glmlike.detect(folder, spec=said.replace(num_attention_heads=2, num_key_value_heads=2, head_dim=32))
    (folder / "model_config.json").unlink()
    with pytest.raises(CheckpointError, match=r"tensors missing .*spec='glm-130b' belongs to another model"):
        GlmLikeForCausalLM.from_pretrained(folder, spec="glm-130b")
    with pytest.raises(CheckpointError, match=r"word_embeddings.weight' has shape \[336, 64\], but spec= asks for"):
        glmlike.detect(folder, spec=said.replace(vocab_size=337))
    with pytest.raises(CannotExpressError, match=r"of the GLM-130B kind, not norm='rms'"):
        glmlike.detect(folder, spec="llama-3-8b")
    with pytest.raises(ConfigError, match="spec='glm-131b': expected one of glm-515m"):
        glmlike.detect(folder, spec="glm-131b")
    with pytest.raises(ConfigError, match="config.json and spec= contradict each other"):
        glmlike.detect(golden / "chatglm2", spec="chatglm2-6b")
    with pytest.raises(ConfigError, match="spec= is for folders of rank files"):
        GlmLikeForCausalLM.from_pretrained(golden / "chatglm2", spec="chatglm2-6b")


def published_rank() -> dict[str, torch.Tensor]:
    """The tensors of one of GLM-130B's eight ranks, without numbers."""
    spec = PUBLISHED["glm-130b"].spec
    native = {name: torch.empty(shape, device="meta") for name, shape in native_shapes(spec).items()}
    table = glmlike.checkpoint.formats.TABLES["glm-130b"]
    return {
        name: table.split_of(name).cut(whole, 8)[3]
        for step in table.steps(spec)
        for name, whole in zip(step.foreign, step.layout.to_foreign([native[key] for key in step.native]), strict=True)
    }


def test_the_published_shapes_are_the_published_decoder() -> None:
    """Sizes of one of eight ranks as the launch script and tools/convert_tp.py make them; and the decoder they say."""
    rank = {name: tuple(tensor.shape) for name, tensor in published_rank().items()}
    layer = "transformer.layers.69."
    assert rank["transformer.word_embeddings.weight"] == (18_816, 12_288)
    assert rank[f"{layer}attention.query_key_value.weight"] == (4608, 12_288)
    assert rank[f"{layer}attention.dense.weight"] == (12_288, 1536)
    assert rank[f"{layer}mlp.dense_h_to_4h.weight"] == (8192, 12_288)
    assert rank[f"{layer}mlp.dense_4h_to_h.weight"] == (12_288, 4096)
    assert len(rank) == 70 * 12 + 3
    split_of = glmlike.checkpoint.formats.TABLES["glm-130b"].split_of
    whole = {name: split_of(name).whole_shape(shape, 8) for name, shape in rank.items()}
    assert glmlike.checkpoint.sat._spec_of_shapes(Path("folder"), whole) == PUBLISHED["glm-130b"].spec


def test_another_sat_model_is_refused(folder: Path) -> None:
    (folder / "model_config.json").unlink()
    change_ranks(folder, ungate)
    with pytest.raises(ConfigError, match="dense_h_to_4h has 168 rows for 168 columns .* another SwissArmyTransformer"):
        glmlike.detect(folder)


def ungate(module: dict[str, torch.Tensor]) -> None:
    for name in [name for name in module if "dense_h_to_4h" in name]:
        module[name] = module[name][:84].clone()


def change_ranks(
    folder: Path, change: Callable[[dict[str, torch.Tensor]], Any], ranks: tuple[int, ...] = (0, 1)
) -> None:
    for rank in ranks:
        path = rank_file(folder, rank)
        module = torch.load(path, weights_only=True)["module"]
        change(module)
        torch.save({"module": module}, path)


def rank_file(folder: Path, rank: int) -> Path:
    return folder / "49300" / f"mp_rank_{rank:02d}_model_states.pt"


# What is refused, before anything is allocated.

L1 = "transformer.layers.1."


def say(folder: Path, **fields: Any) -> None:
    said = json.loads((folder / "model_config.json").read_text())
    (folder / "model_config.json").write_text(json.dumps({**said, **fields}))


def retype(module: dict[str, torch.Tensor], name: str, dtype: torch.dtype) -> None:
    module[name] = module[name].to(dtype)


def recut(folder: Path) -> None:
    """Rank 1 is of four ranks, rank 0 of two."""
    glmlike.convert(folder, folder.parent / "four", to="glm-130b", tensor_parallel=4)
    glmlike.convert(folder, folder.parent / "two", to="glm-130b", tensor_parallel=2)
    shutil.rmtree(folder / "49300")
    shutil.copytree(folder.parent / "two" / "1", folder / "49300")
    shutil.copy(folder.parent / "four" / "1" / "mp_rank_01_model_states.pt", folder / "49300")


def first_two_of_four(folder: Path) -> None:
    glmlike.convert(folder, folder.parent / "four", to="glm-130b", tensor_parallel=4)
    shutil.rmtree(folder / "49300")
    shutil.copytree(folder.parent / "four" / "1", folder / "49300")
    for rank in (2, 3):
        rank_file(folder, rank).unlink()


class Bomb:
    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return exec, ("raise SystemExit('a file of the folder was executed')",)


def only_weight_scales(module: dict[str, torch.Tensor], columns: int) -> None:
    name = "transformer.layers.0.attention.query_key_value.weight"
    module[name] = torch.zeros(96, columns, dtype=torch.int8)
    module[f"{name}_scale"] = torch.ones(96)


BAD: dict[str, tuple[Callable[[Path], Any], str]] = {
    "latest is not there": (lambda f: (f / "latest").unlink(), "latest: not there, though rank files are"),
    "latest is empty": (lambda f: (f / "latest").write_text(" \n"), "latest: holds '', expected the plain name"),
    "latest points nowhere": (lambda f: (f / "latest").write_text("50000"), "points to '50000', which is not a folder"),
    "latest points to a file": (lambda f: (f / "latest").write_text("cases.json"), "'cases.json', which is not a f"),
    "latest leaves the folder": (lambda f: (f / "latest").write_text("../x"), "holds '../x', expected the plain name"),
    "latest is absolute": (lambda f: (f / "latest").write_text("/etc"), "holds '/etc', expected the plain name"),
    "latest is the parent": (lambda f: (f / "latest").write_text(".."), r"holds '\.\.', expected the plain name"),
    "latest is long and binary": (lambda f: (f / "latest").write_bytes(b"\xff\0" * 10**6), "expected the plain name"),
    "latest is an LFS pointer": (
        lambda f: (f / "latest").write_text("version https://git-lfs.github.com/spec/v1\n"),
        "latest: this is a Git LFS pointer",
    ),
    "no rank file": (lambda f: [rank_file(f, rank).unlink() for rank in (0, 1)], "49300: 0 files mp_rank_XX"),
    "the first rank is missing": (lambda f: rank_file(f, 0).unlink(), "mp_rank_00_model_states.pt is missing, though"),
    "the last rank is missing": (lambda f: rank_file(f, 1).unlink(), "1 rank files hold 96 of the 192 rows .* 2 ranks"),
    "half of the ranks are missing": (first_two_of_four, "2 rank files hold 96 of the 192 rows .* for 4 ranks"),
    "a rank twice": (lambda f: shutil.copy(rank_file(f, 1), f / "49300/mp_rank_1_model_states.pt"), "3 files mp_rank"),
    "ranks of two degrees": (recut, r"of different tensor-parallel degrees or models"),
    "a rank file is an LFS pointer": (
        lambda f: rank_file(f, 1).write_text("version https://git-lfs.github.com/spec/v1\n"),
        "mp_rank_01_model_states.pt: this is a Git LFS pointer",
    ),
    "a rank file is empty": (lambda f: rank_file(f, 1).write_bytes(b""), "mp_rank_01_model_states.pt: not a zip file"),
    "a rank file is truncated": (
        lambda f: rank_file(f, 1).write_bytes(rank_file(f, 1).read_bytes()[:-2000]),
        "mp_rank_01_model_states.pt: damaged, or not a pickle of plain tensors",
    ),
    "a rank file holds code": (
        lambda f: torch.save({"module": Bomb()}, rank_file(f, 1)),
        "damaged, or not a pickle of plain tensors .* nothing in it was executed",
    ),
    "a rank file holds a tensor": (
        lambda f: torch.save(torch.ones(1), rank_file(f, 1)),
        "holds one Tensor, expected a dict",
    ),
    "a rank file without module": (
        lambda f: torch.save({"model": {}}, rank_file(f, 0)),
        r"holds a dict of \['model'\], expected a dict of tensors under 'module'",
    ),
    "module holds other things": (lambda f: torch.save({"module": {"a": 1}}, rank_file(f, 0)), "under 'module'"),
    "module is empty in all": (
        lambda f: [torch.save({"module": {}}, rank_file(f, rank)) for rank in (0, 1)],
        "hold no 'transformer.layers.0.attention.query_key_value.bias'",
    ),
    "copies that differ": (
        lambda f: change_ranks(f, lambda m: m[L1 + "attention.dense.bias"].add_(1), (1,)),
        f"'{L1}attention.dense.bias': the 2 ranks hold different copies",
    ),
    "norms that differ": (
        lambda f: change_ranks(f, lambda m: m["transformer.final_layernorm.weight"][0].neg_(), (1,)),
        "'transformer.final_layernorm.weight': the 2 ranks hold different copies",
    ),
    "a tensor is missing": (
        lambda f: change_ranks(f, lambda m: m.pop(L1 + "attention.dense.bias")),
        f"1 tensors missing .first: '{L1}attention.dense.bias'.* or model_config.json belongs to another model",
    ),
    "a tensor is missing in one rank": (
        lambda f: change_ranks(f, lambda m: m.pop(L1 + "attention.dense.bias"), (1,)),
        f"mp_rank_01_model_states.pt: lacks '{L1}attention.dense.bias', which another rank has",
    ),
    "a tensor too many": (
        lambda f: change_ranks(f, lambda m: m.update({"transformer.extra.weight": torch.ones(3)})),
        "1 tensors that model_config.json has no place for .first: 'transformer.extra.weight'",
    ),
    "a head of its own": (
        lambda f: change_ranks(f, lambda m: m.update({"lm_head.weight": torch.ones(168, 64)})),
        "1 tensors that model_config.json has no place for .first: 'lm_head.weight'",
    ),
    "a dtype differs between ranks": (
        lambda f: change_ranks(f, lambda m: retype(m, L1 + "attention.dense.bias", torch.float16), (1,)),
        "is F16 .* but F32 .* in mp_rank_00",
    ),
    "integers without scales": (
        lambda f: change_ranks(f, lambda m: retype(m, L1 + "attention.dense.weight", torch.int8)),
        "is I8 without .*weight_scale'; expected floating point",
    ),
    "scales without integers": (
        lambda f: change_ranks(
            f, lambda m: m.update({L1 + "attention.dense.weight_scale": torch.ones(64, dtype=torch.float16)})
        ),
        "is F32 .* with scales F16 .*expected I8 rows and one floating-point scale for each",
    ),
    "integers of three bits": (
        lambda f: change_ranks(f, lambda m: only_weight_scales(m, 24)),
        "24 columns of integers",
    ),
    "a layer less than said": (lambda f: say(f, num_layers=2), "13 tensors that model_config.json has no place for"),
    "a layer more than said": (lambda f: say(f, num_layers=4), "12 tensors missing"),
    "other sizes than said": (
        lambda f: say(f, vocab_size=338),
        r"word_embeddings.weight' has shape \[336, 64\], but model_config.json asks for \[338, 64\]",
    ),
    "heads that do not divide": (
        lambda f: say(f, num_attention_heads=5),
        "hidden_size=64 is not divisible by num_atte",
    ),
    "two-dimensional positions": (lambda f: say(f, position_encoding_2d=True), "position_encoding_2d=True: expected F"),
    "another model class": (lambda f: say(f, model_class="ChatGLMModel"), "model_class='ChatGLMModel': expected 'GLM1"),
    "arguments that are no JSON": (
        lambda f: (f / "model_config.json").write_text("{"),
        "model_config.json: not valid J",
    ),
    "arguments that are a list": (
        lambda f: (f / "model_config.json").write_text("[]"),
        "holds list, expected an object",
    ),
}


@pytest.mark.parametrize("how", BAD)
def test_a_bad_folder_is_one_sentence_before_a_model_is_built(
    how: str, folder: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    damage, message = BAD[how]
    damage(folder)

    def never(*arguments: Any, **more: Any) -> None:
        raise AssertionError("a model was built")

    monkeypatch.setattr(GlmLikeModel, "__init__", never)
    with pytest.raises((ConfigError, CheckpointError), match=message) as refused:
        GlmLikeForCausalLM.from_pretrained(folder)
    assert "\n" not in str(refused.value)
    before = set(tmp_path.rglob("*"))
    with pytest.raises((ConfigError, CheckpointError), match=message):
        glmlike.convert(folder, tmp_path / "out", to="glmlike")
    assert set(tmp_path.rglob("*")) == before


def test_what_needs_files_that_transformers_opens_is_refused(golden: Path) -> None:
    for arguments, message in (
        ({"tp_plan": "auto"}, "tp_plan with a folder of rank files"),
        ({"device_map": {"": "disk"}}, "device_map with 'disk' with a folder of rank files"),
        ({"state_dict": {}}, "state_dict with a folder of rank files"),
    ):
        with pytest.raises(ConfigError, match=f"{message}.*glmlike convert .* --to glmlike"):
            GlmLikeForCausalLM.from_pretrained(golden / "glm130b", **arguments)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"to": "glm-130b", "tensor_parallel": 3}, "tensor_parallel=3: does not divide num_attention_heads=4"),
        ({"to": "glm-130b", "tensor_parallel": 0}, "tensor_parallel=0: expected a whole number from 1 to 99"),
        (
            {"to": "glmlike", "tensor_parallel": 2},
            "tensor_parallel=2 with to='glmlike': only 'glm-130b' and 'meta' have rank files",
        ),
        ({"to": "glm-130b", "max_shard_size": "1GB"}, "max_shard_size='1GB' with to='glm-130b'.*tensor_parallel"),
    ],
)
def test_options_of_the_other_kind_of_files_are_refused(
    arguments: dict[str, Any], message: str, golden: Path, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match=message):
        glmlike.convert(golden / "glm130b", tmp_path / "out", **arguments)
    assert list(tmp_path.iterdir()) == []


def test_launch_arguments_as_config_json_are_refused_by_name(folder: Path) -> None:
    (folder / "model_config.json").rename(folder / "config.json")
    with pytest.raises(ConfigError, match=r"holds the launch arguments of rank files. Name it model_config.json"):
        glmlike.detect(folder)


@pytest.mark.parametrize("kind", ["nf4", "int8"])
def test_quantized_while_loading_is_quantized_after_conversion(
    kind: str, make: Callable[..., Any], tmp_path: Path
) -> None:
    pytest.importorskip("bitsandbytes")
    from transformers import BitsAndBytesConfig

    make(SPEC.replace(hidden_size=128, intermediate_size=192, head_dim=32)).save_pretrained(tmp_path / "native")
    glmlike.convert(tmp_path / "native", tmp_path / "ranks", to="glm-130b", tensor_parallel=2)
    options = {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4"} if kind == "nf4" else {"load_in_8bit": True}
    quantization = BitsAndBytesConfig(**options)
    ids = torch.tensor([[5, 6, 92, 93, 7, 8]])
    native, ranks = (
        GlmLikeForCausalLM.from_pretrained(tmp_path / name, quantization_config=quantization, dtype="float32")
        for name in ("native", "ranks")
    )
    assert type(ranks.model.layers[0].mlp.gate_proj) is not torch.nn.Linear
    assert torch.equal(ranks(ids).logits, native(ids).logits)
