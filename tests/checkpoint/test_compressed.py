"""Folders that compressed-tensors itself compresses: read to the bits that the library itself makes of them."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

import glmlike
from glmlike import CheckpointError, GlmLikeForCausalLM
from glmlike.checkpoint.packed import PackedCheckpoint
from glmlike.checkpoint.streams import size_of, stretches
from glmlike.packed_integers import unpack_fp4, wide_scales
from specs import FAMILY, SPECS

pytest.importorskip("compressed_tensors")
from compressed_folders import RECIPES, compressed, write_compressed

IDS = torch.arange(3, 9)[None]
DOWN = "model.layers.1.mlp.down_proj."
FEW = ("int4-group-zeros", "int8-channel", "fp8-block", "nvfp4", "mixed")
Folders = Callable[[str, str], tuple[Path, Path]]


@pytest.fixture(autouse=True)
def _without_a_compiler() -> Iterator[None]:
    """The library compiles how it rounds to 4 bits; here that runs as it is written."""
    with torch._dynamo.config.patch(disable=True):
        yield


@pytest.fixture(scope="module")
def folders(make: Callable[..., Any], tmp_path_factory: pytest.TempPathFactory) -> Folders:
    """``folders(spec, recipe)``: a decoder in its published layout, compressed, and as the library reads that."""
    made: dict[str, Path] = {}

    def folders_of(name: str, recipe: str) -> tuple[Path, Path]:
        if name not in made:
            made[name] = place = tmp_path_factory.mktemp(name)
            make(SPECS[name].replace(num_hidden_layers=2, layer_types=None, sliding_window=None)).save_pretrained(
                place / "native"
            )
            glmlike.convert(place / "native", place / "foreign", to=FAMILY[name], dtype="bfloat16", verify="none")
        packed = made[name] / recipe
        if not packed.exists():
            write_compressed(made[name] / "foreign", packed, RECIPES[recipe])
        return packed / "packed", packed / "floats"

    return folders_of


@pytest.mark.parametrize("recipe", RECIPES)
def test_every_format_is_read_as_the_library_reads_it(recipe: str, folders: Folders) -> None:
    """Whole, and in stretches that end within blocks."""
    packed, floats = folders("glm-4-9b", recipe)
    found, meant = glmlike.detect(packed), load_file(floats / "model.safetensors")
    assert isinstance(found.checkpoint, PackedCheckpoint)
    assert len(found.checkpoint.matrices) == 12
    for name, tensor in meant.items():
        assert torch.equal(found.read(name), tensor), name
        stream = found.stream(name)
        buffer = bytearray(size_of(stream))
        for start, stop in stretches(stream, 7 * stream.grain):
            stream.read_into(memoryview(buffer)[start:stop], start)
        assert torch.equal(torch.frombuffer(buffer, dtype=tensor.dtype).view(tensor.shape), tensor), name


@pytest.mark.parametrize("recipe", FEW)
@pytest.mark.parametrize("name", ["chatglm2", "glm-4-0414", "chatglm-6b"])
def test_fused_folders_load_convert_and_reload(name: str, recipe: str, folders: Folders, tmp_path: Path) -> None:
    packed, floats = folders(name, recipe)
    made, meant = (GlmLikeForCausalLM.from_pretrained(folder) for folder in (packed, floats))
    assert all(torch.equal(made.state_dict()[key], tensor) for key, tensor in meant.state_dict().items())
    made.save_pretrained(tmp_path / "saved")
    assert "quantization_config" not in json.loads((tmp_path / "saved" / "config.json").read_text())
    glmlike.convert(packed, tmp_path / "converted", to="glmlike", verify="none")
    for folder in ("saved", "converted"):
        again = GlmLikeForCausalLM.from_pretrained(tmp_path / folder).state_dict()
        assert all(torch.equal(again[key], tensor) for key, tensor in meant.state_dict().items())


@pytest.mark.parametrize("recipe", ["int4-channel", "int8-tensor", "int8-channel", "fp8-tensor", "nvfp4", "mixed"])
@torch.no_grad()
def test_what_the_library_keeps_compressed_reloads_exactly(recipe: str, folders: Folders, tmp_path: Path) -> None:
    """Of matrices that are not fused; saved before and after a forward, which decompresses them."""
    packed, _ = folders("llama-3", recipe)
    model = GlmLikeForCausalLM.from_pretrained(packed).eval()
    assert model.config.quantization_config.quant_method == "compressed-tensors"
    model.save_pretrained(tmp_path / "before")
    found = model(IDS).logits
    model.save_pretrained(tmp_path / "after")
    assert torch.equal(model(IDS).logits, found)
    before, after = (glmlike.detect(tmp_path / name).checkpoint for name in ("before", "after"))
    assert isinstance(before, PackedCheckpoint)
    for name in before.matrices:
        assert torch.equal(before.read(name), after.read(name)), name
    assert torch.equal(GlmLikeForCausalLM.from_pretrained(tmp_path / "after").eval()(IDS).logits, found)


@pytest.mark.parametrize(
    ("recipe", "says"),
    [
        ("fp8-block", "compressed-tensors, 8-bit floats, blocks of 16 x 32"),
        ("fp8-tensor", "compressed-tensors, 8-bit floats, one scale for all"),
        ("nvfp4", "compressed-tensors, 4-bit floats, groups of 16"),
        ("int8-channel", "compressed-tensors, 8 bits, groups of whole rows"),
        ("mixed", "compressed-tensors, 8-bit floats, groups of whole rows or 4-bit floats, groups of 16"),
    ],
)
def test_what_was_read_is_said(recipe: str, says: str, folders: Folders) -> None:
    assert f"({says})" in glmlike.detect(folders("glm-4-9b", recipe)[0]).notes[0]


def test_what_stands_beside_and_is_not_needed_is_set_aside(folders: Folders, tmp_path: Path) -> None:
    """Static scales of activations and of a cache of 8 bits; what is left out is said."""
    packed, floats = folders("glm-4-9b", "fp8-tensor")
    tensors = load_file(packed / "model.safetensors")
    assert f"{DOWN}input_scale" in tensors
    scales = {f"model.layers.{layer}.self_attn.{which}_scale": torch.ones(1) for layer in (0, 1) for which in "kv"}
    save_file({**tensors, **scales}, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_bytes((packed / "config.json").read_bytes())
    found = glmlike.detect(tmp_path)
    assert any("rounds what goes into these matrices: that is left out" in note for note in found.notes)
    assert "4 scales for a cache of 8 bits are left out" in found.notes
    assert torch.equal(found.read(f"{DOWN}weight"), load_file(floats / "model.safetensors")[f"{DOWN}weight"])


@pytest.mark.parametrize(
    ("recipe", "part", "tensor", "says"),
    [
        ("nvfp4", "weight_global_scale", None, f"no file holds '{DOWN}weight_global_scale', but there is"),
        (
            "nvfp4",
            "weight_scale",
            torch.ones(64, 6),
            r"'F32 \[64, 6\]'.*4-bit floats, groups of 16 makes them .*F8_E4M3",
        ),
        ("mxfp4", "weight_scale", torch.ones(64, 3).bfloat16(), r"'weight_scale': 'BF16 \[64, 3\]'.*'U8 \[64, 3\]'"),
        ("fp8-block", "weight_scale", torch.ones(64, 1).bfloat16(), r"blocks of 16 x 32 makes .*\[4, 3\]"),
        ("int8-tensor", "weight_scale", torch.ones(64, 1).bfloat16(), "one scale for all makes them"),
    ],
)
def test_damaged_matrices_are_named(
    recipe: str, part: str, tensor: torch.Tensor | None, says: str, folders: Folders, tmp_path: Path
) -> None:
    packed, _ = folders("glm-4-9b", recipe)
    tensors = {**load_file(packed / "model.safetensors"), DOWN + part: tensor}
    save_file({k: v for k, v in tensors.items() if v is not None}, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_bytes((packed / "config.json").read_bytes())
    with pytest.raises(CheckpointError, match=says):
        glmlike.detect(tmp_path)


def test_all_bytes_of_small_floats_and_exponents() -> None:
    """Against the library's own tables, every value that a byte can have but the exponent of infinity."""
    from compressed_tensors.compressors.mx_utils import decompress_mx_scale
    from compressed_tensors.compressors.nvfp4.helpers import unpack_fp4_from_uint8

    every = torch.arange(256, dtype=torch.uint8)
    assert torch.equal(unpack_fp4(every[None]), unpack_fp4_from_uint8(every[None], 1, 512, torch.float32))
    assert torch.equal(wide_scales(every[:255]), decompress_mx_scale(every[:255]).float())


def test_a_scheme_of_other_matrices_does_not_disturb(folders: Folders) -> None:
    """In a folder of two formats each matrix is read by the one that fits its tensors."""
    packed, _ = folders("glm-4-9b", "mixed")
    found = glmlike.detect(packed).checkpoint
    assert isinstance(found, PackedCheckpoint)
    kinds = {name: matrix.packing for name, matrix in found.matrices.items()}
    assert {kind for name, kind in kinds.items() if "down_proj" in name} == {"plain"}
    assert {kind for name, kind in kinds.items() if "down_proj" not in name} == {"fp4"}
    stored, read = compressed(torch.ones(16, 32).bfloat16(), *RECIPES["mixed"].schemes()[0])
    assert stored["weight"].dtype == torch.float8_e4m3fn
    assert torch.equal(read, torch.ones(16, 32).bfloat16())
