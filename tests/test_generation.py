"""Everything generate, the caches, the attention implementations and the compiler may ask of the decoder."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch.testing import assert_close
from transformers import ContinuousBatchingConfig, DynamicCache, GenerationConfig, TextIteratorStreamer

from glmlike import GlmLikeConfig, GlmLikeForCausalLM, GlmLikeModel
from glmlike.renamed import CACHE
from specs import SPECS

TOLERANCE = 1e-5
TYPICAL = ("chatglm2", "glm-4-0414", "llama-3.1", "qwen2-sliding", "tied-recipe", "chatglm2-ptuned")


@pytest.fixture(params=TYPICAL)
def model(request: pytest.FixtureRequest, make: Callable[..., Any]) -> Any:
    return make(SPECS[str(request.param)], eos_token_id=None)


def tokens(rows: int = 2, length: int = 12) -> torch.Tensor:
    return torch.randint(3, 96, (rows, length), generator=torch.Generator().manual_seed(1))


def greedy(model: Any, ids: torch.Tensor, **options: Any) -> list[list[int]]:
    options = {"attention_mask": torch.ones_like(ids), "max_new_tokens": 10, "do_sample": False, **options}
    found: list[list[int]] = model.generate(ids, **options).tolist()
    return found


@torch.no_grad()
def test_cached_decoding_is_the_full_forward(model: Any) -> None:
    """Contract 5."""
    ids = tokens()
    full = model(ids).logits
    cache = DynamicCache(config=model.config)
    steps = [model(ids[:, i : i + 1], **{CACHE: cache}).logits for i in range(ids.shape[1])]
    assert_close(torch.cat(steps, dim=1), full, atol=TOLERANCE, rtol=TOLERANCE)


@torch.no_grad()
def test_left_padding_changes_nothing(model: Any) -> None:
    ids = tokens(1, 9)
    padded = torch.cat((torch.zeros(1, 5, dtype=torch.long), ids), dim=1)
    mask = (torch.arange(14) >= 5).long()[None]
    positions = (mask.cumsum(-1) - 1).clamp(min=0)
    found = model(padded, attention_mask=mask, position_ids=positions).logits[:, 5:]
    assert_close(found, model(ids).logits, atol=TOLERANCE, rtol=TOLERANCE)
    assert greedy(model, padded, attention_mask=mask)[0][5:] == greedy(model, ids)[0]


@torch.no_grad()
def test_packed_rows_are_separate_rows(model: Any) -> None:
    ids = tokens(1, 12)
    positions = torch.cat((torch.arange(5), torch.arange(7)))[None]
    packed = model(ids, position_ids=positions, use_cache=False).logits
    separate = torch.cat((model(ids[:, :5]).logits, model(ids[:, 5:]).logits), dim=1)
    assert_close(packed, separate, atol=TOLERANCE, rtol=TOLERANCE)


@torch.no_grad()
def test_eager_is_sdpa(model: Any) -> None:
    ids, logits = tokens(), []
    for attention in ("eager", "sdpa"):
        model.set_attn_implementation(attention)
        logits.append(model(ids).logits)
    assert_close(logits[0], logits[1], atol=TOLERANCE, rtol=TOLERANCE)


@torch.no_grad()
def test_flex_attention_is_sdpa(model: Any) -> None:
    ids = tokens(2, 16)
    expected = model(ids).logits
    model.set_attn_implementation("flex_attention")
    assert_close(model(ids).logits, expected, atol=1e-4, rtol=0)


def test_flash_attention_reaches_the_interface(make: Callable[..., Any]) -> None:
    """Without the kernels it is transformers that refuses, by name; the model itself declares support."""
    model = make(SPECS["chatglm2"])
    assert model._supports_flash_attn
    for attention in ("flash_attention_2", "flash_attention_3", "flash_attention_4"):
        with pytest.raises((ImportError, ValueError), match=r"[Ff]lash"):
            model.set_attn_implementation(attention)


def test_an_own_attention_receives_what_kernels_need(make: Callable[..., Any]) -> None:
    """A registered attention function sees grouped keys, the scaling, and the caller's flash arguments."""
    from transformers import AttentionInterface, AttentionMaskInterface
    from transformers.integrations.sdpa_attention import sdpa_attention_forward
    from transformers.masking_utils import sdpa_mask

    seen: list[dict[str, Any]] = []

    def recording(module: Any, query: Any, key: Any, value: Any, attention_mask: Any, **kwargs: Any) -> Any:
        seen.append({"heads": (query.shape[1], key.shape[1]), **kwargs})
        kept = {name: kwargs[name] for name in ("dropout", "scaling")}
        return sdpa_attention_forward(module, query, key, value, attention_mask, **kept)

    AttentionInterface.register("recording", recording)
    AttentionMaskInterface.register("recording", sdpa_mask)
    model = make(SPECS["qwen2-sliding"])
    model.set_attn_implementation("recording")
    lengths = torch.tensor([0, 12], dtype=torch.int32)
    model(tokens(1), use_cache=False, cu_seq_lens_q=lengths, cu_seq_lens_k=lengths, max_length_q=12, max_length_k=12)
    assert [row["heads"] for row in seen] == [(4, 2)] * 3
    assert [row["sliding_window"] for row in seen] == [None, 4, 4]
    assert all(row["scaling"] == 16**-0.5 and row["cu_seq_lens_q"] is lengths for row in seen)


CACHES: dict[str, dict[str, Any]] = {
    "none": {"use_cache": False},
    "dynamic": {"cache_implementation": "dynamic"},
    "static": {"cache_implementation": "static"},
    "offloaded": {"cache_implementation": "offloaded"},
}


@pytest.mark.parametrize("cache", CACHES)
def test_every_cache_gives_the_same_tokens(cache: str, model: Any) -> None:
    if cache == "offloaded" and not torch.cuda.is_available():
        pytest.skip("offloading moves keys between a GPU and memory; there is no GPU")
    assert greedy(model, tokens(), **CACHES[cache]) == greedy(model, tokens())


needs_compiler = pytest.mark.skipif(shutil.which("c++") is None, reason="needs a C++ compiler: apt-get install g++")


@pytest.mark.slow
@needs_compiler
def test_a_quantized_cache_generates(make: Callable[..., Any]) -> None:
    """The first new token comes from exact keys; the later ones from keys of four bits."""
    pytest.importorskip("optimum.quanto")
    model = make(SPECS["chatglm2"].replace(head_dim=64), eos_token_id=None)
    cache_config = {"backend": "quanto", "nbits": 4, "residual_length": 4, "q_group_size": 64}
    output = model.generate(
        tokens(),
        max_new_tokens=10,
        do_sample=False,
        cache_implementation="quantized",
        cache_config=cache_config,
        return_dict_in_generate=True,
    )
    assert output.sequences.shape == (2, 22)
    assert output.sequences[:, :13].tolist() == [row[:13] for row in greedy(model, tokens())]
    assert all(layer._quantized_keys is not None for layer in output[CACHE].layers)


def test_a_sliding_layer_keeps_no_more_than_its_window(make: Callable[..., Any]) -> None:
    model = make(SPECS["qwen2-sliding"], eos_token_id=None)
    cache = model.generate(tokens(1), max_new_tokens=6, do_sample=False, return_dict_in_generate=True)[CACHE]
    assert [layer.keys.shape[2] for layer in cache.layers] == [
        17,
        3,
        3,
    ]  # a window of 4: three old keys and the new one


@torch.no_grad()
def test_a_window_without_layer_types_is_every_layers(make: Callable[..., Any]) -> None:
    config = GlmLikeConfig.from_spec(SPECS["llama-3"])
    config.sliding_window = 4
    assert config.spec.layer_types == ("sliding_attention",) * 3
    model = GlmLikeForCausalLM(config).eval()
    ids = tokens(1)
    changed = ids.clone()
    changed[0, 0] = 5
    same = model(ids).logits == model(changed).logits
    assert same[0, 10:].all()  # three layers of a window of 4 see nine tokens back
    assert not same[0, 9].all()


def test_beam_search_finds_at_least_the_greedy_likelihood(model: Any) -> None:
    def score(ids: list[list[int]]) -> torch.Tensor:
        row = torch.tensor(ids)
        with torch.no_grad():
            logs = model(row).logits.log_softmax(-1)[:, 11:-1]
        return logs.gather(2, row[:, 12:, None]).sum((1, 2))

    beams = greedy(model, tokens(), num_beams=12, length_penalty=0.0)
    assert bool((score(beams) >= score(greedy(model, tokens())) - 1e-4).all())


def test_sampling_is_reproducible_and_varies(model: Any) -> None:
    torch.manual_seed(3)
    first = greedy(model, tokens(), do_sample=True, temperature=2.0)
    second = greedy(model, tokens(), do_sample=True, temperature=2.0)
    torch.manual_seed(3)
    assert greedy(model, tokens(), do_sample=True, temperature=2.0) == first != second


def test_assisted_generation_gives_the_greedy_tokens(model: Any, make: Callable[..., Any]) -> None:
    assistant = make(SPECS["llama-3"], seed=7, eos_token_id=None)
    ids = tokens(1)
    assert greedy(model, ids, assistant_model=assistant) == greedy(model, ids)
    assert greedy(model, ids, prompt_lookup_num_tokens=3) == greedy(model, ids)


def test_generate_batch_gives_the_tokens_of_generate(make: Callable[..., Any]) -> None:
    model = make(SPECS["chatglm2"], eos_token_id=None)
    prompts = [tokens(1, length)[0].tolist() for length in (5, 9, 3)]
    config = GenerationConfig(max_new_tokens=8, do_sample=False, eos_token_id=-1, pad_token_id=0)
    small = ContinuousBatchingConfig(num_blocks=16, max_batch_tokens=64)  # else it takes all memory that is free
    outputs = model.generate_batch(
        inputs=prompts, generation_config=config, continuous_batching_config=small, progress_bar=False
    )
    found = [output.generated_tokens for output in outputs.values()]
    expected = [greedy(model, torch.tensor([prompt]), max_new_tokens=8)[0][len(prompt) :] for prompt in prompts]
    assert found == expected


@torch.no_grad()
def test_embeddings_in_the_place_of_tokens(model: Any) -> None:
    ids = tokens()
    embeddings = model.get_input_embeddings()(ids)
    assert torch.equal(model(inputs_embeds=embeddings).logits, model(ids).logits)
    for wrong in ({}, {"input_ids": ids, "inputs_embeds": embeddings}):
        with pytest.raises(ValueError, match="exactly one of input_ids or inputs_embeds"):
            model(**wrong)
    generated = model.generate(inputs_embeds=embeddings, max_new_tokens=4, do_sample=False).tolist()
    assert generated == [row[12:] for row in greedy(model, ids, max_new_tokens=4)]


@torch.no_grad()
def test_logits_to_keep(model: Any) -> None:
    ids = tokens()
    full = model(ids).logits
    assert_close(model(ids, logits_to_keep=3).logits, full[:, -3:], atol=TOLERANCE, rtol=TOLERANCE)
    kept = torch.tensor([0, 5])
    assert_close(model(ids, logits_to_keep=kept).logits, full[:, kept], atol=TOLERANCE, rtol=TOLERANCE)


@torch.no_grad()
def test_hidden_states_and_attentions(model: Any) -> None:
    model.set_attn_implementation("eager")
    output = model(tokens(), output_hidden_states=True, output_attentions=True)
    assert [tuple(state.shape) for state in output.hidden_states] == [(2, 12, 64)] * 4
    before = model.config.prefix_length
    assert [tuple(weights.shape) for weights in output.attentions] == [(2, 4, 12, before + 12)] * 3
    for weights in output.attentions:
        assert_close(weights.sum(-1), torch.ones(2, 4, 12), atol=1e-5, rtol=0)
        assert torch.equal(weights, weights.tril(before))
    assert torch.equal(model.lm_head(output.hidden_states[-1]), output.logits)
    assert isinstance(model(tokens(), return_dict=False), tuple)


def test_activation_checkpointing_changes_no_gradient(model: Any) -> None:
    ids, gradients = tokens(), []
    model.train()
    for checkpointing in (False, True):
        if checkpointing:
            model.gradient_checkpointing_enable()
            assert model.model.layers[0].gradient_checkpointing
        model.zero_grad()
        model(ids, labels=ids).loss.backward()
        gradients.append([parameter.grad.clone() for parameter in model.parameters()])
    for one, other in zip(*gradients, strict=True):
        assert_close(one, other, atol=TOLERANCE, rtol=TOLERANCE)


def test_streaming_yields_the_generated_text(make: Callable[..., Any]) -> None:
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = Tokenizer(models.WordLevel({f"w{i}": i for i in range(96)}, unk_token="w0"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=words)
    model = make(SPECS["chatglm2"], eos_token_id=None)
    streamer = TextIteratorStreamer(tokenizer, skip_prompt=True)
    expected = greedy(model, tokens(1))[0][12:]
    greedy(model, tokens(1), streamer=streamer)
    assert "".join(streamer).split() == [f"w{i}" for i in expected]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["chatglm2", "glm-4-0414", "qwen2-sliding", "chatglm2-ptuned-projected"])
@torch.no_grad()
def test_the_whole_decoder_is_one_graph(name: str, make: Callable[..., Any]) -> None:
    model = make(SPECS[name])
    ids = tokens()
    expected = model(ids).logits
    torch.compiler.reset()  # each model of this process counts as a recompilation of the same code
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    assert_close(compiled(ids).logits, expected, atol=TOLERANCE, rtol=TOLERANCE)


@pytest.mark.slow
@needs_compiler
def test_compiled_decoding_gives_the_same_tokens(make: Callable[..., Any]) -> None:
    model = make(SPECS["chatglm2"], eos_token_id=None)
    expected = greedy(model, tokens(1))
    torch.compiler.reset()
    model.forward = torch.compile(model.forward, fullgraph=True)
    assert greedy(model, tokens(1), cache_implementation="static") == expected


def test_initialisation_is_transformers_own() -> None:
    config = GlmLikeConfig.from_spec(SPECS["glm-4-0414"], initializer_range=0.5, pad_token_id=3)
    torch.manual_seed(0)
    model = GlmLikeForCausalLM(config)
    assert model.model.layers[0].mlp.gate_proj.weight.std().item() == pytest.approx(0.5, rel=0.05)
    assert bool((model.model.layers[0].self_attn.q_proj.bias == 0).all())
    assert bool((model.model.layers[1].post_mlp_layernorm.weight == 1).all())
    assert bool((model.model.embed_tokens.weight[3] == 0).all())


def test_the_parallel_plans_name_modules_that_exist() -> None:
    model = GlmLikeForCausalLM(GlmLikeConfig.from_spec(SPECS["llama-biased"]))
    names = {name.replace(".1.", ".*.") for name, _ in model.named_modules()}
    assert set(model.config.base_model_tp_plan) <= {name.removeprefix("model.") for name in names}
    assert set(GlmLikeForCausalLM._tp_plan) | set(GlmLikeForCausalLM._pp_plan) <= names
    assert set(model.config.base_model_pp_plan) <= {name for name, _ in model.model.named_children()}
    assert isinstance(model.model, GlmLikeModel)
