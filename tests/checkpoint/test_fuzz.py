"""Damaged files of every kind end in our errors: no crash, no hang, no changed tensor that its file has a hash of."""

from __future__ import annotations

import io
import json
import random
import shutil
import time
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from glmlike import convert
from glmlike.checkpoint.convert import fingerprint
from glmlike.checkpoint.native import native_shapes
from glmlike.errors import GlmLikeError
from glmlike.hub_json import Format, write_config
from glmlike.spec import DecoderSpec
from packed_folders import Kind, write_packed
from specs import SPECS

_SMALL = {"vocab_size": 6, "hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "head_dim": 4}
LLAMA = SPECS["llama-3"].replace(**_SMALL, num_attention_heads=2, num_key_value_heads=2)
GLM_130B = SPECS["glm-130b"].replace(**_SMALL, num_attention_heads=2, num_key_value_heads=2, residual_scale=2**0.5)
CHATGLM = SPECS["chatglm2"].replace(**_SMALL, num_attention_heads=2, num_key_value_heads=2)


def _native(folder: Path, spec: DecoderSpec, fmt: Format) -> dict[str, torch.Tensor]:
    """A folder of random numbers, with the config of its format and no weights yet."""
    generator = torch.Generator().manual_seed(0)
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(write_config(spec, fmt)))
    return {name: torch.randn(shape, generator=generator).half() for name, shape in native_shapes(spec).items()}


def safetensors(folder: Path) -> None:
    save_file(_native(folder, LLAMA, "llama"), folder / "model.safetensors")


def torch_file(folder: Path) -> None:
    torch.save(_native(folder, LLAMA, "llama"), folder / "pytorch_model.bin")


def _indexed(folder: Path, save: Callable[[dict[str, torch.Tensor], Path], None], name: str, ending: str) -> None:
    tensors, weight_map = list(_native(folder, LLAMA, "llama").items()), {}
    for number in range(2):
        part = dict(tensors[number::2])
        save(part, folder / f"{number}.{ending}")
        weight_map.update(dict.fromkeys(part, f"{number}.{ending}"))
    (folder / f"{name}.{ending}.index.json").write_text(json.dumps({"weight_map": weight_map}))


def safetensors_shards(folder: Path) -> None:
    _indexed(folder, save_file, "model", "safetensors")


def torch_shards(folder: Path) -> None:
    _indexed(folder, torch.save, "pytorch_model", "bin")


def fused(folder: Path) -> None:
    save_file(_native(folder / "native", CHATGLM, "glmlike"), folder / "native" / "model.safetensors")
    convert(folder / "native", folder / "fused", to="chatglm")
    _only(folder, "fused")


def _ranks(folder: Path, spec: DecoderSpec, to: Format) -> None:
    save_file(_native(folder / "native", spec, "glmlike"), folder / "native" / "model.safetensors")
    convert(folder / "native", folder / "ranks", to=to, tensor_parallel=2)
    _only(folder, "ranks")


def _only(folder: Path, name: str) -> None:
    shutil.rmtree(folder / "native")
    for path in (folder / name).iterdir():
        path.rename(folder / path.name)
    (folder / name).rmdir()


def glm_130b(folder: Path) -> None:
    _ranks(folder, GLM_130B, "glm-130b")


def meta(folder: Path) -> None:
    _ranks(folder, LLAMA, "meta")


def gptq(folder: Path) -> None:
    save_file(_native(folder / "native", LLAMA, "llama"), folder / "native" / "model.safetensors")
    write_packed(folder / "native", folder, Kind("gptq", size=4, act_order=True))
    shutil.rmtree(folder / "floats")
    _only(folder, "packed")


KINDS = (safetensors, safetensors_shards, torch_file, torch_shards, fused, glm_130b, meta, gptq)
_EXTREMES = (0, 1, 2**15, 2**16 - 1, 2**31 - 1, 2**32 - 1, 2**63 - 1, 2**64 - 1)


def damage(raw: bytes, chance: random.Random) -> bytes:
    """One to three changes: bits, bytes, numbers, digits, stretches lost, doubled, moved or cut off."""
    found = bytearray(raw)
    for _ in range(chance.choice((1, 1, 1, 2, 3))):
        size = len(found)
        if not size:
            break
        at, length = chance.randrange(size), chance.choice((1, 2, 4, 8, chance.randrange(1, size + 1)))
        match chance.randrange(8):
            case 0:
                found[at] ^= 1 << chance.randrange(8)
            case 1:
                found[at] = chance.randrange(256)
            case 2:
                width = chance.choice((2, 4, 8))
                found[at : at + width] = (chance.choice(_EXTREMES) % 2 ** (8 * width)).to_bytes(width, "little")
            case 3:
                del found[at : at + length]
            case 4:
                found[at:at] = found[at : at + length]
            case 5:
                other = chance.randrange(size)
                found[at : at + length], found[other : other + length] = (
                    found[other : other + length],
                    found[at : at + length],
                )
            case 6:
                del found[at:]
            case 7:
                digits = [position for position, byte in enumerate(found) if 48 <= byte <= 57]
                if digits:
                    at = chance.choice(digits)
                    found[at : at + 1] = chance.choice((b"-1", b"0", b"9" * 20, b"1e999", b"null", b"[[", b'"'))
    return bytes(found)


def damage_inside(raw: bytes, path: Path, chance: random.Random) -> bytes:
    """Change what a file says and keep it whole around that: the pickle of a zip, the header of a safetensors file."""
    if path.suffix == ".safetensors":
        length = int.from_bytes(raw[:8], "little")
        header = damage(raw[8 : 8 + length], chance)
        return len(header).to_bytes(8, "little") + header + raw[8 + length :]
    out = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(raw)) as old, zipfile.ZipFile(out, "w", zipfile.ZIP_STORED) as new:
        for name in old.namelist():
            content = old.read(name)
            new.writestr(name, damage(content, chance) if name.endswith("data.pkl") else content)
    return out.getvalue()


def fuzz(kind: Callable[[Path], None], folder: Path, seed: int, count: int) -> None:
    """``count`` damaged copies of one file of a folder each, read as every command reads them."""
    kind(folder)
    chance = random.Random(f"{kind.__name__} {seed}")
    expected = fingerprint(folder)
    files = {path: path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}
    weights = [path for path in files if path.suffix in (".safetensors", ".bin", ".pt", ".pth")]
    refused = 0
    for number in range(count):
        path = chance.choice(weights if chance.random() < 0.8 else list(files))
        inside = path in weights and chance.random() < 0.5
        damaged = damage_inside(files[path], path, chance) if inside else damage(files[path], chance)
        path.write_bytes(damaged)
        started = time.process_time()
        try:
            found = fingerprint(folder)
        except GlmLikeError as error:
            refused += 1
            assert len(str(error)) < 3000
        except Exception as error:
            raise AssertionError(f"{kind.__name__} {seed}: {number}: {path.name}, inside: {inside}") from error
        else:
            hashed = path in weights and path.suffix != ".safetensors" and not inside
            assert not hashed or found == expected, f"{number}: {path.name} reads as other numbers"
        assert time.process_time() - started < 5, f"{number}: {path.name}"
        path.write_bytes(files[path])
    assert refused > count // 3
    assert fingerprint(folder) == expected


@pytest.mark.parametrize("kind", KINDS)
def test_some_damaged_files(kind: Callable[[Path], None], tmp_path: Path) -> None:
    fuzz(kind, tmp_path / "folder", 0, 60)


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_hundreds_of_damaged_files(kind: Callable[[Path], None], tmp_path: Path) -> None:
    fuzz(kind, tmp_path / "folder", 1, 400)


@pytest.mark.exhaustive
@pytest.mark.parametrize("kind", KINDS)
def test_many_damaged_files(kind: Callable[[Path], None], tmp_path: Path) -> None:
    """Over ten thousand in all."""
    fuzz(kind, tmp_path / "folder", 2, 1500)
