"""Cut layers and feed-forward channels out of a decoder, then let it learn from the uncut one what it lost.

    python examples/prune_and_recover.py --output small                       # the embedded model, a minute on 1 core
    python examples/prune_and_recover.py --model SmolLM2 --layers 26 --width 1280 --text mine.txt --output small

The layers with the least influence go, and the least important channels (glmlike.pruning), both measured on the text.
Then the cut model is trained to give each token of the text the uncut one's odds (Kullback-Leibler divergence), with
nothing but torch. What a cut does not reach stays frozen: the embedding, the head, and the layers before the first that
went. One row in ten of the text is held out; printed: parameters, and the perplexity of held-out rows at each stage.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AutoTokenizer, get_cosine_schedule_with_warmup, set_seed

from glmlike import GlmLikeForCausalLM
from glmlike.data import CONSTITUTION, TINY
from glmlike.pruning import prune_depth, prune_width


def rows_of(text: str, tokenizer: Any, config: Any, length: int) -> Tensor:
    """The text as rows [N, length] of token ids, each behind what an infilling decoder continues a text after."""
    start = [config.gmask_token_id, config.sop_token_id] if config.attention_mask == "prefix" else []
    ids = torch.tensor(tokenizer(text, add_special_tokens=False)["input_ids"])
    body = length - len(start)
    blocks = ids[: len(ids) // body * body].view(-1, body)
    return torch.cat((torch.tensor(start, dtype=torch.long).expand(len(blocks), -1), blocks), dim=1)


@torch.no_grad()
def perplexity(model: Any, rows: Tensor, start: int = 0, *, bfloat16: bool = False) -> float:
    """Of the rows' tokens, but for the first ``start`` and one, which nothing stands before."""
    model.eval()
    losses = []
    for batch in rows.split(4):
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=bfloat16):
            logits = model(batch).logits[:, start:-1].float()
        losses.append(torch.nn.functional.cross_entropy(logits.flatten(0, 1), batch[:, start + 1 :].flatten()))
    return float(torch.stack(losses).mean().exp())


def divergence(student: Tensor, teacher: Tensor) -> Tensor:
    """Mean over tokens of KL(teacher, student) of two logits [B, T, V], in float32."""
    ours, theirs = (logits.float().log_softmax(-1).flatten(0, 1) for logits in (student, teacher))
    return torch.nn.functional.kl_div(ours, theirs, reduction="batchmean", log_target=True)


def freeze_what_was_not_reached(student: Any, first: int) -> list[torch.nn.Parameter]:
    """Leave gradients to the layers from ``first`` on and the last norm; they are returned."""
    student.requires_grad_(False)
    for part in (*student.model.layers[first:], student.model.norm):
        part.requires_grad_(True)
    return [parameter for parameter in student.parameters() if parameter.requires_grad]


class Recovery:
    """Training ``student``, in place, towards ``teacher``, a step a call; its state can be saved and gone on from.

    ``first`` is the first layer that trains. ``bfloat16`` multiplies in bfloat16 (autocast), the parameters stay.
    """

    def __init__(
        self,
        student: Any,
        teacher: Any,
        rows: Tensor,
        *,
        first: int,
        steps: int,
        batch: int,
        rate: float,
        bfloat16: bool,
    ) -> None:
        self.student, self.teacher = student.train(), teacher.eval()
        self.done, self.bfloat16 = 0, bfloat16
        order = torch.cat([torch.randperm(len(rows)) for _ in range(1 + steps * batch // len(rows))])
        self.batches = rows[order[: steps * batch]].split(batch)
        self.parameters = freeze_what_was_not_reached(student, first)
        self.optimizer = torch.optim.AdamW(self.parameters, lr=rate, weight_decay=0.0)
        self.schedule = get_cosine_schedule_with_warmup(self.optimizer, steps // 10, steps)

    def step(self) -> float:
        """Train on the next batch; its divergence before that."""
        ids = self.batches[self.done]
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=self.bfloat16):
            with torch.no_grad():
                theirs = self.teacher(ids).logits
            ours = self.student(ids).logits
        loss = divergence(ours, theirs)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.parameters, 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.schedule.step()
        self.done += 1
        return float(loss.detach())

    def state_dict(self) -> dict[str, Any]:
        """Everything that training changes."""
        parts = {"student": self.student, "optimizer": self.optimizer, "schedule": self.schedule}
        return {"done": self.done, "batches": self.batches, **{name: part.state_dict() for name, part in parts.items()}}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on where ``state`` was saved, with the same arguments."""
        self.done, self.batches = state["done"], state["batches"]
        for name in ("student", "optimizer", "schedule"):
            getattr(self, name).load_state_dict(state[name])


def main(argv: Sequence[str] | None = None) -> dict[str, float]:
    """Prune, recover, save; return the parameters and perplexities."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default=str(TINY), help="a folder or Hub id in any known format")
    parser.add_argument("--text", type=Path, nargs="+", default=[CONSTITUTION], help="UTF-8 files")
    parser.add_argument("--layers", type=int, help="so many stay; by default five of six")
    parser.add_argument("--width", type=int, help="feed-forward channels that stay; by default all")
    parser.add_argument("--output", required=True, help="the folder of the recovered model")
    parser.add_argument("--length", type=int, default=128, help="tokens of a row")
    parser.add_argument("--batch", type=int, default=4, help="rows of a step")
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--rate", type=float, default=1e-3)
    parser.add_argument("--bfloat16", action="store_true", help="multiply in bfloat16, for processors that can")
    options = parser.parse_args(argv)

    set_seed(0)
    teacher = GlmLikeForCausalLM.from_pretrained(options.model, dtype=torch.float32)
    student = GlmLikeForCausalLM.from_pretrained(options.model, dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(options.model)
    text = "\n".join(path.read_text(encoding="utf8") for path in options.text)
    rows = rows_of(text, tokenizer, teacher.config, options.length)
    held_out, seen = rows[9::10], rows[[index for index in range(len(rows)) if index % 10 != 9]]
    start = rows.shape[1] - options.length + (2 if teacher.config.attention_mask == "prefix" else 0)

    measured: dict[str, float] = {"parameters": teacher.num_parameters()}
    measured["perplexity"] = perplexity(teacher, held_out, start)
    calibration = seen[:16].split(4)
    pruned = prune_depth(student, calibration, keep=options.layers or -(-5 * len(student.model.layers) // 6))
    first = min(pruned.removed, default=len(student.model.layers))
    if options.width:
        prune_width(student, calibration, intermediate_size=options.width, multiple_of=64)
        first = 0
    measured["parameters after"] = student.num_parameters()
    measured["perplexity pruned"] = perplexity(student, held_out, start)
    recovery = Recovery(
        student,
        teacher,
        seen,
        first=first,
        steps=options.steps,
        batch=options.batch,
        rate=options.rate,
        bfloat16=options.bfloat16,
    )
    while recovery.done < options.steps:
        loss = recovery.step()
        if recovery.done % 10 == 0:
            print(f"step {recovery.done}: divergence {loss:.3f}")
    student.requires_grad_(True)
    measured["perplexity recovered"] = perplexity(student, held_out, start)
    student.save_pretrained(options.output)
    tokenizer.save_pretrained(options.output)
    return measured


if __name__ == "__main__":
    print(main())
