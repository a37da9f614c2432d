"""``pipeline("glm-infilling")``: ``fill`` as a transformers pipeline, registered on import of glmlike."""

from __future__ import annotations

from typing import Any

from transformers import Pipeline

from glmlike.errors import GlmLikeError
from glmlike.infilling.context import Context, read_context, read_markers
from glmlike.infilling.decoding import Piece, decode_batch, read_options, require_room
from glmlike.infilling.filling import put_in_place, require_order

TASK = "glm-infilling"


class BlankInfillingPipeline(Pipeline):
    """Fills the blanks of a text, of each text of a list, or of a dataset or generator of texts.

    ``order``, ``append_gmask`` and the options of ``generate`` are :func:`glmlike.infilling.fill`'s, at construction
    or in a call; ``batch_size`` is every pipeline's. Each result is a dict: ``text``, ``filled_text``, ``spans`` (a
    dict each, with the fields of :class:`glmlike.infilling.FilledSpan`) and ``log_probability``.

    Raises:
        ConfigError, GlmLikeError: as ``fill``; for the model and the tokenizer, when the pipeline is made.
    """

    _load_processor = False
    _load_image_processor = False
    _load_feature_extractor = False
    _load_tokenizer = True

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        if self.tokenizer is None:
            raise GlmLikeError(f"{TASK} without a tokenizer: pass tokenizer=, a tokenizer or its folder.")
        self.markers = read_markers(self.model, self.tokenizer)

    def _sanitize_parameters(
        self, order: str | None = None, append_gmask: bool | None = None, **options: Any
    ) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any]]:
        preprocess = {} if append_gmask is None else {"append_gmask": append_gmask}
        forward = dict(options)
        if order is not None:
            require_order(order)
            forward["order"] = order
        return preprocess, forward, {}

    def preprocess(self, text: str, append_gmask: bool = False) -> dict[str, Context]:
        """The text as a context."""
        return {"context": read_context(text, self.tokenizer, self.markers, append_gmask=append_gmask)}

    def _forward(self, inputs: dict[str, Any], order: Any = "left_to_right", **options: Any) -> dict[str, Any]:
        """The pieces of one context, or of each of a batch of them."""
        given = inputs["context"]
        contexts = given if isinstance(given, list) else [given]
        decoding = read_options(self.model, self.tokenizer, options)
        for context in contexts:
            require_room(context, decoding, self.model.config)
        pieces = decode_batch(self.model, contexts, self.markers, decoding, order)
        return {"context": given, "pieces": pieces if isinstance(given, list) else pieces[0]}

    def postprocess(self, outputs: dict[str, Any]) -> dict[str, Any]:
        """The filled text as a dict of plain values."""
        pieces: list[Piece] = outputs["pieces"]
        return put_in_place(outputs["context"], pieces, self.tokenizer).to_dict()


def register() -> None:
    """Make ``transformers.pipeline`` know the task."""
    from transformers import AutoModelForCausalLM
    from transformers.pipelines import PIPELINE_REGISTRY

    if TASK in PIPELINE_REGISTRY.supported_tasks:
        return
    PIPELINE_REGISTRY.register_pipeline(
        TASK, pipeline_class=BlankInfillingPipeline, pt_model=AutoModelForCausalLM, type="text"
    )
    # A saved pipeline would carry a copy of this file for others to run; whoever imports glmlike has the task.
    del BlankInfillingPipeline._registered_impl
