"""GGUF out and in: bit for bit in floats, gguf's own blocks in integers, tokenizers that give the same ids."""

from __future__ import annotations

import base64
import json
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer

import glmlike
from gguf_sources import LINES, SPECIALS, TEMPLATE, save_tokenizer, train_bytes, write_folder
from glmlike.checkpoint import convert, detect, gguf_vocabulary, memory, verify
from glmlike.checkpoint.formats.llama_cpp import ARCHITECTURES, table
from glmlike.checkpoint.gguf import GgufDtype, detect_gguf, read_gguf, write_gguf
from glmlike.checkpoint.gguf_fields import architecture_of
from glmlike.checkpoint.gguf_reading import gguf_table
from glmlike.checkpoint.native import native_shapes
from glmlike.checkpoint.rules import by_native, plan
from glmlike.errors import CannotExpressError, CheckpointError, GlmLikeError
from glmlike.published import PUBLISHED
from glmlike.spec import DecoderSpec
from specs import SPECS

gguf = pytest.importorskip("gguf")

EXPRESSIBLE = {
    **dict.fromkeys(("chatglm2", "chatglm2-32k", "chatglm3-32k", "glm-4-9b", "glm-edge", "tied-recipe"), "chatglm"),
    **dict.fromkeys(("glm-4-0414", "glm-z1-32b"), "glm4"),
    **dict.fromkeys(("llama-3", "llama-3.1", "llama-3.2", "llama-biased"), "llama"),
    **dict.fromkeys(("qwen2.5", "qwen2.5-tied"), "qwen2"),
}
FLOATS: dict[GgufDtype, torch.dtype] = {"f32": torch.float32, "f16": torch.float16, "bf16": torch.bfloat16}
BLOCKS: tuple[GgufDtype, ...] = ("q8_0", "q5_1", "q5_0", "q4_1", "q4_0")
TEXTS = (
    *LINES,
    "",
    "a",
    "  two leading",
    "x\r\n\r\ny",
    "7 77 777 7777 77777",
    "It'S I'LL",
    "<|user|>\nhi<|assistant|>",
)


@st.composite
def random_specs(draw: st.DrawFn) -> DecoderSpec:
    architecture = draw(st.sampled_from(ARCHITECTURES))
    halves = architecture in ("llama", "qwen2")
    kv_heads, head_dim = draw(st.integers(1, 3)), draw(st.sampled_from([4, 8, 12]))
    heads = kv_heads * draw(st.integers(1, 3))
    free = architecture in ("glm4", "llama")
    output = architecture == "llama" and draw(st.booleans())
    scaling: Any = draw(
        st.sampled_from(
            [
                {"rope_type": "default"},
                {"rope_type": "linear", "factor": 2.5},
                {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64},
                {"rope_type": "yarn", "factor": 3.0, "attention_factor": 1.3, "beta_fast": 32.0},
                *([dict(SPECS["llama-3.1"].rope_scaling)] if architecture == "llama" else []),
            ]
        )
    )
    return DecoderSpec(
        vocab_size=draw(st.integers(1, 20)),
        hidden_size=draw(st.integers(1, 40)) if free else heads * head_dim,
        intermediate_size=draw(st.integers(1, 40)),
        num_hidden_layers=draw(st.integers(1, 3)),
        num_attention_heads=heads,
        num_key_value_heads=kv_heads,
        head_dim=head_dim,
        norm_eps=draw(st.sampled_from([1e-5, 1e-6, 1.5625e-7])),
        residual="sandwich" if architecture == "glm4" else "pre",
        rotary_pairing="halves" if halves else "interleaved",
        partial_rotary_factor=1.0 if halves else draw(st.sampled_from([0.5, 1.0])),
        rope_theta=draw(st.sampled_from([10_000.0, 5e6, 12_345.678])),
        rope_scaling=scaling,
        qkv_bias=architecture == "qwen2" or output or draw(st.booleans()),
        output_bias=output,
        mlp_bias=architecture == "llama" and draw(st.booleans()),
        tie_word_embeddings=draw(st.booleans()),
    )


@settings(max_examples=20, suppress_health_check=[HealthCheck.too_slow], deadline=None)
@given(random_specs(), st.sampled_from(sorted(FLOATS)))
def test_out_and_in_is_bit_exact(spec: DecoderSpec, dtype: GgufDtype) -> None:
    with TemporaryDirectory() as place:
        source = write_folder(Path(place) / "source", spec, FLOATS[dtype])
        report = write_gguf(source, Path(place) / "model.gguf", dtype=dtype)
        assert not any("rounded" in note for note in report.notes)
        found = detect_gguf(Path(place) / "model.gguf")
        assert found.spec.differences(spec) == {}
        assert verify(source, Path(place) / "model.gguf") == len(native_shapes(spec))
        read_gguf(Path(place) / "model.gguf", Path(place) / "back")
        assert verify(source, Path(place) / "back") == len(native_shapes(spec))
        assert [path.name for path in Path(place).iterdir() if path.name.startswith(".")] == []


@pytest.mark.parametrize("name", EXPRESSIBLE)
def test_names_and_shapes_are_llama_cpps(name: str, tmp_path: Path) -> None:
    """gguf's own map of Hugging Face names says the same names, where q, k and v are not fused."""
    spec, architecture = SPECS[name], EXPRESSIBLE[name]
    assert architecture_of(spec) == architecture
    arch = next(arch for arch, text in gguf.MODEL_ARCH_NAMES.items() if text == architecture)
    names = gguf.get_tensor_name_map(arch, spec.num_hidden_layers)
    steps = list(plan(table(spec, architecture, fused=()), {"layer": range(spec.num_hidden_layers)}))
    for native, step in by_native(steps).items():
        if len(step.native) == 1:
            assert (names.get_name(native, (".weight", ".bias")),) == step.foreign
    report = write_gguf(write_folder(tmp_path / "source", spec), tmp_path / "model.gguf", dtype="f32")
    reader = gguf.GGUFReader(tmp_path / "model.gguf")
    assert len(reader.tensors) == report.tensors
    assert sum(int(tensor.n_bytes) for tensor in reader.tensors) == report.bytes
    if architecture == "chatglm":
        shapes = {tensor.name: tensor.shape.tolist() for tensor in reader.tensors}
        assert shapes["blk.0.attn_qkv.weight"] == [spec.hidden_size, spec.query_size + 2 * spec.key_value_size]
        assert shapes["blk.0.ffn_up.weight"] == [spec.hidden_size, 2 * spec.intermediate_size]


@pytest.mark.parametrize("name", sorted(set(SPECS) - set(EXPRESSIBLE)))
def test_what_llama_cpp_cannot_compute_is_refused(name: str, tmp_path: Path) -> None:
    source = write_folder(tmp_path / "source", SPECS[name])
    with pytest.raises(CannotExpressError, match=r"cannot express .*\(.*\).*(another format|transformers)"):
        write_gguf(source, tmp_path / "model.gguf")
    assert [path.name for path in tmp_path.iterdir()] == ["source"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"hidden_size": 60}, "4 heads of 16 beside hidden_size=60"),
        ({"output_bias": True}, "output_bias=True"),
        ({"rope_scaling": {"rope_type": "dynamic", "factor": 2.0}}, "rope_type='dynamic'"),
        ({"rope_scaling": {"rope_type": "yarn", "factor": 2.0, "beta_fast": 16}}, "yarn with beta_fast=16"),
        ({"rotary_pairing": "halves"}, "partial_rotary_factor=0.5 with rotary_pairing='halves'"),
        ({"max_position_embeddings": 2**32}, "a 32-bit field"),
    ],
)
def test_each_obstacle_is_named(change: dict[str, Any], message: str) -> None:
    with pytest.raises(CannotExpressError, match=message):
        architecture_of(SPECS["chatglm2"].replace(**change))


def test_every_published_decoder_is_one_architecture_or_refused_for_its_mask() -> None:
    for name, published in PUBLISHED.items():
        if published.spec.attention_mask == "prefix":
            with pytest.raises(CannotExpressError, match="attention_mask"):
                architecture_of(published.spec)
        elif published.spec.layer_types is None and not published.spec.prefix_length:
            assert architecture_of(published.spec) in ARCHITECTURES, name


@pytest.mark.parametrize("dtype", BLOCKS)
@pytest.mark.parametrize("name", ["chatglm2", "llama-3.2"])
def test_blocks_are_what_gguf_itself_quantizes(
    dtype: GgufDtype, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(memory, "_LARGEST_CHUNK", 5 * 70)  # a few rows of 64 at a time
    monkeypatch.setattr(memory, "_SMALLEST_CHUNK", 5 * 70)
    spec = SPECS[name].replace(intermediate_size=80)  # no multiple of 32: ffn_down falls back
    source = write_folder(tmp_path / "source", spec)
    report = write_gguf(source, tmp_path / "model.gguf", dtype=dtype)
    native = load_file(source / "model.safetensors")
    expected: dict[str, torch.Tensor] = {}
    for step in gguf_table(architecture_of(spec), spec).steps(spec):
        expected |= zip(step.foreign, step.layout.to_foreign([native[name] for name in step.native]), strict=True)
    head = "token_embd.weight" if spec.tie_word_embeddings else "output.weight"
    for tensor in gguf.GGUFReader(tmp_path / "model.gguf").tensors:
        whole = expected[tensor.name].contiguous().numpy()
        kind = "F32" if whole.ndim == 1 else dtype.upper()
        if "ffn_down" in tensor.name:
            kind = "F16"
        elif tensor.name == head:
            kind = "Q8_0"
        assert tensor.tensor_type.name == kind, tensor.name
        assert tensor.data.tobytes() == gguf.quants.quantize(whole, tensor.tensor_type).tobytes()
    assert any("3 matrices are f16: 32 does not divide" in note for note in report.notes)
    assert any("the output matrix is q8_0" in note for note in report.notes) == (dtype != "q8_0")
    back = read_gguf(tmp_path / "model.gguf", tmp_path / "back")
    assert any("dequantized to float32" in note for note in back.notes)
    found = load_file(tmp_path / "back" / "model.safetensors")
    for key, tensor in native.items():
        step = {"q8_0": 127, "q5_1": 31, "q5_0": 16, "q4_1": 15, "q4_0": 8}[dtype]
        assert (found[key] - tensor).abs().max() <= 2 * tensor.abs().max() / step, key


def test_every_type_gguf_decodes_is_read(tmp_path: Path) -> None:
    """K-quants are only ever read: blocks of a scale of zero decode to zeros."""
    spec = SPECS["llama-3"].replace(hidden_size=256, head_dim=64, intermediate_size=256)
    source = write_folder(tmp_path / "source", spec)
    write_gguf(source, tmp_path / "f32.gguf", dtype="f32")
    reader = gguf.GGUFReader(tmp_path / "f32.gguf")
    writer = gguf.GGUFWriter(tmp_path / "q6_k.gguf", "llama")
    for key, entry in reader.fields.items():
        if not key.startswith("GGUF.") and key != "general.architecture":
            writer.add_key_value(key, entry.contents(), entry.types[0], entry.types[-1])
    kind = gguf.GGMLQuantizationType.Q6_K
    for tensor in reader.tensors:
        data = tensor.data
        if data.ndim == 2:
            data = torch.zeros(gguf.quant_shape_to_byte_shape(data.shape, kind), dtype=torch.uint8).numpy()
        writer.add_tensor(tensor.name, data, raw_dtype=kind if tensor.data.ndim == 2 else None)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    report = read_gguf(tmp_path / "q6_k.gguf", tmp_path / "back", dtype="bfloat16")
    assert report.notes[0] == "dequantized to bfloat16: 23 Q6_K"
    found = load_file(tmp_path / "back" / "model.safetensors")
    assert found["lm_head.weight"].dtype == torch.bfloat16
    assert not found["lm_head.weight"].any()


def test_floats_beyond_float16_are_refused_and_nothing_is_left(tmp_path: Path) -> None:
    source = write_folder(tmp_path / "source", SPECS["glm-4-9b"], torch.bfloat16)
    tensors = load_file(source / "model.safetensors")
    tensors["lm_head.weight"][3, 5] = 1e6
    save_file(tensors, source / "model.safetensors")
    with pytest.raises(CheckpointError, match="'lm_head.weight': 1 numbers .* do not fit in float16.*Choose bfloat16"):
        write_gguf(source, tmp_path / "model.gguf", dtype="f16")
    assert [path.name for path in tmp_path.iterdir()] == ["source"]
    report = glmlike.convert(source, tmp_path / "model.gguf", to="gguf")  # the source's own type
    assert not any("rounded" in note for note in report.notes)
    verify(source, tmp_path / "model.gguf")


def test_norms_that_float16_cannot_hold_keep_the_file_in_float32(tmp_path: Path) -> None:
    source = write_folder(tmp_path / "source", SPECS["glm-4-9b"])
    report = write_gguf(source, tmp_path / "model.gguf", dtype="f16")
    assert "matrices of F32 are rounded to f16" in report.notes
    read_gguf(tmp_path / "model.gguf", tmp_path / "back")
    before, after = (load_file(tmp_path / name / "model.safetensors") for name in ("source", "back"))
    assert torch.equal(before["model.norm.weight"], after["model.norm.weight"])


def test_every_door_knows_gguf(tmp_path: Path) -> None:
    source = write_folder(tmp_path / "source", SPECS["qwen2.5"], torch.bfloat16)
    convert(source, tmp_path / "hub", to="qwen2")
    report = convert(tmp_path / "hub", tmp_path / "model.gguf", to="gguf")
    assert (report.source_format, report.target_format) == ("qwen2", "gguf")
    found = detect(tmp_path / "model.gguf")
    assert (found.format, found.config["dtype"], found.config["eos_token_id"]) == ("gguf", "bfloat16", [0, 3, 5])
    convert(tmp_path / "model.gguf", tmp_path / "back", to="qwen2")
    assert verify(source, tmp_path / "back") == verify(tmp_path / "model.gguf", tmp_path / "hub")
    for arguments, message in (
        ({"dst": "model.gguf", "to": "gguf"}, "exists already"),
        ({"dst": "model.bin", "to": "gguf"}, "ends in .gguf"),
        ({"dst": "new.gguf", "to": "gguf", "dtype": "q4_k"}, "run llama.cpp's llama-quantize"),
        ({"dst": "new", "to": "glmlike", "dtype": "f16"}, "expected one of float32"),
        ({"src": "model.gguf", "dst": "new.gguf", "to": "gguf"}, "is GGUF already"),
        ({"src": "model.gguf", "dst": "new", "to": "glm-130b"}, "cannot express"),
        ({"src": "model.gguf", "dst": "new", "to": "glmlike", "dtype": "f16"}, "expected one of float32"),
        ({"src": "model.gguf", "dst": "new", "to": "llama"}, "cannot express"),
    ):
        known: dict[str, Any] = {"src": "source", **arguments}
        src, dst = tmp_path / known.pop("src"), tmp_path / known.pop("dst")
        with pytest.raises(GlmLikeError, match=message):
            convert(src, dst, **known)
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize("pre", ["chatglm-bpe", "glm4", "llama-bpe", "qwen2", "gpt-2", "smollm"])
def test_byte_level_tokenizers_come_back(pre: str, tmp_path: Path) -> None:
    name = "llama-3" if pre in ("llama-bpe", "smollm", "gpt-2") else "qwen2.5" if pre == "qwen2" else "glm-4-9b"
    tokenizer = train_bytes(pre)
    source = write_folder(tmp_path / "source", SPECS[name].replace(vocab_size=tokenizer.get_vocab_size() + 9))
    save_tokenizer(source, tokenizer, bos=SPECIALS[1] if pre == "llama-bpe" else None)
    write_gguf(source, tmp_path / "model.gguf", dtype="f32")
    fields = {key: entry.contents() for key, entry in gguf.GGUFReader(tmp_path / "model.gguf").fields.items()}
    assert fields["tokenizer.ggml.pre"] == pre
    assert fields["tokenizer.ggml.add_bos_token"] == (pre == "llama-bpe")
    assert [fields[f"tokenizer.ggml.{end}_token_id"] for end in ("eos", "eot", "eom")] == [0, 3, 5]
    assert len(fields["tokenizer.ggml.tokens"]) == tokenizer.get_vocab_size() + 9
    assert fields["tokenizer.ggml.tokens"][-1] == f"[PAD{tokenizer.get_vocab_size() + 8}]"
    assert fields["tokenizer.ggml.token_type"][:6] == [gguf_vocabulary.CONTROL] * 6
    report = read_gguf(tmp_path / "model.gguf", tmp_path / "back")
    assert report.notes == ("the source was itself converted, from source (glmlike): see its metadata",)
    back = Tokenizer.from_file(str(tmp_path / "back" / "tokenizer.json"))
    assert back.get_vocab() == tokenizer.get_vocab()
    for text in TEXTS:
        assert back.encode(text).ids == tokenizer.encode(text).ids
        assert back.decode(back.encode(text).ids) == tokenizer.decode(tokenizer.encode(text).ids)
    assert (tmp_path / "back" / "chat_template.jinja").read_text() == TEMPLATE
    generation = json.loads((tmp_path / "back" / "generation_config.json").read_text())
    assert generation["eos_token_id"] == [0, 3, 5]


def test_the_token_in_front_is_the_tokenizers_whatever_config_json_says(tmp_path: Path) -> None:
    tokenizer = train_bytes("llama-bpe")
    source = write_folder(tmp_path / "source", SPECS["llama-3"].replace(vocab_size=tokenizer.get_vocab_size()))
    save_tokenizer(source, tokenizer, bos=SPECIALS[1])
    config = json.loads((source / "config.json").read_text())
    (source / "config.json").write_text(json.dumps({**config, "bos_token_id": 2}))
    write_gguf(source, tmp_path / "model.gguf")
    fields = gguf.GGUFReader(tmp_path / "model.gguf").fields
    assert fields["tokenizer.ggml.bos_token_id"].contents() == 1


def test_the_rebuilt_tokenizer_loads_in_transformers(tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    tokenizer = train_bytes("glm4")
    source = write_folder(tmp_path / "source", SPECS["glm-4-9b"].replace(vocab_size=tokenizer.get_vocab_size()))
    write_gguf(save_tokenizer(source, tokenizer), tmp_path / "model.gguf")
    read_gguf(tmp_path / "model.gguf", tmp_path / "back")
    loaded = AutoTokenizer.from_pretrained(tmp_path / "back")
    ids = loaded.apply_chat_template([{"role": "user", "content": LINES[1]}], return_dict=False)
    assert ids == tokenizer.encode(f"[gMASK]<sop><|user|>\n{LINES[1]}<|assistant|>").ids
    assert loaded.eos_token == SPECIALS[0]


def test_tiktoken_ranks_give_the_ids_of_their_merges(tmp_path: Path) -> None:
    """The folder of a GLM-4-9B as published: ranks in tokenizer.model, special tokens in tokenizer_config.json."""
    tokenizer = train_bytes("glm4")
    letters = {letter: byte for byte, letter in gguf_vocabulary._byte_letters().items()}
    ordered = sorted((n, text) for text, n in tokenizer.get_vocab().items() if text not in SPECIALS)
    spelt = [bytes(letters[letter] for letter in text) for _, text in ordered]
    spelt.sort(key=lambda token: len(token) > 1)  # single bytes first, as tiktoken trains them
    rows = len(spelt) + len(SPECIALS)
    source = write_folder(tmp_path / "source", SPECS["glm-4-9b"].replace(vocab_size=rows))
    (source / "tokenizer.model").write_bytes(
        b"".join(b"%s %d\n" % (base64.b64encode(token), rank) for rank, token in enumerate(spelt))
    )
    decoder = {str(len(spelt) + i): {"content": text, "special": True} for i, text in enumerate(SPECIALS)}
    (source / "tokenizer_config.json").write_text(json.dumps({"added_tokens_decoder": decoder}))
    write_gguf(source, tmp_path / "model.gguf")
    read_gguf(tmp_path / "model.gguf", tmp_path / "back")
    back = Tokenizer.from_file(str(tmp_path / "back" / "tokenizer.json"))
    for text in LINES:
        found = [spelt[number] for number in back.encode(text).ids]
        assert b"".join(found) == text.encode()
        assert found == [bytes(letters[letter] for letter in token) for token in tokenizer.encode(text).tokens]
    assert back.encode("<|user|>").ids == [len(spelt) + 3]


def train_pieces(folder: Path, kind: str = "bpe") -> Any:
    sentencepiece = pytest.importorskip("sentencepiece")
    sentencepiece.SentencePieceTrainer.Train(
        sentence_iterator=iter(LINES * 3),
        model_writer=(model := (folder / "tokenizer.model").open("wb")),
        model_type=kind,
        vocab_size=400 if kind == "bpe" else 80,
        hard_vocab_limit=False,
        byte_fallback=kind == "bpe",
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        minloglevel=2,
    )
    model.close()
    return sentencepiece.SentencePieceProcessor(model_file=str(folder / "tokenizer.model"))


@pytest.mark.parametrize("generation", ["chatglm2", "chatglm3"])
def test_sentencepiece_comes_back_with_chatglms_special_tokens(generation: Any, tmp_path: Path) -> None:
    source = write_folder(tmp_path / "source", SPECS["chatglm2"].replace(vocab_size=480))
    pieces = train_pieces(source)
    (source / "chat_template.jinja").write_text(template := "[gMASK]sop{{ messages[0].content }}")
    first = pieces.vocab_size()
    report = write_gguf(source, tmp_path / "model.gguf", generation=generation)
    assert any("sop and eop are <sop> and <eop> in the file" in note for note in report.notes)
    fields = {key: entry.contents() for key, entry in gguf.GGUFReader(tmp_path / "model.gguf").fields.items()}
    assert fields["tokenizer.ggml.model"] == "llama"
    assert fields["tokenizer.ggml.add_bos_token"] is False
    assert fields["tokenizer.ggml.add_space_prefix"] is True
    assert fields["tokenizer.ggml.scores"][first - 1] == pieces.GetScore(first - 1)
    assert fields["tokenizer.ggml.tokens"][first : first + 5] == ["[MASK]", "[gMASK]", "[sMASK]", "<sop>", "<eop>"]
    assert fields["tokenizer.chat_template"] == "[gMASK]<sop>{{ messages[0].content }}"
    roles = fields["tokenizer.ggml.tokens"][first + 5 : first + 9]
    assert (roles[0] == "<|system|>") == (generation == "chatglm3")
    read_gguf(tmp_path / "model.gguf", tmp_path / "back")
    back = Tokenizer.from_file(str(tmp_path / "back" / "tokenizer.json"))
    for text in TEXTS[:-1]:
        assert back.encode(text, add_special_tokens=False).ids == pieces.Encode(text), text
    assert back.token_to_id("sop") == first + 3
    assert (tmp_path / "back" / "chat_template.jinja").read_text() == template
    # And from tokenizer.json, whose merges stand in for the scores:
    (source / "tokenizer.model").unlink()
    (source / "tokenizer.json").write_bytes((tmp_path / "back" / "tokenizer.json").read_bytes())
    write_gguf(source, tmp_path / "again.gguf")
    read_gguf(tmp_path / "again.gguf", tmp_path / "back2")
    again = Tokenizer.from_file(str(tmp_path / "back2" / "tokenizer.json"))
    for text in TEXTS:
        assert again.encode(text).ids == back.encode(text).ids


def test_tokenizers_that_llama_cpp_has_not_are_refused(tmp_path: Path) -> None:
    source = write_folder(tmp_path / "source", SPECS["chatglm2"].replace(vocab_size=480))
    train_pieces(source, "unigram")
    with pytest.raises(CheckpointError, match="a unigram vocabulary"):
        write_gguf(source, tmp_path / "model.gguf")
    (source / "tokenizer.model").write_bytes(b"\x00not a model")
    with pytest.raises(CheckpointError, match="neither SentencePiece nor tiktoken ranks"):
        write_gguf(source, tmp_path / "model.gguf")
    (source / "tokenizer.model").unlink()
    fields = json.loads(train_bytes("glm4").to_str())
    fields["pre_tokenizer"] = {"type": "Whitespace"}
    (source / "tokenizer.json").write_text(json.dumps(fields))
    with pytest.raises(CheckpointError, match="no name that this package knows for its pre_tokenizer"):
        write_gguf(source, tmp_path / "model.gguf")
    assert not (tmp_path / "model.gguf").exists()
    write_gguf(source, tmp_path / "named.gguf", pre_tokenizer="falcon")
    report = read_gguf(tmp_path / "named.gguf", tmp_path / "back")
    assert report.notes[0] == "tokenizer 'gpt2' with words 'falcon': tokenizer.json is not rebuilt"
    assert not (tmp_path / "back" / "tokenizer.json").exists()
    write_gguf(source, tmp_path / "ids.gguf", with_tokenizer=False)
    small = write_folder(tmp_path / "small", SPECS["chatglm2"])
    save_tokenizer(small, train_bytes("glm4"))
    with pytest.raises(CheckpointError, match="but the embedding has 96 rows"):
        write_gguf(small, tmp_path / "model.gguf")


def test_damaged_and_foreign_files_are_named(tmp_path: Path) -> None:
    source = write_folder(tmp_path / "source", SPECS["glm-4-0414"])
    write_gguf(source, tmp_path / "model.gguf", dtype="q8_0")
    whole = (tmp_path / "model.gguf").read_bytes()
    bad = tmp_path / "bad.gguf"
    for content, message in (
        (b"", "not a GGUF file, or damaged"),
        (b"GGUF", "not a GGUF file, or damaged"),
        (whole[: len(whole) // 2], "damaged"),
        (whole[:200], "damaged"),
        (whole.replace(b"blk.1.attn_k.weight", b"blk.1.attn_x.weight"), "blk.1.attn_k.weight"),
        (whole.replace(b"glm4", b"gpt2", 1), "general.architecture='gpt2': expected one of chatglm"),
        (whole.replace(b"glm4.attention.head_count_kv", b"glm4.attention.head_count_kx"), "shape"),
        (b"version https://git-lfs.github.com/spec/v1\n", "Git LFS pointer"),
    ):
        bad.write_bytes(content)
        with pytest.raises(CheckpointError, match=message):
            detect_gguf(bad)
    with pytest.raises(CheckpointError, match="not there"):
        detect(tmp_path / "absent.gguf")
