"""Filling blanks against a slow restatement: the whole row anew for every token, with masks and positions by hand."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from torch.testing import assert_close
from transformers import AutoModelForCausalLM, GenerationConfig, PreTrainedTokenizerFast

from blanks import BLANKS, ENDS, EOP, SPECIAL, byte_level, infilling_model
from glmlike import ConfigError, GlmLikeError
from glmlike.infilling import Infilling, fill
from specs import SPECS

INFILLING = ("glm-10b", "chatglm-6b", "glm-130b", "infilling-recipe")
NEW = 5
Said = tuple[list[int], list[float]]  # a piece, and the log-probabilities of its tokens and its end

TEXTS = [
    "In the beginning God created the [MASK] and the earth.",
    "春眠不[MASK]晓，处处闻[MASK]鸟。",
    "[sMASK] And it was so.",
    "one [MASK] two [sMASK] three [MASK]",
    "no end: [gMASK]",
    "a [MASK] b [gMASK]",
    "[gMASK] c [MASK]",
    "[MASK][MASK]",
]


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerFast:
    built = byte_level()
    assert built.convert_tokens_to_ids(list(SPECIAL)) == list(range(300, 307))
    return built


@pytest.fixture(params=INFILLING)
def model(request: pytest.FixtureRequest, make: Callable[..., Any]) -> Any:
    return infilling_model(make, str(request.param), seed=3)


@torch.no_grad()
def slow(model: Any, ids: list[int], order: str, ends: list[int]) -> list[Said]:
    """The pieces and the log-probabilities of their tokens and ends, of one context, greedily."""
    kinds = {300: "mask", 301: "gmask", 302: "smask"}
    blanks = [place for place, token in enumerate(ids) if token in kinds]
    two = model.config.positions in ("rotary_2d", "learned_2d")
    row, position, block = list(ids), list(range(len(ids))), [0] * len(ids)
    found = []
    for blank in blanks:
        if order == "independent":
            row, position, block = row[: len(ids)], position[: len(ids)], block[: len(ids)]
        counts_on = not two and kinds[ids[blank]] == "gmask"
        token, piece, logs = 303, [], []
        for number in range(NEW):
            position.append(len(row) if counts_on else blank)
            block.append(number + 1)
            row.append(token)
            logits = full_forward(model, row, position, block, len(ids))[-1].log_softmax(-1)
            token = int(logits.argmax())
            logs.append(float(logits[token]))
            if token in ends:
                break
            piece.append(token)
        else:  # the last token, whose successor nobody asked for, still belongs to what later pieces see
            position.append(len(row) if counts_on else blank)
            block.append(NEW + 1)
            row.append(token)
        found.append((piece, logs))
    return found


def full_forward(model: Any, row: list[int], position: list[int], block: list[int], context: int) -> torch.Tensor:
    allowed = torch.ones(len(row), len(row), dtype=torch.bool).tril()
    allowed[:context, :context] = True
    two = model.config.positions in ("rotary_2d", "learned_2d")
    positions = torch.tensor([[position, block]] if two else [position])
    return model(torch.tensor([row]), position_ids=positions, attention_mask=allowed[None, None]).logits[0]  # type: ignore[no-any-return]


def require_slow(found: Infilling, expected: list[Said]) -> None:
    assert [list(span.token_ids) for span in found.spans] == [piece for piece, _ in expected]
    for span, (piece, logs) in zip(found.spans, expected, strict=True):
        assert span.ended == (len(logs) > len(piece))
        assert_close(span.log_probability, sum(logs), atol=1e-4, rtol=1e-5)
        assert_close(span.mean_log_probability, sum(logs) / len(logs), atol=1e-4, rtol=1e-5)


@pytest.mark.parametrize("order", ["left_to_right", "independent"])
def test_a_mixed_batch_is_the_slow_restatement_of_each_text(order: Any, model: Any, tokenizer: Any) -> None:
    results = fill(model, tokenizer, TEXTS, order=order, batch_size=5, max_new_tokens=NEW)
    lengths = set()
    for text, found in zip(TEXTS, results, strict=True):
        require_slow(found, slow(model, tokenizer(text)["input_ids"], order, ENDS))
        lengths |= {(len(span.token_ids), span.ended) for span in found.spans}
    assert len(lengths) > 2  # pieces of several lengths, or the holes in the rows are not tested
    assert {ended for _, ended in lengths} == {True, False}


@pytest.mark.parametrize("name", ["glm-130b", "infilling-recipe"])
@pytest.mark.parametrize("way", [{"use_cache": False}, {"cache_implementation": "static"}])
def test_reading_the_context_anew_changes_nothing(
    way: dict[str, Any], name: str, make: Callable[..., Any], tokenizer: Any
) -> None:
    model = infilling_model(make, name)
    expected = fill(model, tokenizer, TEXTS[2:6], max_new_tokens=NEW)
    for one, other in zip(expected, fill(model, tokenizer, TEXTS[2:6], max_new_tokens=NEW, **way), strict=True):
        assert [span.token_ids for span in other.spans] == [span.token_ids for span in one.spans]
        assert other.filled_text == one.filled_text
        assert_close(one.log_probability, other.log_probability, atol=1e-4, rtol=1e-5)


def test_the_context_is_read_once(make: Callable[..., Any], tokenizer: Any) -> None:
    """Columns that go through the decoder: the context and a sop, and then no more than two passes over the pieces."""
    model = infilling_model(make, "infilling-recipe", eos_token_id=EOP)
    columns: list[int] = []
    model.model.register_forward_pre_hook(
        lambda _, arguments, named: columns.append(named["input_ids"].shape[1]), with_kwargs=True
    )
    text = f"{'a long context ' * 20}[MASK] [MASK] [MASK]"
    found = fill(model, tokenizer, text, max_new_tokens=NEW)
    context, pieces = len(tokenizer(text)["input_ids"]), sum(len(span.token_ids) + 1 for span in found.spans)
    assert columns[0] == context + 1
    assert max(columns[1:]) <= NEW + 1
    assert sum(columns[1:]) <= 2 * pieces + 3


@pytest.mark.parametrize("name", ["glm-130b", "infilling-recipe"])
def test_beams_are_those_of_generate_and_scored_by_the_model(
    name: str, make: Callable[..., Any], tokenizer: Any
) -> None:
    """A first piece by beams is generate's own on the same row; the next one sees it, and none of the other beams."""
    model = infilling_model(make, name)
    options = {"num_beams": 3, "max_new_tokens": NEW, "length_penalty": 0.0, "do_sample": False}
    texts = ["one [MASK] two [sMASK] three", "[MASK] c"]
    for text, found in zip(texts, fill(model, tokenizer, texts, **options), strict=True):
        ids = torch.tensor([[*tokenizer(text)["input_ids"], 303]])
        first = model.generate(ids, eos_token_id=ENDS, **options)[0, ids.shape[1] :].tolist()
        first = first[: next((place for place, token in enumerate(first) if token in ENDS), len(first))]
        assert list(found.spans[0].token_ids) == first
        alone = fill(model, tokenizer, text, **options)
        assert [span.token_ids for span in alone.spans] == [span.token_ids for span in found.spans]
        scores = rescored(model, tokenizer(text)["input_ids"], [list(span.token_ids) for span in found.spans])
        for span, logs in zip(found.spans, scores, strict=True):
            end = span.log_probability - sum(logs)  # what is left is log p of the end of piece, if it has one
            assert end < 1e-4 if span.ended else abs(end) < 1e-4


@torch.no_grad()
def rescored(model: Any, ids: list[int], pieces: list[list[int]]) -> list[list[float]]:
    """log p of every token of given pieces, in one full forward with masks and positions by hand."""
    blanks = [place for place, token in enumerate(ids) if token in (300, 301, 302)]
    row, position, block, targets = list(ids), list(range(len(ids))), [0] * len(ids), []
    for blank, piece in zip(blanks, pieces, strict=True):
        targets.append((len(row), piece))
        row += [303, *piece]
        position += [blank] * (len(piece) + 1)
        block += range(1, len(piece) + 2)
    logs = full_forward(model, row, position, block, len(ids)).log_softmax(-1)
    return [[float(logs[start + n, token]) for n, token in enumerate(piece)] for start, piece in targets]


def test_sampling_is_seeded_and_scores_ignore_the_temperature(make: Callable[..., Any], tokenizer: Any) -> None:
    model = infilling_model(make, "chatglm-6b", eos_token_id=EOP)
    text = "one [MASK] two [sMASK] three"
    options = {"do_sample": True, "temperature": 3.0, "max_new_tokens": NEW, "suppress_tokens": [EOP]}
    torch.manual_seed(0)
    found = fill(model, tokenizer, [text] * 4, **options)
    torch.manual_seed(0)
    assert fill(model, tokenizer, [text] * 4, **options) == found
    assert len({result.filled_text for result in found}) > 1
    for result in found:
        scores = rescored(model, tokenizer(text)["input_ids"], [list(span.token_ids) for span in result.spans])
        assert_close([span.log_probability for span in result.spans], [sum(logs) for logs in scores], atol=1e-4, rtol=0)


def test_pieces_longer_than_one_scoring_pass(make: Callable[..., Any], tokenizer: Any) -> None:
    model = infilling_model(make, "infilling-recipe")
    text = "one [MASK] two [sMASK]"
    (found,) = fill(model, tokenizer, [text], max_new_tokens=70, eos_token_id=None)
    assert [len(span.token_ids) for span in found.spans] == [70, 70]
    scores = rescored(model, tokenizer(text)["input_ids"], [list(span.token_ids) for span in found.spans])
    assert_close([s.log_probability for s in found.spans], [sum(logs) for logs in scores], atol=1e-3, rtol=1e-5)
    assert not any(span.ended for span in found.spans)


def test_spans_point_into_both_texts(make: Callable[..., Any], tokenizer: Any) -> None:
    model = infilling_model(make, "infilling-recipe")
    for text, found in zip(TEXTS, fill(model, tokenizer, TEXTS, max_new_tokens=NEW), strict=True):
        assert found.text == text
        rebuilt, done = "", 0
        for span in found.spans:
            assert text[slice(*span.blank)] == span.kind
            assert found.filled_text[slice(*span.span)] == span.text
            before = text[done : span.blank[0]].rstrip(" ")  # the mask tokens take the blank before them
            rebuilt += before + span.text
            done = span.blank[1]
        assert found.filled_text == rebuilt + text[done:]


class Says:
    """A logits processor that makes every piece the given one, so that what is tested is how it joins."""

    def __init__(self, piece: list[int]) -> None:
        self.piece = piece

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        forced = torch.full_like(scores, -1e9)
        for row, ids in enumerate(input_ids.tolist()):
            forced[row, self.piece[ids[::-1].index(303)]] = 0.0
        return forced


@pytest.mark.parametrize(
    ("text", "piece", "filled"),
    [
        ("created the [MASK] and the earth", " heaven", "created the heaven and the earth"),
        ("白日依山[MASK]，", "尽", "白日依山尽，"),
        ("[MASK] was so", "It", "It was so"),
        ("a [MASK]", " 'b' , c", "a 'b' , c"),
    ],
)
def test_the_joins_are_the_tokenizers(text: str, piece: str, filled: str, make: Any, tokenizer: Any) -> None:
    model = infilling_model(make, "infilling-recipe", eos_token_id=EOP)
    forced = Says([*tokenizer(piece)["input_ids"], EOP])
    found = fill(model, tokenizer, text, logits_processor=[forced], max_new_tokens=30)
    assert (found.filled_text, found.spans[0].text, found.spans[0].ended) == (filled, piece, True)


def test_a_character_cut_in_two_by_a_limit_belongs_to_the_piece(make: Callable[..., Any], tokenizer: Any) -> None:
    model = infilling_model(make, "infilling-recipe", eos_token_id=EOP)
    forced = Says(tokenizer("尽")["input_ids"])
    found = fill(model, tokenizer, "山[MASK]流", logits_processor=[forced], max_new_tokens=2)
    assert found.filled_text == "山\ufffd流"
    assert found.spans[0].text == "\ufffd"


@pytest.mark.parametrize(
    ("around", "context"),
    [
        ("[CLS] $A <eop>", "[CLS]{}<eop>"),  # GLM-10B
        ("$A [gMASK] <sop>", "{}"),  # ChatGLM-6B
        ("[gMASK] <sop> $A", "{}"),
    ],
)
def test_what_a_tokenizer_adds_by_itself(around: str, context: str, make: Callable[..., Any], tokenizer: Any) -> None:
    model, adding = infilling_model(make, "chatglm-6b"), byte_level(around)
    for text in ("one [MASK] two", "one [gMASK]"):
        expected = slow(model, tokenizer(context.format(text))["input_ids"], "left_to_right", ENDS)
        require_slow(fill(model, adding, text, max_new_tokens=NEW), expected)
        require_slow(fill(model, adding, f"{text}<sop>", max_new_tokens=NEW), expected)
    (found,) = fill(model, adding, ["to be"], max_new_tokens=NEW, append_gmask=True)
    require_slow(found, slow(model, tokenizer(context.format("to be[gMASK]"))["input_ids"], "left_to_right", ENDS))
    assert found.filled_text == f"to be{found.spans[0].text}"
    assert found.spans[0].blank == (5, 5)


def test_checkpoints_of_the_originals(golden: Path) -> None:
    """ChatGLM-6B's layout with its own token ids, and GLM-10B's, where the caller names them."""
    chatglm = AutoModelForCausalLM.from_pretrained(
        golden / "chatglm", mask_token_id=300, gmask_token_id=301, smask_token_id=302, sop_token_id=303
    )
    glm = AutoModelForCausalLM.from_pretrained(golden / "glm", eos_token_id=[EOP], **BLANKS)
    for model, ends in ((chatglm.eval(), [305]), (glm.eval(), [EOP])):
        texts = ["one [MASK] two [sMASK] three", "no end: [gMASK]", "[sMASK]"]
        for text, found in zip(texts, fill(model, byte_level(), texts, max_new_tokens=NEW), strict=True):
            require_slow(found, slow(model, byte_level()(text)["input_ids"], "left_to_right", ends))


def test_a_string_gives_a_result_a_list_a_list(make: Callable[..., Any], tokenizer: Any) -> None:
    model = infilling_model(make, "infilling-recipe")
    one = fill(model, tokenizer, TEXTS[0], max_new_tokens=NEW)
    assert isinstance(one, Infilling)
    (same,) = fill(model, tokenizer, TEXTS[:1], max_new_tokens=NEW)
    assert same == one
    assert fill(model, tokenizer, []) == []
    assert one.to_dict()["spans"][0]["text"] == one.spans[0].text


MISTAKES: dict[str, tuple[Any, dict[str, Any], str]] = {
    "no blank": ("to be", {}, "'to be': no blank in it. Write .* or pass append_gmask=True"),
    "empty": ("", {}, "'': expected a text with a blank"),
    "no text": (3, {}, "expected a text"),
    "two [gMASK]": ("[gMASK] a [gMASK]", {}, "2 \\[gMASK\\] in one text"),
    "sop inside": ("a <sop> [MASK]", {}, "a start-of-piece token stands in the text"),
    "an order": ("[MASK]", {"order": "backwards"}, "order='backwards': expected one of left_to_right, independent"),
    "a batch size": ("[MASK]", {"batch_size": 0}, "batch_size=0"),
    "ids": ("[MASK]", {"input_ids": 1}, "input_ids=…: fill makes it from the text"),
    "several results": ("[MASK]", {"num_return_sequences": 2}, "num_return_sequences=2 does not go with filling"),
    "whole length": ("[MASK]", {"max_length": 50}, "max_length=50 .* Pass max_new_tokens"),
    "guidance": ("[MASK]", {"guidance_scale": 2.0}, "guidance_scale=2.0 does not go with filling"),
    "streaming": ("[MASK]", {"streamer": object()}, "streamer=.* does not go with filling"),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_mistakes_are_one_sentence(name: str, make: Callable[..., Any], tokenizer: Any) -> None:
    text, options, message = MISTAKES[name]
    model = infilling_model(make, "infilling-recipe")
    texts = [text] if name == "no text" else text
    with pytest.raises(GlmLikeError, match=message):
        fill(model, tokenizer, texts, **options)


def test_models_and_tokenizers_that_do_not_fit(make: Callable[..., Any], tokenizer: Any) -> None:
    with pytest.raises(ConfigError, match=r"GlmLikeForCausalLM .* fills no blanks.*Use generate, or chat"):
        fill(make(SPECS["chatglm2"]), tokenizer, "[MASK]")
    small = make(SPECS["infilling-recipe"])
    with pytest.raises(ConfigError, match=r"the tokenizer has 307 tokens, the model 96 rows: .*150528.*130528"):
        fill(small, tokenizer, "[MASK]")
    with pytest.raises(ConfigError, match=r"mask_token_id=299 .* tokenizer's \[MASK\] is 300"):
        fill(infilling_model(make, "infilling-recipe", mask_token_id=299), tokenizer, "[MASK]")
    with pytest.raises(ConfigError, match=r"sop_token_id=310 .* the tokenizer has no such token"):
        fill(infilling_model(make, "infilling-recipe", sop_token_id=310), tokenizer, "[MASK]")
    with pytest.raises(ConfigError, match=r"a blank and sop_token_id are needed"):
        fill(infilling_model(make, "infilling-recipe", sop_token_id=None), tokenizer, "[MASK]")
    unnamed = infilling_model(make, "infilling-recipe", smask_token_id=None)
    with pytest.raises(ConfigError, match=r"\[sMASK\] written.*the model's config must name \(no smask_token_id\)"):
        fill(unnamed, tokenizer, "[sMASK]")
    assert fill(unnamed, tokenizer, "[MASK]", max_new_tokens=1).spans[0].kind == "[MASK]"
    with pytest.raises(ConfigError, match=r"no eos_token_id in the model's configs"):
        fill(infilling_model(make, "infilling-recipe", eos_token_id=None), tokenizer, "[MASK]")


def test_a_blank_that_the_tokenizer_splits(make: Callable[..., Any]) -> None:
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    raw = Tokenizer(models.BPE({name: number for number, name in enumerate(alphabet)}, []))
    raw.pre_tokenizer, raw.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    raw.add_special_tokens([f"<unused{n}>" for n in range(44)] + ["[MASK]", "<unused44>", "[sMASK]", "<sop>"])
    splitting = PreTrainedTokenizerFast(tokenizer_object=raw)
    with pytest.raises(ConfigError, match=r"\[gMASK\] written, but its tokens have no blank: \['\[', 'g'"):
        fill(infilling_model(make, "infilling-recipe"), splitting, "[gMASK]")


def test_a_text_longer_than_learned_positions(make: Callable[..., Any], tokenizer: Any) -> None:
    model = infilling_model(make, "glm-10b")
    assert model.config.max_position_embeddings == 256
    with pytest.raises(GlmLikeError, match=r"251 tokens of context and max_new_tokens=6: 257 in all.* end at 256"):
        fill(model, tokenizer, "x" * 250 + "[MASK]", max_new_tokens=6)
    fill(model, tokenizer, "x" * 250 + "[MASK]", max_new_tokens=5)


def test_an_adapter_of_weights_fills_and_one_of_prompts_is_refused(make: Callable[..., Any], tokenizer: Any) -> None:
    peft = pytest.importorskip("peft")
    expected = fill(infilling_model(make, "infilling-recipe"), tokenizer, TEXTS[:3], max_new_tokens=NEW)
    lora = peft.LoraConfig(task_type="CAUSAL_LM", target_modules="all-linear")
    adapted = peft.get_peft_model(infilling_model(make, "infilling-recipe"), lora).eval()
    assert fill(adapted, tokenizer, TEXTS[:3], max_new_tokens=NEW) == expected  # a new adapter adds nothing
    prompts = peft.PrefixTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=3)
    with pytest.raises(ConfigError, match=r"PREFIX_TUNING: it puts its prompt in a cache of its own"):
        fill(peft.get_peft_model(infilling_model(make, "infilling-recipe"), prompts), tokenizer, TEXTS)


def test_options_come_as_arguments_or_as_a_generation_config(make: Callable[..., Any], tokenizer: Any) -> None:
    model = infilling_model(make, "infilling-recipe")
    expected = fill(model, tokenizer, TEXTS[:3], max_new_tokens=3, num_beams=2)
    config = GenerationConfig(max_new_tokens=3, num_beams=2)
    assert fill(model, tokenizer, TEXTS[:3], generation_config=config) == expected
    assert config.eos_token_id is None  # the caller's own is left alone
    model.generation_config.max_new_tokens = 2
    assert all(len(span.token_ids) <= 2 for span in fill(model, tokenizer, TEXTS[3]).spans)


def test_a_stop_string_ends_a_piece_without_its_end(make: Callable[..., Any], tokenizer: Any) -> None:
    """What generate pads a stopped row with is no part of the piece; the other row goes on."""
    model = infilling_model(make, "infilling-recipe", eos_token_id=EOP)
    says = Says(tokenizer("abcde")["input_ids"])
    options = {"logits_processor": [says], "stop_strings": ["c"], "max_new_tokens": 4}
    first, second = fill(model, tokenizer, ["x [MASK]", "[MASK] y"], **options)
    assert (first.filled_text, second.filled_text) == ("xabc", "abc y")
    assert not first.spans[0].ended
