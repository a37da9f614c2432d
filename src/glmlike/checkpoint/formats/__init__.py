"""The format tables, by the name users give a format."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from glmlike.checkpoint.formats import chatglm1, chatglm2, glm, glm4, glm10b, glm130b, glmlike, llama, qwen2
from glmlike.checkpoint.native import native_shapes
from glmlike.checkpoint.rules import PLACEHOLDER, Rule, plan
from glmlike.checkpoint.splits import Split
from glmlike.hub_json import Format
from glmlike.spec import DecoderSpec


@dataclass(frozen=True)
class FormatTable:
    """One format: its rules for a spec, and the names its files may hold that no decoder needs.

    ``splits`` says, for a format whose files are tensor-parallel ranks, how each foreign tensor is cut over them.
    """

    name: Format
    table: Callable[[DecoderSpec], list[Rule]]
    dropped: tuple[str, ...] = ()
    splits: Mapping[str, Split] = field(default_factory=dict)

    def steps(self, spec: DecoderSpec) -> list[Rule]:
        """The plan of a spec: every rule for every layer, fully named."""
        return list(plan(self.table(spec), {"layer": range(spec.num_hidden_layers)}))

    def foreign_shapes(self, spec: DecoderSpec) -> dict[str, tuple[int, ...]]:
        """Every tensor a checkpoint of this format and spec holds, with its shape."""
        native = native_shapes(spec)
        return {
            name: shape
            for step in self.steps(spec)
            for name, shape in zip(
                step.foreign, step.layout.foreign_shapes([native[name] for name in step.native]), strict=True
            )
        }

    def dropped_names(self, spec: DecoderSpec) -> set[str]:
        """The declared drops, for every layer."""
        return {
            pattern.format(layer=layer)
            for pattern in self.dropped
            for layer in (range(spec.num_hidden_layers) if PLACEHOLDER.search(pattern) else (0,))
        }

    def split_of(self, name: str) -> Split | None:
        """How a foreign tensor is cut over ranks; None for what is not of this format, or is dropped."""
        return self.splits.get(re.sub(r"\.\d+\.", ".{layer}.", name))

    def copies(self, spec: DecoderSpec) -> dict[str, str]:
        """Names that a file may hold although they repeat another of its tensors: ``{copy: original}``.

        A tied head is not part of a tied model's file, but some tools write it all the same.
        """
        shared = {"lm_head.weight": "model.embed_tokens.weight"}
        return shared if spec.tie_word_embeddings and self.name not in ("chatglm", "glm-130b") else {}


TABLES: dict[Format, FormatTable] = {
    "glmlike": FormatTable("glmlike", glmlike.table, glmlike.DROPPED),
    "glm-10b": FormatTable("glm-10b", glm10b.table, glm10b.DROPPED),
    "glm-130b": FormatTable("glm-130b", glm130b.table, glm130b.DROPPED, glm130b.SPLITS),
    "chatglm-6b": FormatTable("chatglm-6b", chatglm1.table, chatglm1.DROPPED),
    "chatglm": FormatTable("chatglm", chatglm2.table, chatglm2.DROPPED),
    "glm": FormatTable("glm", glm.table, glm.DROPPED),
    "glm4": FormatTable("glm4", glm4.table, glm4.DROPPED),
    "llama": FormatTable("llama", llama.table, llama.DROPPED),
    "qwen2": FormatTable("qwen2", qwen2.table, qwen2.DROPPED),
}
