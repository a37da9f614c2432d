"""Importing glmlike registers everything, in any order of imports, and changes nothing else."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

import glmlike

CHECK = """
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM, AutoModelForSeq2SeqLM
from transformers import AutoModelForSequenceClassification
import transformers
config = AutoConfig.for_model("glmlike", hidden_size=32, num_hidden_layers=1, num_attention_heads=2,
                              num_key_value_heads=1, vocab_size=8)
assert type(AutoModel.from_config(config)).__name__ == "GlmLikeModel"
assert type(AutoModelForCausalLM.from_config(config)).__name__ == "GlmLikeForCausalLM"
assert type(AutoModelForSequenceClassification.from_config(config)).__name__ == "GlmLikeForSequenceClassification"
for name in ("GlmLikeConfig", "GlmLikeModel", "GlmLikeForCausalLM", "ChatGLMConfig", "ChatGLMForConditionalGeneration"):
    assert getattr(transformers, name).__name__ == name
assert transformers.pipelines.PIPELINE_REGISTRY.supported_tasks["glm-infilling"]["type"] == "text"
waiting = [finder for finder in __import__("sys").meta_path if type(finder).__name__ == "_Watcher"]
assert all(finder.packages in (("peft.",), ("liger_kernel.",)) for finder in waiting)
assert "liger_kernel" not in __import__("sys").modules
"""

ORDERS = {
    "glmlike first": "import glmlike, transformers",
    "transformers first": "import transformers, glmlike",
    "Auto classes first": "from transformers import AutoModelForCausalLM\nimport glmlike",
    "a model class first": "from transformers.models.llama import modeling_llama\nimport glmlike",
    "our model first": "from glmlike import GlmLikeForCausalLM",
    "our config first": "from glmlike.configuration import GlmLikeConfig\nimport transformers",
    "AutoConfig only, then ours": "import glmlike\nfrom transformers import AutoConfig",
    "pipeline": "import glmlike\nfrom transformers import pipeline",
    "trainer first": "from transformers import Trainer\nimport glmlike",
    "twice": "import glmlike, importlib\nglmlike.register()\nglmlike.register()",
    "in a thread": "import threading\nt = threading.Thread(target=__import__, args=('glmlike',))\nt.start()\nt.join()",
}


_USUAL = ("glmlike first", "trainer first", "our model first")  # on the oldest transformers too


@pytest.mark.parametrize(
    "order", [pytest.param(order, marks=() if order in _USUAL else pytest.mark.slow) for order in ORDERS]
)
def test_registered_after_any_order_of_imports(order: str) -> None:
    done = subprocess.run([sys.executable, "-c", ORDERS[order] + CHECK], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]


def test_importing_registers_and_does_nothing_else() -> None:
    """The native types keep their own classes, and no class of transformers is changed."""
    code = """
import transformers
from transformers import AutoModelForCausalLM, GlmConfig, LlamaConfig, Qwen2Config, Glm4Config, PreTrainedModel
before = {name: id(value) for name, value in vars(PreTrainedModel).items()}
import glmlike
from glmlike import GlmLikeForCausalLM
assert {name: id(value) for name, value in vars(PreTrainedModel).items()} == before
sizes = dict(hidden_size=32, num_hidden_layers=1, num_attention_heads=2, num_key_value_heads=1, vocab_size=8,
             intermediate_size=8, pad_token_id=0)
for config in (GlmConfig, LlamaConfig, Qwen2Config, Glm4Config):
    model = AutoModelForCausalLM.from_config(config(**sizes))
    assert type(model).__module__.startswith("transformers."), type(model)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]


def test_every_class_an_original_auto_map_names_is_ours(shared: Path) -> None:
    """An Auto class that the map names and we had not registered would run the folder's code."""
    import transformers

    named = set()
    for path in (shared / "originals").glob("*/config.json"):
        config = json.loads(path.read_text(encoding="utf8"))
        if config.get("model_type") == "chatglm":
            named |= config.get("auto_map", {}).keys()
    assert {"AutoConfig", "AutoModel", "AutoModelForCausalLM", "AutoModelForSeq2SeqLM"} <= named
    assert transformers.AutoModelForSeq2SeqLM._model_mapping[glmlike.GlmLikeConfig] is glmlike.GlmLikeForCausalLM
    for auto in sorted(named - {"AutoConfig", "AutoTokenizer"}):
        found = getattr(transformers, auto)._model_mapping[glmlike.ChatGLMConfig]
        assert found.__module__ == "glmlike.modeling", auto
    assert transformers.AutoConfig.for_model("chatglm").__class__ is glmlike.ChatGLMConfig


def test_the_entry_point_that_serving_engines_call() -> None:
    from importlib.metadata import entry_points

    (found,) = [point for point in entry_points(group="vllm.general_plugins") if point.name == "glmlike"]
    assert found.load() is glmlike.register
