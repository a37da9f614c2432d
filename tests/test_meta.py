"""Meta's LLaMA folders: files written from transformers' Llama by indices, loaded, converted, written; refusals."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM

import glmlike
from glmlike import CheckpointError, ConfigError, GlmLikeForCausalLM
from glmlike.checkpoint.formats import TABLES
from glmlike.checkpoint.layouts import Neighbours, same_bits
from glmlike.errors import CannotExpressError
from glmlike.hub_json import meta, read_spec, write_config
from glmlike.published import PUBLISHED

IDS = torch.tensor([[1, 5, 7, 9, 11, 3], [2, 4, 6, 8, 10, 12]])
PARAMS: dict[str, Any] = {
    "dim": 64,
    "n_layers": 2,
    "n_heads": 4,
    "multiple_of": 32,
    "norm_eps": 1e-5,
    "rope_theta": 500_000.0,
    "vocab_size": -1,
}


def llama(key_value_heads: int = 4, tied: bool = False, vocab: int = 96) -> LlamaForCausalLM:
    """transformers' Llama of ``PARAMS``, with random numbers."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=vocab,
        hidden_size=64,
        intermediate_size=192,  # 64 * 4 * 2 / 3 = 170, up to a multiple of 32
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=key_value_heads,
        rms_norm_eps=1e-5,
        rope_parameters={"rope_type": "default", "rope_theta": 500_000.0},
        tie_word_embeddings=tied,
        max_position_embeddings=8192,
        initializer_range=0.2,
    )
    model = LlamaForCausalLM(config).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "norm" in name:
                parameter.add_(torch.randn_like(parameter) * 0.1)
    return model


def neighbours(matrix: Tensor, head_dim: int) -> Tensor:
    """The rows of each head so that a pair of angles is two rows next to each other, as Meta's files have them."""
    half, rows = head_dim // 2, []
    for head in range(0, len(matrix), head_dim):
        rows += [matrix[head + at + part * half] for at in range(half) for part in range(2)]
    return torch.stack(rows)


def rank_tensors(model: LlamaForCausalLM, rank: int, ranks: int, by_columns: bool = False) -> dict[str, Tensor]:
    """What ``consolidated.NN.pth`` of one rank holds."""
    state, heads = model.state_dict(), model.config.num_key_value_heads

    def rows(matrix: Tensor) -> Tensor:
        size = len(matrix) // ranks
        return matrix[rank * size : (rank + 1) * size].clone()

    def keys(matrix: Tensor) -> Tensor:
        if heads >= ranks:
            return rows(matrix)
        head = rank * heads // ranks  # several ranks hold the same head
        return matrix[head * 16 : (head + 1) * 16].clone()

    def columns(matrix: Tensor) -> Tensor:
        return rows(matrix.T).T.contiguous()

    embedding = state["model.embed_tokens.weight"]
    found = {
        "tok_embeddings.weight": columns(embedding) if by_columns else rows(embedding),
        "norm.weight": state["model.norm.weight"].clone(),
        "output.weight": rows(state["lm_head.weight"]),
        "rope.freqs": torch.ones(8),
    }
    for layer in range(2):
        ours, theirs = f"model.layers.{layer}.", f"layers.{layer}."
        found |= {
            f"{theirs}attention.wq.weight": rows(neighbours(state[f"{ours}self_attn.q_proj.weight"], 16)),
            f"{theirs}attention.wk.weight": keys(neighbours(state[f"{ours}self_attn.k_proj.weight"], 16)),
            f"{theirs}attention.wv.weight": keys(state[f"{ours}self_attn.v_proj.weight"]),
            f"{theirs}attention.wo.weight": columns(state[f"{ours}self_attn.o_proj.weight"]),
            f"{theirs}feed_forward.w1.weight": rows(state[f"{ours}mlp.gate_proj.weight"]),
            f"{theirs}feed_forward.w2.weight": columns(state[f"{ours}mlp.down_proj.weight"]),
            f"{theirs}feed_forward.w3.weight": rows(state[f"{ours}mlp.up_proj.weight"]),
            f"{theirs}attention_norm.weight": state[f"{ours}input_layernorm.weight"].clone(),
            f"{theirs}ffn_norm.weight": state[f"{ours}post_attention_layernorm.weight"].clone(),
        }
    return found


def write(folder: Path, model: LlamaForCausalLM, ranks: int, by_columns: bool = False, **params: Any) -> Path:
    folder.mkdir()
    for rank in range(ranks):
        torch.save(rank_tensors(model, rank, ranks, by_columns), folder / f"consolidated.{rank:02d}.pth")
    heads = model.config.num_key_value_heads
    (folder / "params.json").write_text(json.dumps({**PARAMS, "n_kv_heads": heads, **params}))
    return folder


@pytest.mark.parametrize("by_columns", [False, True])
@pytest.mark.parametrize(("ranks", "heads"), [(1, 4), (2, 2), (4, 4), (4, 2)])
@torch.no_grad()
def test_logits_and_bits_of_any_ranks(ranks: int, heads: int, by_columns: bool, tmp_path: Path) -> None:
    """Read on the fly and converted: transformers' logits; and every tensor to the bit."""
    model = llama(heads)
    model.save_pretrained(tmp_path / "hub")
    folder = write(tmp_path / "meta", model, ranks, by_columns)
    found = glmlike.detect(folder)
    assert (found.format, found.spec, found.said_by) == ("meta", glmlike.detect(tmp_path / "hub").spec, "params.json")
    loaded = GlmLikeForCausalLM.from_pretrained(folder)
    torch.testing.assert_close(loaded(IDS).logits, model(IDS).logits, atol=1e-5, rtol=1e-5)
    glmlike.convert(folder, tmp_path / "llama", to="llama")
    assert glmlike.verify(tmp_path / "hub", tmp_path / "llama") == glmlike.verify(folder, tmp_path / "hub") == 21
    again = LlamaForCausalLM.from_pretrained(tmp_path / "llama")
    assert torch.equal(again(IDS).logits, model(IDS).logits)


@pytest.mark.parametrize(("ranks", "heads", "tied"), [(1, 4, False), (2, 2, True), (4, 2, False), (4, 4, True)])
def test_written_ranks_are_metas(ranks: int, heads: int, tied: bool, tmp_path: Path) -> None:
    model = llama(heads, tied)
    model.save_pretrained(tmp_path / "hub")
    report = glmlike.convert(tmp_path / "hub", tmp_path / "meta", to="meta", tensor_parallel=ranks)
    params = json.loads((tmp_path / "meta" / "params.json").read_text())
    assert params.keys() <= set(meta.ARGUMENTS)
    for rank in range(ranks):
        file = torch.load(tmp_path / "meta" / f"consolidated.{rank:02d}.pth", weights_only=True)
        wanted = rank_tensors(model, rank, ranks)
        del wanted["rope.freqs"]
        assert file.keys() == wanted.keys()
        assert all(same_bits(file[name], wanted[name]) for name in wanted)
    assert report.tensors == 21 * ranks
    assert glmlike.verify(tmp_path / "hub", tmp_path / "meta") == 20 + (not tied)
    (tmp_path / "meta" / "config.json").symlink_to("params.json")
    with pytest.raises(ConfigError, match=r"launch arguments of rank files. Name it params.json"):
        glmlike.detect(tmp_path / "meta")


def test_an_early_vocabulary_is_cut_by_columns(tmp_path: Path) -> None:
    """LLaMA 1 and 2 hold the embedding by columns; LLaMA 3 by rows."""
    model = llama(vocab=32_000)
    model.save_pretrained(tmp_path / "hub")
    glmlike.convert(tmp_path / "hub", tmp_path / "meta", to="meta", tensor_parallel=2)
    file = torch.load(tmp_path / "meta" / "consolidated.01.pth", weights_only=True)
    assert file["tok_embeddings.weight"].shape == (32_000, 32)
    assert file["output.weight"].shape == (16_000, 64)
    found = glmlike.detect(tmp_path / "meta")
    assert (found.config["bos_token_id"], found.config["eos_token_id"]) == (1, 2)
    assert glmlike.verify(tmp_path / "hub", tmp_path / "meta") == 21


def test_a_head_that_is_absent_shared_or_equal_is_tied(tmp_path: Path) -> None:
    model = llama(tied=True)
    folder = write(tmp_path / "meta", model, 1)
    assert glmlike.detect(folder).spec.tie_word_embeddings
    path = folder / "consolidated.00.pth"
    tensors = torch.load(path, weights_only=True)
    for change in (lambda t: t.update({"output.weight": t["tok_embeddings.weight"]}), lambda t: t.pop("output.weight")):
        change(tensors)
        torch.save(tensors, path)
        assert glmlike.detect(folder).spec.tie_word_embeddings
        logits = GlmLikeForCausalLM.from_pretrained(folder)(IDS).logits
        torch.testing.assert_close(logits, model(IDS).logits, atol=1e-5, rtol=1e-5)
    torch.save({**tensors, "output.weight": tensors["tok_embeddings.weight"] + 1}, path)
    assert not glmlike.detect(folder).spec.tie_word_embeddings


def test_a_head_of_its_own_may_equal_the_embedding(tmp_path: Path) -> None:
    """Files do not say whether a head is tied: where both are the same, a spec may say either."""
    model = llama()
    model.lm_head.weight.data.copy_(model.model.embed_tokens.weight)
    model.save_pretrained(tmp_path / "hub")
    assert glmlike.convert(tmp_path / "hub", tmp_path / "meta", to="meta").verify == "roundtrip"
    assert glmlike.detect(tmp_path / "meta").spec.tie_word_embeddings
    untied = glmlike.detect(tmp_path / "hub").spec
    assert not untied.tie_word_embeddings
    assert glmlike.detect(tmp_path / "meta", spec=untied).spec == untied


PUBLISHED_PARAMS: dict[str, dict[str, Any]] = {
    "llama-3-8b": {
        "dim": 4096,
        "n_layers": 32,
        "n_heads": 32,
        "n_kv_heads": 8,
        "vocab_size": 128_256,
        "multiple_of": 1024,
        "ffn_dim_multiplier": 1.3,
        "norm_eps": 1e-05,
        "rope_theta": 500_000.0,
    },
    "llama-3.1-8b": {
        "dim": 4096,
        "n_layers": 32,
        "n_heads": 32,
        "n_kv_heads": 8,
        "vocab_size": 128_256,
        "multiple_of": 1024,
        "ffn_dim_multiplier": 1.3,
        "norm_eps": 1e-05,
        "rope_theta": 500_000.0,
        "use_scaled_rope": True,
    },
    "llama-3.2-1b": {
        "dim": 2048,
        "n_layers": 16,
        "n_heads": 32,
        "n_kv_heads": 8,
        "vocab_size": 128_256,
        "multiple_of": 256,
        "ffn_dim_multiplier": 1.5,
        "norm_eps": 1e-05,
        "rope_theta": 500_000.0,
        "use_scaled_rope": True,
        "tie_word_embeddings": True,  # which the tensors say
    },
}


@pytest.mark.parametrize("name", PUBLISHED_PARAMS)
def test_published_params_are_the_published_decoders(name: str) -> None:
    spec = PUBLISHED[name].spec
    assert read_spec(PUBLISHED_PARAMS[name]).differences(spec) == {}
    written = write_config(spec, "meta")
    assert read_spec(written).differences(spec) == {}
    assert not {"max_seq_len", "rope_scaling_factor"} & written.keys()  # Meta's code would not expect them


@given(st.integers(2, 300), st.integers(1, 3000))
@example(89, 1)
def test_any_feed_forward_size_can_be_said(half: int, inner: int) -> None:
    spec = PUBLISHED["llama-3-8b"].spec.replace(
        hidden_size=2 * half, head_dim=2 * half, num_attention_heads=1, num_key_value_heads=1, intermediate_size=inner
    )
    assert read_spec(write_config(spec, "meta")).intermediate_size == inner


@settings(max_examples=30)
@given(st.integers(1, 4), st.integers(1, 5))
def test_neighbours_are_pairs_of_halves(heads: int, half: int) -> None:
    native = torch.randn(heads * 2 * half, 3)
    (foreign,) = Neighbours(2 * half).to_foreign([native])
    assert torch.equal(foreign, neighbours(native, 2 * half))
    assert torch.equal(Neighbours(2 * half).to_native([foreign])[0], native)


def _say(**fields: Any) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        said = json.loads((folder / "params.json").read_text())
        (folder / "params.json").write_text(json.dumps({**said, **fields}))

    return change


def _change(change: Callable[[dict[str, Tensor]], Any], rank: int = 1) -> Callable[[Path], None]:
    def apply(folder: Path) -> None:
        tensors = torch.load(folder / f"consolidated.{rank:02d}.pth", weights_only=True)
        change(tensors)
        torch.save(tensors, folder / f"consolidated.{rank:02d}.pth")

    return apply


BAD: dict[str, tuple[Callable[[Path], Any], str]] = {
    "no params": (lambda f: (f / "params.json").unlink(), "params.json: not there.*pass spec="),
    "no JSON": (lambda f: (f / "params.json").write_text("{"), "params.json: not valid JSON"),
    "other params": (lambda f: (f / "params.json").write_text("{}"), "not the params.json of Meta's LLaMA"),
    "the first rank is missing": (lambda f: (f / "consolidated.00.pth").unlink(), "consolidated.00.pth is missing"),
    "the last rank is missing": (lambda f: (f / "consolidated.01.pth").unlink(), "hold 32 of the 64 rows of q"),
    "a rank twice": (lambda f: (f / "consolidated.1.pth").write_bytes(b""), "3 files consolidated.NN.pth"),
    "a truncated rank": (
        lambda f: (f / "consolidated.01.pth").write_bytes((f / "consolidated.01.pth").read_bytes()[:-500]),
        "consolidated.01.pth: damaged",
    ),
    "norms that differ": (_change(lambda t: t["norm.weight"].add_(1)), "'norm.weight': the 2 ranks hold different"),
    "a tensor is missing": (_change(lambda t: t.pop("norm.weight")), "lacks 'norm.weight', which another rank has"),
    "a layer too few": (_say(n_layers=1), "9 tensors that params.json has no place for"),
    "another feed-forward size": (_say(multiple_of=64, ffn_dim_multiplier=2.0), r"has shape .*params.json asks for"),
    "another vocabulary": (_say(vocab_size=97), r"shape \[96, 64\], but params.json asks for \[97, 64\]"),
    "no heads": (_say(n_heads=0), "n_heads=0: expected a whole number of at least 1"),
    "heads that do not divide": (_say(n_heads=5, n_kv_heads=5), "dim=64 is not divisible by n_heads=5"),
    "another kind": (_say(quantization_args={"group_size": 32}), "has 'quantization_args', which Meta's LLaMA"),
    "a link out of the folder": (
        lambda f: ((f / "consolidated.01.pth").rename(f.parent / "x"), (f / "consolidated.01.pth").symlink_to("../x")),
        "consolidated.01.pth: a link to .* outside of",
    ),
}


@pytest.mark.parametrize("how", BAD)
def test_a_bad_folder_is_one_sentence(how: str, tmp_path: Path) -> None:
    folder = write(tmp_path / "meta", llama(2), 2)
    damage, message = BAD[how]
    damage(folder)
    with pytest.raises((ConfigError, CheckpointError), match=message) as refused:
        GlmLikeForCausalLM.from_pretrained(folder)
    assert "\n" not in str(refused.value)


def test_a_spec_stands_in_for_params_and_must_agree_with_them(tmp_path: Path) -> None:
    folder = write(tmp_path / "meta", llama(2), 2)
    spec = glmlike.detect(folder).spec
    longer = spec.replace(max_position_embeddings=77)
    assert glmlike.detect(folder, spec=longer).spec == longer
    with pytest.raises(ConfigError, match=r"params.json and spec= contradict each other: {'rope_theta'"):
        glmlike.detect(folder, spec=spec.replace(rope_theta=10_000.0))
    with pytest.raises(CannotExpressError, match=r"a LLaMA of Meta's, not"):
        glmlike.detect(folder, spec="chatglm2-6b")
    (folder / "params.json").unlink()
    assert glmlike.detect(folder, spec=spec).spec == spec


def test_ranks_that_do_not_divide_the_heads_are_refused(tmp_path: Path) -> None:
    llama(4).save_pretrained(tmp_path / "hub")
    for ranks, message in ((3, "does not divide num_attention_heads=4"), (0, "expected a whole number from 1 to 99")):
        with pytest.raises(ConfigError, match=message):
            glmlike.convert(tmp_path / "hub", tmp_path / "out", to="meta", tensor_parallel=ranks)


def test_names_are_in_the_table_with_a_split_each() -> None:
    table, spec = TABLES["meta"], PUBLISHED["llama-3-8b"].spec
    assert all(table.split_of(name) is not None for name in table.foreign_shapes(spec))
