"""Run by tests/test_sat_library.py in a Python that has SwissArmyTransformer: its GLM130B writes a folder and logits.

GLM130B in SAT 0.4.12 wants a CUDA device by number, halves its attention probabilities whatever the model's dtype, and
is given its bool mask as numbers, which torch refuses. Here the device is the CPU, the halving is left out, and the
mask is bool again. Nothing else of it is changed.
"""

from __future__ import annotations

import json
import sys
from argparse import Namespace
from pathlib import Path
from typing import Any

import torch

torch.cuda.current_device = lambda: torch.device("cpu")  # type: ignore[assignment,return-value]
torch.Tensor.half = torch.Tensor.float  # type: ignore[method-assign]

from sat.model.official.glm130B_model import GLM130B, SelfAttentionWithFP32SoftmaxMixin  # noqa: E402
from sat.training.model_io import extract_model_specific_args_to_dump  # noqa: E402

_attention = SelfAttentionWithFP32SoftmaxMixin.attention_fn


def _attention_of_bool_mask(self: Any, query: Any, key: Any, value: Any, mask: Any, *rest: Any, **kwargs: Any) -> Any:
    return _attention(self, query, key, value, mask.bool(), *rest, **kwargs)


SelfAttentionWithFP32SoftmaxMixin.attention_fn = _attention_of_bool_mask

ARGUMENTS: dict[str, Any] = {
    "num_layers": 3,
    "hidden_size": 64,
    "inner_hidden_size": 88,
    "vocab_size": 96,
    "num_attention_heads": 4,
    "max_sequence_length": 64,
    "layernorm_order": "post",
    "model_parallel_size": 1,
    "fp16": False,
    "position_encoding_2d": False,
    "no_glu": False,
    "skip_init": False,
    "use_gpu_initialization": False,
}
SOP, PREFIX, LENGTH = 93, 7, 12


def build() -> Any:
    """A GLM130B with numbers that make a wrong order, mask or factor show."""
    model = GLM130B(Namespace(**ARGUMENTS)).float().eval()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            parameter.copy_(noise * (0.2 if parameter.dim() > 1 else 0.1))
        for name, parameter in model.named_parameters():
            if "layernorm.weight" in name:
                parameter.add_(1)
    return model


def batch(mask_token: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Two rows with a blank in the context, and the positions generate.py of THUDM/GLM-130B gives them."""
    generator = torch.Generator().manual_seed(mask_token)
    ids = torch.randint(3, 80, (2, LENGTH), generator=generator)
    ids[:, 4], ids[:, PREFIX] = mask_token, SOP
    positions = torch.arange(LENGTH).expand(2, -1).clone()
    if mask_token != 92:  # all but [gMASK]: every token from sop on has the blank's position
        positions[:, PREFIX:] = 4
    return ids, positions


@torch.no_grad()
def main(folder: Path) -> None:
    """Write ``folder``: a SAT checkpoint of one rank, and logits.pt with inputs and outputs by case."""
    model = build()
    hidden = torch.ones(LENGTH, LENGTH).tril() == 0  # True: may not see
    hidden[:, :PREFIX] = False
    found = {}
    for name, token in {"mask": 90, "smask": 91, "gmask": 92}.items():
        ids, positions = batch(token)
        logits, *_ = model(ids, positions, hidden[None, None])
        found |= {f"{name}.input_ids": ids, f"{name}.position_ids": positions, f"{name}.logits": logits}
    (folder / "1").mkdir(parents=True)
    (folder / "latest").write_text("1")
    torch.save({"module": model.state_dict()}, folder / "1" / "mp_rank_00_model_states.pt")
    arguments = extract_model_specific_args_to_dump(Namespace(**ARGUMENTS), model)
    (folder / "model_config.json").write_text(json.dumps(arguments))
    torch.save(found, folder / "logits.pt")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
