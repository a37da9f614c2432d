"""The format tables, by the name users give a format."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial

from glmlike.checkpoint.formats import chatglm1, chatglm2, glm, glm4, glm10b, glm130b, glmlike, llama, meta, qwen2
from glmlike.checkpoint.native import native_shapes
from glmlike.checkpoint.rules import PLACEHOLDER, Rule, plan
from glmlike.checkpoint.splits import Split
from glmlike.hub_json import Format
from glmlike.spec import DecoderSpec


@dataclass(frozen=True)
class FormatTable:
    """One format: its rules for a spec, and the names its files may hold that no decoder needs.

    ``prefix`` begins every name; files of a bare decoder of the format leave it out.
    ``splits`` says, for a format whose files are tensor-parallel ranks, how each foreign tensor is cut over them.
    """

    name: Format
    table: Callable[[DecoderSpec], list[Rule]]
    dropped: tuple[str, ...] = ()
    prefix: str = ""
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
        if not spec.tie_word_embeddings or self.name in ("chatglm", "glm-130b", "meta"):
            return {}
        rules = self.table(spec)
        (embedding,) = (rule.foreign[0] for rule in rules if rule.native == ("model.embed_tokens.weight",))
        return dict.fromkeys(("lm_head.weight", self.prefix + "lm_head.weight"), embedding)


def table_of(fmt: Format, dropped_rows: int = 0) -> FormatTable:
    """The table of a format's files; those of ChatGLM-6B v1.0 have ``dropped_rows`` before the vocabulary."""
    if not dropped_rows:
        return TABLES[fmt]
    return FormatTable("chatglm-6b", partial(chatglm1.table, dropped_rows=dropped_rows), chatglm1.DROPPED)


TABLES: dict[Format, FormatTable] = {
    "glmlike": FormatTable("glmlike", glmlike.table, glmlike.DROPPED),
    "glm-10b": FormatTable("glm-10b", glm10b.table, glm10b.DROPPED, prefix="glm."),
    "glm-130b": FormatTable("glm-130b", glm130b.table, glm130b.DROPPED, splits=glm130b.SPLITS),
    "chatglm-6b": FormatTable("chatglm-6b", chatglm1.table, chatglm1.DROPPED),
    "chatglm": FormatTable("chatglm", chatglm2.table, chatglm2.DROPPED),
    "glm": FormatTable("glm", glm.table, glm.DROPPED),
    "glm4": FormatTable("glm4", glm4.table, glm4.DROPPED),
    "llama": FormatTable("llama", llama.table, llama.DROPPED),
    "qwen2": FormatTable("qwen2", qwen2.table, qwen2.DROPPED),
    "meta": FormatTable("meta", meta.table, meta.DROPPED, splits=meta.SPLITS),
}
