"""Whether two folders compute the same: both decoders run layer by layer, so that memory holds one layer at a time.

Equal bytes are what :func:`glmlike.verify` tells; this tells how far apart two folders are that were rounded, quantized
or trained on, or that two programs wrote, and at which layer they part.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from glmlike.checkpoint.convert import Detection, detect, to_native
from glmlike.errors import CheckpointError, ConfigError
from glmlike.hub_json import Generation, carried_fields
from glmlike.spec import DecoderSpec

if TYPE_CHECKING:
    from torch import Tensor, nn

_TOKENS = 48
_ROWS = 2


@dataclass(frozen=True)
class ParityReport:
    """How far two decoders are apart, on the same tokens, both in float32.

    ``difference`` has one number a layer that ran: the largest absolute difference of its hidden states over their root
    mean square. ``first_divergent_layer`` is the first of more than ``tolerance``, None if there is none. ``kl`` is the
    mean of KL(left || right) of the next token in nats, ``logits`` the largest absolute difference of logits; both are
    None unless every layer ran.
    """

    tokens: int
    layers: int
    tolerance: float
    difference: tuple[float, ...]
    first_divergent_layer: int | None
    logits: float | None = None
    kl: float | None = None

    @property
    def equal(self) -> bool:
        """Whether no layer differs by more than the tolerance."""
        return self.first_divergent_layer is None


def parity(
    left: str | Path,
    right: str | Path,
    *,
    layers: int | None = None,
    tolerance: float = 1e-4,
    input_ids: Any = None,
    generation: Generation | None = None,
    spec: str | DecoderSpec | None = None,
) -> ParityReport:
    """Run the first ``layers`` layers (None: all, and the head) of two folders of any formats, and compare.

    ``input_ids`` [B, T] are the tokens; without them, random ones that any vocabulary has, behind which a decoder of
    blanks gets a mask and its start token. Embedding, head and one layer of one folder are in memory at a time, in
    float32.

    Raises:
        ConfigError, CheckpointError: a folder cannot be read, or the two are decoders of different sizes.
    """
    found = [detect(folder, generation=generation, spec=spec) for folder in (left, right)]
    _require_alike(*found)
    total = found[0].spec.num_hidden_layers
    if layers is not None and not 0 < layers <= total:
        raise ConfigError(f"layers={layers}: expected 1 to {total}, the layers of {left}.")
    special = {**_special(found[1]), **_special(found[0])}
    ids = _tokens(found[0].spec, special, input_ids)
    runs = [_run(detection, special, ids, layers) for detection in found]
    differences = tuple(_apart(a, b) for a, b in zip(runs[0].hidden, runs[1].hidden, strict=True))
    first = next((layer for layer, apart in enumerate(differences) if not apart <= tolerance), None)
    logits = kl = None
    if runs[0].logits is not None and runs[1].logits is not None:
        logits = float((runs[0].logits - runs[1].logits).abs().max())
        kl = _divergence(runs[0].logits, runs[1].logits)
    return ParityReport(ids.numel(), len(differences), tolerance, differences, first, logits, kl)


@dataclass
class _Run:
    hidden: list[Tensor]
    logits: Tensor | None = None


def _require_alike(left: Detection, right: Detection) -> None:
    fields = ("vocab_size", "hidden_size", "num_hidden_layers")
    sizes = [{name: getattr(found.spec, name) for name in fields} for found in (left, right)]
    if sizes[0] != sizes[1]:
        raise CheckpointError(
            f"{left.folder} has {sizes[0]}, {right.folder} has {sizes[1]}: expected two folders of one decoder."
        )


def _special(found: Detection) -> dict[str, int]:
    """The ids of blanks, of the start of a piece and of padding that the folder's config says and its rows have."""
    names = ("mask_token_id", "smask_token_id", "gmask_token_id", "sop_token_id", "pad_token_id")
    fields = carried_fields(found.config)
    return {name: fields[name] for name in names if 0 <= fields.get(name, -1) < found.spec.vocab_size}


def _tokens(spec: DecoderSpec, special: dict[str, int], given: Any) -> Tensor:
    import torch

    if given is not None:
        ids = torch.as_tensor(given)
        if ids.ndim != 2 or ids.dtype.is_floating_point or not ids.numel():
            found = f"input_ids of shape {list(ids.shape)} and dtype {ids.dtype}"
            raise ConfigError(f"{found}: expected whole numbers [B, T].")
        return ids.long()
    plain = torch.tensor([token for token in range(min(spec.vocab_size, 1000)) if token not in special.values()])
    generator = torch.Generator().manual_seed(0)
    ids = plain[torch.randint(0, len(plain), (_ROWS, _TOKENS), generator=generator)]
    mask = special.get("gmask_token_id", special.get("mask_token_id"))
    if spec.attention_mask == "prefix" and mask is not None and "sop_token_id" in special:
        ids[:, _TOKENS // 2] = mask
        ids[:, _TOKENS // 2 + 1] = special["sop_token_id"]
    return ids


def _run(found: Detection, special: dict[str, int], ids: Tensor, layers: int | None) -> _Run:
    """The hidden states after each layer, and the logits if all ran; each layer is read when it is its turn."""
    import torch

    from glmlike.configuration import GlmLikeConfig
    from glmlike.modeling import GlmLikeForCausalLM
    from glmlike.rotary import GlmLikeRotaryEmbedding

    config = GlmLikeConfig.from_spec(found.spec, **special)
    config.use_cache = False
    with torch.device("meta"):
        model = GlmLikeForCausalLM(config).eval()
    config = model.config
    if found.spec.positions != "learned_2d":
        model.model.rotary_emb = GlmLikeRotaryEmbedding(config)
    config.num_hidden_layers = found.spec.num_hidden_layers if layers is None else layers
    run = _Run([])
    _fill(found, model, [name for name, _ in model.named_parameters() if ".layers." not in name])
    if config.tie_word_embeddings:
        model.tie_weights()
    for index, layer in enumerate(model.model.layers[: config.num_hidden_layers]):
        prefix = f"model.layers.{index}."

        def load(module: nn.Module, arguments: Any, prefix: str = prefix) -> None:
            _fill(found, model, [prefix + name for name, _ in module.named_parameters()])

        def leave(module: nn.Module, arguments: Any, output: Any) -> None:
            run.hidden.append(output[0] if isinstance(output, tuple) else output)
            module.to("meta")

        layer.register_forward_pre_hook(load)
        layer.register_forward_hook(leave)
    with torch.no_grad():
        hidden = model.model(ids, use_cache=False).last_hidden_state
        run.logits = model.lm_head(hidden) if layers is None else None
    return run


def _fill(found: Detection, model: nn.Module, names: Iterable[str]) -> None:
    """Read the named native tensors and put them into the model, in float32."""
    wanted = set(names)
    if found.spec.tie_word_embeddings:
        wanted.discard("lm_head.weight")
    for step in found.table.steps(found.spec):
        if wanted.isdisjoint(step.native):
            continue
        state = dict(zip(step.native, to_native(found, step), strict=True))
        taken = {name: tensor.float() for name, tensor in state.items() if name in wanted}
        model.load_state_dict(taken, strict=False, assign=True)
        wanted -= taken.keys()
    if wanted:
        raise CheckpointError(f"{found.folder}: no tensor of the plan makes {min(wanted)!r}. This is a bug of glmlike.")


def _apart(left: Tensor, right: Tensor) -> float:
    import torch

    scale = left.square().mean().sqrt().clamp_min(torch.finfo(torch.float32).tiny)
    return float((left - right).abs().max() / scale)


def _divergence(left: Tensor, right: Tensor) -> float:
    logs, others = left.log_softmax(-1), right.log_softmax(-1)
    return float((logs.exp() * (logs - others)).sum(-1).mean())
