"""Meta's original LLaMA files: q and k pair neighbours, an own head always, tensor-parallel ranks.

Names are those of the published model.py; ``SPLITS`` is what its column- and row-parallel layers (fairscale) hold. The
rows of q and k are permuted to native's pairing by halves, as in the files of the same models on the Hub.
"""

from __future__ import annotations

from glmlike.checkpoint.layouts import Neighbours, Repeated
from glmlike.checkpoint.native import LAYER
from glmlike.checkpoint.rules import Rule, same
from glmlike.checkpoint.splits import Cut, Replicated, Split
from glmlike.spec import DecoderSpec

# Angles, computed anew by the published code.
DROPPED = ("rope.freqs", "layers.{layer}.attention.inner_attention.rope.freqs")

EMBEDDING, HEAD = "tok_embeddings.weight", "output.weight"
_LAYER = "layers.{layer}."

SPLITS: dict[str, Split] = {
    EMBEDDING: Cut(0),
    **{f"{_LAYER}attention.w{part}.weight": Cut(0) for part in "qkv"},
    f"{_LAYER}attention.wo.weight": Cut(1),
    **{f"{_LAYER}feed_forward.{part}.weight": Cut(0) for part in ("w1", "w3")},
    f"{_LAYER}feed_forward.w2.weight": Cut(1),
    **{f"{_LAYER}{norm}.weight": Replicated() for norm in ("attention_norm", "ffn_norm")},
    "norm.weight": Replicated(),
    HEAD: Cut(0),
}
"""How each tensor is cut over ranks; see :func:`splits` for what depends on the model."""


def splits(*, ranks: int, key_value_heads: int, by_columns: bool) -> dict[str, Split]:
    """``SPLITS`` of one model: an embedding cut ``by_columns`` (LLaMA 1 and 2), or by rows of the vocabulary (3).

    Of fewer key-value heads than ranks, each is held by several ranks in a row (LLaMA 3.1 405B on 16).
    """
    copies = ranks // key_value_heads if ranks > key_value_heads and ranks % key_value_heads == 0 else 1
    keys = {f"{_LAYER}attention.w{part}.weight": Cut(0, copies=copies) for part in "kv"}
    return {**SPLITS, **keys, EMBEDDING: Cut(1 if by_columns else 0)}


def table(spec: DecoderSpec) -> list[Rule]:
    """The rows of a model of one rank; a tied head is stored twice, since the published code always reads one."""
    pairs = {
        "self_attn.v_proj": "attention.wv",
        "self_attn.o_proj": "attention.wo",
        "mlp.gate_proj": "feed_forward.w1",
        "mlp.down_proj": "feed_forward.w2",
        "mlp.up_proj": "feed_forward.w3",
        "input_layernorm": "attention_norm",
        "post_attention_layernorm": "ffn_norm",
    }
    return [
        *_embedding_and_head(spec),
        *(
            Rule(
                (f"{LAYER}self_attn.{part}_proj.weight",),
                (f"{_LAYER}attention.w{part}.weight",),
                Neighbours(spec.head_dim),
            )
            for part in "qk"
        ),
        *(same(f"{LAYER}{native}.weight", f"{_LAYER}{name}.weight") for native, name in pairs.items()),
        same("model.norm.weight", "norm.weight"),
    ]


def _embedding_and_head(spec: DecoderSpec) -> list[Rule]:
    if spec.tie_word_embeddings:
        return [Rule(("model.embed_tokens.weight",), (EMBEDDING, HEAD), Repeated(2))]
    return [same("model.embed_tokens.weight", EMBEDDING), same("lm_head.weight", HEAD)]
