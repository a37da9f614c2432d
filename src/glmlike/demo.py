"""The main job on the embedded model, through transformers' ordinary API: a minute, two cores, no network."""

from __future__ import annotations

import tempfile
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

import glmlike
from glmlike.data import CONSTITUTION, TINY
from glmlike.errors import CheckpointError, ConfigError

BLANKS = ("In the beginning God created the [MASK] and the earth.", "床前明月光，疑是地上[MASK]。")
PROMPTS = ("In the beginning God", "And Jesus said unto them,", "The LORD is my")
TUNED_PROMPT = "The President shall"
BLOCK = 128


@dataclass
class Demo:
    """Where the demo writes, what it prints on, and one row of results a step."""

    folder: Path
    console: Console = field(default_factory=Console)
    rows: list[tuple[str, str, float]] = field(default_factory=list)

    @contextmanager
    def step(self, title: str) -> Iterator[list[str]]:
        """A titled and timed step; the text appended to the yielded list is its result in the last table."""
        self.console.rule(f"[bold]{title}", align="left")
        result: list[str] = []
        started = time.perf_counter()
        yield result
        self.rows.append((title, " ".join(result), time.perf_counter() - started))


def run(out: Path | None = None) -> list[tuple[str, str, float]]:
    """Run the demo, writing to the new folder ``out`` (or one that is removed); (step, result, seconds) of each.

    Raises:
        ConfigError: an optional package it needs is missing.
        CheckpointError: ``out`` exists, or a saved or converted model is not the one that was saved.
    """
    missing = [name for name in ("accelerate", "peft") if find_spec(name) is None]
    if missing:
        raise ConfigError(f"the demo needs {' and '.join(missing)}: run pip install 'glmlike[demo]'.")
    if out is not None and out.exists():
        raise CheckpointError(f"{out}: exists already. Choose a new folder.")
    with tempfile.TemporaryDirectory() as temporary, _quiet():
        folder = Path(temporary) if out is None else out
        folder.mkdir(parents=True, exist_ok=True)
        demo = Demo(folder)
        model, tokenizer = _load(demo)
        _fill(demo, model, tokenizer)
        _generate(demo, model, tokenizer)
        _stream(demo, model, tokenizer)
        tuned = _fine_tune(demo, model, tokenizer)
        _save_and_reload(demo, tuned, tokenizer)
        _convert(demo)
    _summary(demo)
    return demo.rows


@contextmanager
def _quiet() -> Iterator[None]:
    """No notices from the libraries, no progress bars of loading and saving; the trainer's bar stays."""
    from transformers.utils import logging

    verbosity, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)
            yield
    finally:
        logging.set_verbosity(verbosity)
        if bars:
            logging.enable_progress_bar()


def _load(demo: Demo) -> tuple[Any, Any]:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, set_seed

    set_seed(0)
    with demo.step("load through the Auto classes") as result:
        tokenizer = AutoTokenizer.from_pretrained(TINY)
        model = AutoModelForCausalLM.from_pretrained(TINY, dtype=torch.float32)
        demo.console.print(f"[dim]AutoModelForCausalLM.from_pretrained({TINY.name!r})[/] -> {type(model).__name__}")
        result.append(f"{type(model).__name__}, {model.num_parameters() / 1e6:.1f} M parameters")
    return model, tokenizer


def _fill(demo: Demo, model: Any, tokenizer: Any) -> None:
    from glmlike.infilling import fill

    with demo.step("fill blanks, as GLM was made to") as result:
        for filled in fill(model, tokenizer, BLANKS, max_new_tokens=8, do_sample=False):
            demo.console.print(marked(filled.filled_text, [span.span for span in filled.spans]))
        result.append(f"{len(BLANKS)} texts, a word each")


def marked(text: str, spans: list[tuple[int, int]]) -> Any:
    """A text with the given characters, [start, end), highlighted."""
    from rich.text import Text

    shown = Text(text)
    for start, end in spans:
        shown.stylize("bold green", start, end)
    return shown


def _continue(model: Any, tokenizer: Any, prompt: str, **options: Any) -> str:
    inputs = tokenizer(prompt, return_tensors="pt").to(model.device)
    output = model.generate(**inputs, max_new_tokens=options.pop("max_new_tokens", 32), **options)
    return str(tokenizer.decode(output[0], skip_special_tokens=True))


def _generate(demo: Demo, model: Any, tokenizer: Any) -> None:
    ways: dict[str, dict[str, Any]] = {
        "greedy": {"do_sample": False},
        "sampling, top-p 0.9": {"do_sample": True, "top_p": 0.9, "temperature": 0.8},
        "beam search, 4 beams": {"do_sample": False, "num_beams": 4},
    }
    with demo.step("generate: greedy, sampling, beam search") as result:
        for (name, options), prompt in zip(ways.items(), PROMPTS, strict=True):
            text = _continue(model, tokenizer, prompt, **options)
            _show(demo, name, prompt, text)
        result.append(f"{len(ways)} continuations of 32 tokens")


def _show(demo: Demo, name: str, prompt: str, text: str) -> None:
    from rich.text import Text

    line = Text.assemble((f"{name}: ", "cyan"), (prompt, "bold"), text.removeprefix(prompt).replace("\n", " / "))
    demo.console.print(line)


def _stream(demo: Demo, model: Any, tokenizer: Any) -> None:
    from transformers import TextStreamer

    with demo.step("stream tokens as they come") as result:
        started = time.perf_counter()
        inputs = tokenizer("Blessed are the", return_tensors="pt")
        streamer = TextStreamer(tokenizer, skip_special_tokens=True)
        output = model.generate(
            **inputs, max_new_tokens=64, do_sample=True, temperature=0.7, top_p=0.9, streamer=streamer
        )
        count = output.shape[1] - inputs["input_ids"].shape[1]
        result.append(f"{count / (time.perf_counter() - started):.0f} tokens/s")


def _fine_tune(demo: Demo, model: Any, tokenizer: Any) -> Any:
    """A LoRA adapter trained by the HF Trainer on all but the last tenth of the text, and measured on that tenth."""
    from peft import LoraConfig, get_peft_model
    from transformers import Trainer, TrainingArguments, default_data_collator

    blocks = _blocks(tokenizer)
    held_out = blocks[-len(blocks) // 10 :]
    with demo.step("fine-tune a LoRA adapter with Trainer on the US Constitution") as result:
        before = _continue(model, tokenizer, TUNED_PROMPT, do_sample=False)
        adapter = LoraConfig(task_type="CAUSAL_LM", r=16, lora_alpha=32, target_modules="all-linear")
        tuned = get_peft_model(model, adapter)
        trainer = Trainer(
            model=tuned,
            args=TrainingArguments(
                output_dir=str(demo.folder / "trainer"),
                num_train_epochs=6,
                per_device_train_batch_size=8,
                per_device_eval_batch_size=8,
                learning_rate=5e-3,
                lr_scheduler_type="cosine",
                warmup_steps=0.1,
                logging_steps=20,
                save_strategy="no",
                report_to="none",
                use_cpu=True,
                seed=0,
            ),
            train_dataset=blocks[: -len(held_out)],
            eval_dataset=held_out,
            data_collator=default_data_collator,
        )
        first = trainer.evaluate()["eval_loss"]
        trainer.train()
        last = trainer.evaluate()["eval_loss"]
        tuned.eval()
        after = _continue(tuned, tokenizer, TUNED_PROMPT, do_sample=False)
        _show(demo, "before", TUNED_PROMPT, before)
        _show(demo, "after", TUNED_PROMPT, after)
        result.append(f"held-out loss {first:.2f} -> {last:.2f}")
        if last >= first:
            raise CheckpointError("the adapter did not lower the held-out loss: this installation trains wrongly.")
    return tuned


def _blocks(tokenizer: Any) -> list[dict[str, list[int]]]:
    ids = tokenizer(CONSTITUTION.read_text(encoding="utf8"), verbose=False)["input_ids"]
    cut = [ids[start : start + BLOCK] for start in range(0, len(ids) - BLOCK + 1, BLOCK)]
    return [{"input_ids": block, "labels": block} for block in cut]


def _save_and_reload(demo: Demo, tuned: Any, tokenizer: Any) -> None:
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    with demo.step("save and reload: the adapter, and the merged model") as result:
        inputs = tokenizer(TUNED_PROMPT, return_tensors="pt")
        tuned.save_pretrained(demo.folder / "adapter")
        with torch.no_grad():
            expected = tuned(**inputs).logits
            base = AutoModelForCausalLM.from_pretrained(TINY, dtype=torch.float32)
            adapted = PeftModel.from_pretrained(base, demo.folder / "adapter").eval()
            _require_equal(adapted(**inputs).logits, expected, "the reloaded adapter")
            merged = tuned.merge_and_unload()
            expected = merged(**inputs).logits
            merged.save_pretrained(demo.folder / "merged")
            tokenizer.save_pretrained(demo.folder / "merged")
            reloaded = AutoModelForCausalLM.from_pretrained(demo.folder / "merged").eval()
            _require_equal(reloaded(**inputs).logits, expected, "the reloaded model")
        result.append("logits equal, bit for bit")


def _require_equal(found: Any, expected: Any, what: str) -> None:
    import torch

    if not torch.equal(found, expected):
        raise CheckpointError(f"{what} gives other logits than the saved one (max {(found - expected).abs().max()}).")


def _convert(demo: Demo) -> None:
    """A decoder of the GLM-4 recipe (the embedded model is of ours, which no other layout can say), there and back."""
    from glmlike.checkpoint.convert import fingerprint
    from glmlike.configuration import GlmLikeConfig
    from glmlike.modeling import GlmLikeForCausalLM

    sizes = {"vocab_size": 512, "hidden_size": 128, "num_hidden_layers": 3, "num_attention_heads": 4}
    with demo.step("convert a GLM-4 decoder to the ChatGLM layout and back") as result:
        GlmLikeForCausalLM(GlmLikeConfig(**sizes)).save_pretrained(demo.folder / "native")
        for source, target, fmt in (("native", "chatglm", "chatglm"), ("chatglm", "back", "glmlike")):
            report = glmlike.convert(demo.folder / source, demo.folder / target, to=fmt)  # type: ignore[call-overload]
            demo.console.print(f"{report.source_format} -> {report.target_format}: {report.tensors} tensors")
        hashes = {name: fingerprint(demo.folder / name) for name in ("native", "chatglm", "back")}
        sample = "model.layers.0.self_attn.q_proj.weight"
        for name, found in hashes.items():
            demo.console.print(f"{name:8} {sample} [dim]{found[sample][:16]}…")
        if not hashes["native"] == hashes["chatglm"] == hashes["back"]:
            raise CheckpointError("the converted model is not the one that was saved.")
        result.append(f"sha256 of all {len(hashes['back'])} tensors equal")


def _summary(demo: Demo) -> None:
    table = Table(title="glmlike demo", title_justify="left")
    for column in ("step", "result"):
        table.add_column(column)
    table.add_column("seconds", justify="right")
    for title, result, seconds in demo.rows:
        table.add_row(title, result, f"{seconds:.1f}")
    table.add_row("all", "", f"{sum(seconds for *_, seconds in demo.rows):.1f}")
    demo.console.print(table)
