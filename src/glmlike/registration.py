"""Registration with transformers' Auto classes and pipelines, and with PEFT's tables, as late as possible.

Importing transformers' Auto classes costs seconds, and its pipelines some more, so ``import glmlike`` does neither.
What is loaded already is registered with at once. For the rest a finder at the front of ``sys.meta_path`` watches,
registers when the outermost import of a transformers or glmlike module has finished (never in the middle of one, where
names are missing), and removes itself when all is done. It finds nothing of its own and changes no module. Two more
wait for PEFT and for Liger, which many programs never import.
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Sequence
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

_AUTO_CONFIG = "transformers.models.auto.configuration_auto"
_AUTO_MODEL = "transformers.models.auto.modeling_auto"
_AUTO_TOKENIZER = "transformers.models.auto.tokenization_auto"
_PIPELINES = "transformers.pipelines"
_PEFT_TABLES = "peft.utils.constants"
_LIGER_TABLE = "liger_kernel.transformers.monkey_patch"
_done: set[str] = set()
_lock = threading.RLock()
_namespaces: list[ModuleType] = []


def register() -> None:
    """Make the Auto classes know glmlike's configs and models, and ``pipeline`` its task: now, or once they are loaded.

    Safe to call any number of times, from any process (it is also the entry point vLLM calls in each of its workers).
    """
    _remember_namespace()
    for packages, actions in _WATCHED:
        if _register_loaded(actions):
            continue
        if not any(isinstance(finder, _Watcher) and finder.packages == packages for finder in sys.meta_path):
            sys.meta_path.insert(0, _Watcher(packages, actions))


def _register_loaded(actions: dict[str, Callable[[], None]]) -> bool:
    """Register with what is fully loaded; whether nothing is left to do."""
    with _lock:
        for module, action in actions.items():
            if module not in _done and _is_loaded(module):
                _done.add(module)
                action()
    return _done >= actions.keys()


def _is_loaded(name: str) -> bool:
    spec = getattr(sys.modules.get(name), "__spec__", None)
    return spec is not None and not getattr(spec, "_initializing", False)


def _register_configs() -> None:
    from transformers import AutoConfig

    from glmlike.configuration import ChatGLMConfig, GlmLikeConfig, SharedGlmConfig

    for config in (GlmLikeConfig, ChatGLMConfig):
        AutoConfig.register(config.model_type, config, exist_ok=True)
        _publish(config)
    # transformers' own glm configs keep becoming transformers' own class; GLM-10B's, of the same type, become ours.
    AutoConfig.register("glm", SharedGlmConfig, exist_ok=True)


def _register_models() -> None:
    from transformers.models.auto import modeling_auto

    from glmlike import loading, lora, modeling, packed_loading
    from glmlike.checkpoint import adapters, on_the_fly, quantizer
    from glmlike.configuration import ChatGLMConfig, GlmLikeConfig

    _publish(GlmLikeConfig, ChatGLMConfig)

    table = {
        "AutoModel": ("GlmLikeModel", "ChatGLMForConditionalGeneration"),
        "AutoModelForCausalLM": ("GlmLikeForCausalLM", "ChatGLMForConditionalGeneration"),
        "AutoModelForSeq2SeqLM": ("GlmLikeForCausalLM", "ChatGLMForConditionalGeneration"),
        "AutoModelForSequenceClassification": ("GlmLikeForSequenceClassification", "ChatGLMForSequenceClassification"),
        "AutoModelForTokenClassification": ("GlmLikeForTokenClassification", "ChatGLMForTokenClassification"),
        "AutoModelForQuestionAnswering": ("GlmLikeForQuestionAnswering", "ChatGLMForQuestionAnswering"),
    }
    for auto_name, names in table.items():
        auto = getattr(modeling_auto, auto_name)
        for config, name in zip((GlmLikeConfig, ChatGLMConfig), names, strict=True):
            auto.register(config, getattr(modeling, name), exist_ok=True)
            _publish(getattr(modeling, name))
    on_the_fly.register()
    loading.folder_readers["glm-130b"] = on_the_fly.open_folder
    packed_loading.packed_readers[:] = [on_the_fly.open_packed]
    packed_loading.packed_fetchers[:] = [on_the_fly.fetch_packed]
    loading.use_file_check(on_the_fly.require_readable)
    loading.use_key_mapping(on_the_fly.key_mapping)
    quantizer.register()
    lora.adapter_readers[:] = [adapters.write_native]


def _register_tokenizers() -> None:
    """By name alone, under a config that no checkpoint has.

    Under the config of a checkpoint, ``trust_remote_code=True`` would run the folder's own tokenizer; a name that is
    known, of a class outside transformers, wins over it (``explicit_local_code`` in tokenization_auto.py).
    """
    from transformers import AutoTokenizer, PreTrainedConfig

    from glmlike.tokenization.tokenizer import HUB_CLASSES

    class TokenizerNames(PreTrainedConfig):
        model_type = "glmlike-tokenizer-names"

    for tokenizer in HUB_CLASSES:
        AutoTokenizer.register(TokenizerNames, tokenizer, exist_ok=True)


def _register_pipeline() -> None:
    from glmlike.infilling.pipeline import register

    register()


def _register_peft() -> None:
    from glmlike.lora import register_targets

    register_targets(sys.modules[_PEFT_TABLES])


def _register_liger() -> None:
    from glmlike.liger import register_liger

    register_liger(sys.modules[_LIGER_TABLE])


_ACTIONS: dict[str, Callable[[], None]] = {
    _AUTO_CONFIG: _register_configs,
    _AUTO_MODEL: _register_models,
    _AUTO_TOKENIZER: _register_tokenizers,
    _PIPELINES: _register_pipeline,
}
"""What is done once a module of transformers is there; each costs seconds to load, so none is loaded for it."""
_PEFT_ACTIONS: dict[str, Callable[[], None]] = {_PEFT_TABLES: _register_peft}
"""The same for PEFT."""
_LIGER_ACTIONS: dict[str, Callable[[], None]] = {_LIGER_TABLE: _register_liger}
"""And for Liger's kernels."""
_WATCHED = (
    (("transformers.", "glmlike."), _ACTIONS),
    (("peft.",), _PEFT_ACTIONS),
    (("liger_kernel.",), _LIGER_ACTIONS),
)


def _publish(*classes: type) -> None:
    """Set the classes on the ``transformers`` namespace: TRL, vLLM and SGLang resolve config.architectures there.

    transformers may run its ``__init__`` twice (processing_utils does it) and then has two such namespaces, of which
    importers hold one or the other; both get the classes.
    """
    _remember_namespace()
    for namespace in _namespaces:
        for published in classes:
            setattr(namespace, published.__name__, published)


def _remember_namespace() -> None:
    namespace = sys.modules.get("transformers")
    if namespace is not None and namespace not in _namespaces:
        _namespaces.append(namespace)


class _Watcher:
    """A meta-path finder that only notices when the outermost import of a module of ``packages`` ends."""

    def __init__(self, packages: tuple[str, ...], actions: dict[str, Callable[[], None]]) -> None:
        self.packages, self._actions = packages, actions
        self._local = threading.local()

    def find_spec(
        self, name: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if not name.startswith(self.packages):
            return None
        _remember_namespace()
        spec = next(filter(None, (f.find_spec(name, path, target) for f in sys.meta_path if f is not self)), None)
        if spec is not None and spec.loader is not None and hasattr(spec.loader, "exec_module"):
            self._watch(spec.loader)
        return spec

    def _watch(self, loader: Any) -> None:
        execute: Callable[[ModuleType], None] = loader.exec_module

        def exec_module(module: ModuleType) -> None:
            del loader.exec_module
            outermost = getattr(self._local, "depth", 0) == 0
            self._local.depth = getattr(self._local, "depth", 0) + 1
            try:
                execute(module)
                if outermost:
                    self._after(module)
            finally:
                self._local.depth -= 1

        loader.exec_module = exec_module

    def _after(self, module: ModuleType) -> None:
        # This module has run to its end, but its spec says so only after exec_module returns.
        spec = module.__spec__
        initializing = getattr(spec, "_initializing", False)
        if initializing:
            spec._initializing = False  # type: ignore[union-attr]
        try:
            finished = _register_loaded(self._actions)
        finally:
            if initializing:
                spec._initializing = True  # type: ignore[union-attr]
        if finished and self in sys.meta_path:
            sys.meta_path.remove(self)
