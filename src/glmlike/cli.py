"""The command line: calls into the library, and nothing else.

Exit codes: 0 done; 2 the input or the arguments are wrong, in one sentence; 1 anything else.
"""

from __future__ import annotations

import json
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Optional

import typer

import glmlike
from glmlike.errors import GlmLikeError

app = typer.Typer(
    help="Every GLM in today's Hugging Face transformers: inspect, convert, verify, try.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

_FORMATS = "glmlike, glm-10b, glm-130b, chatglm-6b, chatglm, glm, glm4, llama, qwen2, meta"
Folder = Annotated[Path, typer.Argument(help="a checkpoint's folder, in any known format", show_default=False)]
AsJson = Annotated[bool, typer.Option("--json", help="print JSON instead of a table")]
# typer reads these annotations at run time, where Python 3.10 needs Optional.
GenerationOption = Annotated[
    Optional[str],  # noqa: UP045
    typer.Option(
        "--generation", help="chatglm2 or chatglm3: what rope_ratio means, where no field of config.json says"
    ),
]

SpecOption = Annotated[
    Optional[str],  # noqa: UP045
    typer.Option("--spec", help="the decoder of rank files that have no model_config.json or params.json"),
]


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line; a mistake in the input ends as one sentence on stderr and exit code 2."""
    try:
        app(args=None if arguments is None else list(arguments), prog_name="glmlike")
    except (GlmLikeError, OSError) as error:
        print(f"Error: {error}", file=sys.stderr)
        sys.exit(2)


def _print_version(wanted: bool) -> None:
    if wanted:
        print(f"glmlike {glmlike.__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", help="print the version", callback=_print_version, is_eager=True)
    ] = False,
) -> None:
    """Every GLM in today's Hugging Face transformers: inspect, convert, verify, try."""


@app.command()
def demo(
    out: Annotated[
        Optional[Path],  # noqa: UP045
        typer.Option(help="keep what the demo writes in this new folder", show_default="a temporary folder"),
    ] = None,
) -> None:
    """Load the embedded model, generate, stream, fine-tune a LoRA adapter, save, reload, convert there and back."""
    from glmlike.demo import run

    run(out)


@app.command()
def inspect(
    folder: Folder, generation: GenerationOption = None, spec: SpecOption = None, as_json: AsJson = False
) -> None:
    """What a folder holds: its format, its decoder, its tensors, and the formats it converts to."""
    facts = _facts(folder, generation, spec)
    if as_json:
        print(json.dumps(facts, indent=2))
        return
    _print_table(str(folder), {name: _short(value) for name, value in facts.items() if name != "spec"} | facts["spec"])


def _facts(folder: Path, generation: Any, spec: str | None) -> dict[str, Any]:
    from dataclasses import asdict

    from glmlike.checkpoint.gguf_fields import can_be_gguf
    from glmlike.hub_json import FORMATS, cannot_express

    found = glmlike.detect(folder, generation=generation, spec=spec)
    tensors = found.checkpoint.tensors.values()
    return {
        "format": found.format,
        "parameters": found.spec.num_parameters,
        "tensors": len(tensors),
        "dtypes": dict(Counter(info.dtype for info in tensors)),
        "notes": list(found.notes),
        **({"converted_from": found.record["source"].get("name")} if found.record else {}),
        "files": [path.name for path in found.checkpoint.files],
        "converts_to": [
            *(fmt for fmt in FORMATS if fmt != found.format and not cannot_express(found.spec, fmt)),
            *(["gguf"] if folder.suffix != ".gguf" and can_be_gguf(found.spec) else []),
        ],
        "spec": {**asdict(found.spec), "rope_scaling": dict(found.spec.rope_scaling)},
    }


@app.command()
def convert(
    source: Annotated[
        str, typer.Argument(metavar="SRC", help="the checkpoint's folder, or its id on the Hub", show_default=False)
    ],
    destination: Annotated[Path, typer.Argument(metavar="DST", help="a new folder", show_default=False)],
    to: Annotated[
        str,
        typer.Option("--to", help=f"{_FORMATS}; or gguf, a file for llama.cpp", show_default=False),
    ],
    revision: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option(help="of SRC on the Hub: a commit, a tag or a branch", show_default="its newest"),
    ] = None,
    generation: GenerationOption = None,
    spec: SpecOption = None,
    max_shard_size: Annotated[str, typer.Option(help="the largest file to write")] = "5GB",
    tensor_parallel: Annotated[
        Optional[int],  # noqa: UP045
        typer.Option(help="with --to glm-130b or meta: the number of rank files to write", show_default="1"),
    ] = None,
    dtype: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option(
            help="round every floating-point tensor to float32, float16 or bfloat16; with --to gguf also q8_0, q5_1, "
            "q5_0, q4_1, q4_0",
            show_default="the source's",
        ),
    ] = None,
    max_memory: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option(help="the most memory the whole process may use, such as 2GB", show_default="1GB"),
    ] = None,
    workers: Annotated[
        Optional[int],  # noqa: UP045
        typer.Option(help="threads that read, hash and write", show_default="one a processor, at most 4", min=1),
    ] = None,
    verify: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option(
            help="how the result is read back: none, hash or roundtrip", show_default="roundtrip where that can be"
        ),
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="go on with an interrupted conversion")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="print the plan and write nothing")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="no progress bar, no table")] = False,
    as_json: AsJson = False,
) -> None:
    """Write SRC in another format to the new folder DST, every number kept bit for bit; DST appears whole or not.

    Integers of a pre-quantized SRC become floats; the report's notes say so.
    """
    from dataclasses import asdict

    from glmlike.checkpoint.progress import on_terminal
    from glmlike.checkpoint.sources import local_folder

    folder = local_folder(source, revision)
    options: dict[str, Any] = {
        "to": to,
        "generation": generation,
        "spec": spec,
        "max_shard_size": max_shard_size,
        "tensor_parallel": tensor_parallel,
        "dtype": dtype,
        "max_memory": max_memory,
        "workers": workers,
        "verify": verify,
    }
    if dry_run:
        plan = glmlike.convert(folder, destination, dry_run=True, **options)
        _print_plan(plan.to_dict(), as_json)
        return
    report = asdict(glmlike.convert(folder, destination, resume=resume, watch=on_terminal(quiet), **options))
    if as_json or not quiet:
        _print_report("converted", report, as_json)


def _print_plan(plan: dict[str, Any], as_json: bool) -> None:
    if as_json:
        print(json.dumps(plan, indent=2, ensure_ascii=False))
        return
    for step in plan["steps"]:
        shape = " x ".join(map(str, step["shape"])) or "scalar"
        print(f"{step['file']}: {step['name']} {step['dtype']} {shape} <- {', '.join(step['sources'])} [{step['how']}]")
    facts = {name: value for name, value in plan.items() if name not in ("steps", "memory", "identity")}
    facts |= {f"memory {name}": value for name, value in plan["memory"].items()}
    _print_table("plan", {name: _short(value) for name, value in facts.items()})


@app.command()
def verify(
    left: Folder,
    right: Folder,
    logits: Annotated[
        bool, typer.Option("--logits", help="run both decoders, a layer at a time, and compare what they compute")
    ] = False,
    layers: Annotated[
        Optional[int],  # noqa: UP045
        typer.Option(help="with --logits: the first so many layers only", show_default="all, and the head"),
    ] = None,
    tolerance: Annotated[float, typer.Option(help="with --logits: the difference allowed to a layer")] = 1e-4,
    generation: GenerationOption = None,
    spec: SpecOption = None,
    as_json: AsJson = False,
) -> None:
    """Check that two folders, of the same or of different formats, hold the same decoder and the same numbers.

    With --logits, that they compute the same: for folders whose numbers were rounded, quantized or trained on.
    """
    if not logits:
        count = glmlike.verify(left, right, generation=generation, spec=spec)  # type: ignore[arg-type]
        said = f"equal: {count} tensors of {left} and {right} have the same dtype, shape and bytes"
        print(json.dumps({"equal": True, "tensors": count}) if as_json else said)
        return
    from dataclasses import asdict

    from glmlike.parity import parity

    report = parity(left, right, layers=layers, tolerance=tolerance, generation=generation, spec=spec)  # type: ignore[arg-type]
    _print_report("computed", {"equal": report.equal, **asdict(report)}, as_json)
    if not report.equal:
        raise GlmLikeError(
            f"layer {report.first_divergent_layer} of {right} is the first that differs from {left} by more than "
            f"{tolerance:g}: convert again, or pass the --tolerance that the rounding explains."
        )


@app.command()
def merge(
    base: Annotated[Path, typer.Argument(metavar="BASE", help="the base model's folder", show_default=False)],
    adapter: Annotated[
        list[Path], typer.Argument(metavar="ADAPTER…", help="LoRA adapters, merged in this order", show_default=False)
    ],
    destination: Annotated[Path, typer.Argument(metavar="DST", help="a new folder", show_default=False)],
    to: Annotated[Optional[str], typer.Option("--to", help=_FORMATS, show_default="BASE's own")] = None,  # noqa: UP045
    generation: GenerationOption = None,
    spec: SpecOption = None,
    max_shard_size: Annotated[str, typer.Option(help="the largest file to write")] = "5GB",
    force: Annotated[bool, typer.Option("--force", help="merge an adapter once more that BASE holds already")] = False,
    as_json: AsJson = False,
) -> None:
    """Write BASE with LoRA adapters merged into its weights to the new folder DST, without loading the model."""
    from dataclasses import asdict

    report = glmlike.merge(
        base,
        adapter,
        destination,
        to=to,  # type: ignore[arg-type]
        generation=generation,  # type: ignore[arg-type]
        spec=spec,
        max_shard_size=max_shard_size,
        force=force,
    )
    _print_report("merged", asdict(report), as_json)


@app.command("convert-adapter")
def convert_adapter(
    source: Annotated[Path, typer.Argument(metavar="SRC", help="a LoRA adapter's folder", show_default=False)],
    destination: Annotated[Path, typer.Argument(metavar="DST", help="a new folder", show_default=False)],
    to: Annotated[str, typer.Option("--to", help=_FORMATS, show_default=False)],
    base: Annotated[
        Optional[Path],  # noqa: UP045
        typer.Option(help="the base model's folder (its config.json)", show_default="what the adapter names"),
    ] = None,
    base_name: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option(help="what the new adapter names as its base", show_default="as before"),
    ] = None,
    generation: GenerationOption = None,
    as_json: AsJson = False,
) -> None:
    """Write a LoRA adapter for the modules of another format, exactly: fused query_key_value to q, k, v and back."""
    from dataclasses import asdict

    report = glmlike.convert_adapter(
        source,
        destination,
        to=to,  # type: ignore[arg-type]
        base=base,
        base_name=base_name,
        generation=generation,  # type: ignore[arg-type]
    )
    _print_report("converted", asdict(report), as_json)


@app.command()
def fill(
    texts: Annotated[
        list[str], typer.Argument(metavar="TEXT…", help="texts with [MASK], [sMASK] or [gMASK]", show_default=False)
    ],
    model: Annotated[
        Optional[Path],  # noqa: UP045
        typer.Option(help="the folder of a model and its tokenizer", show_default="the embedded model"),
    ] = None,
    order: Annotated[str, typer.Option(help="left_to_right or independent")] = "left_to_right",
    max_new_tokens: Annotated[int, typer.Option(help="tokens of a piece at most", min=1)] = 64,
    num_beams: Annotated[int, typer.Option(help="beams of the search; 1 is greedy", min=1)] = 1,
    append_gmask: Annotated[bool, typer.Option(help="continue a text that has no blank")] = False,
    as_json: AsJson = False,
) -> None:
    """Fill the blanks of each TEXT, and show what was put there."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from glmlike.data import TINY
    from glmlike.infilling import fill as fill_blanks

    folder = TINY if model is None else model
    results = fill_blanks(  # type: ignore[call-overload]
        AutoModelForCausalLM.from_pretrained(folder, dtype="float32").eval(),
        AutoTokenizer.from_pretrained(folder),
        texts,
        order=order,
        append_gmask=append_gmask,
        max_new_tokens=max_new_tokens,
        num_beams=num_beams,
        do_sample=False,
    )
    if as_json:
        print(json.dumps([result.to_dict() for result in results], indent=2, ensure_ascii=False))
        return
    from rich.console import Console

    from glmlike.demo import marked

    for result in results:
        Console(soft_wrap=True).print(marked(result.filled_text, [span.span for span in result.spans]))


@app.command()
def card(
    folder: Annotated[Path, typer.Argument(help="a fine-tuned model's or an adapter's folder", show_default=False)],
    name: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option(help="its title", show_default="the folder's name"),
    ] = None,
    license: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option(help="the Hub's identifier, or other"),
    ] = None,
    license_name: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option(help="with --license other"),
    ] = None,
    license_link: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option(help="with --license other: a file or an address"),
    ] = None,
    language: Annotated[
        Optional[list[str]],  # noqa: UP045
        typer.Option(help="an ISO 639 code; may be repeated"),
    ] = None,
    base_model: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option(help="the Hub id of the model this was made from", show_default="what the folder says"),
    ] = None,
    dataset: Annotated[
        Optional[list[str]],  # noqa: UP045
        typer.Option(help="the Hub id of a data set; may be repeated"),
    ] = None,
    data: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option(help="Markdown: what it was trained on"),
    ] = None,
    recipe: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option(help="Markdown: how it was trained"),
    ] = None,
    hardware: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option(help="what it was trained on, and how long"),
    ] = None,
    use: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option(help="Markdown: what it is for, and what not"),
    ] = None,
    evaluated_on: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option(help="the set of the Trainer's evaluation"),
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="README.md is there: add to it, your text kept")] = False,
) -> None:
    """Write FOLDER's README.md, a model card, from what training, evaluation and conversion left in it."""
    from glmlike.cards import About, check_card, write_card

    about = About(
        name=name,
        license=license,
        license_name=license_name,
        license_link=license_link,
        language=language or (),
        base_model=base_model,
        datasets=dataset or (),
        data=data,
        recipe=recipe,
        hardware=hardware,
        use=use,
        evaluated_on=evaluated_on,
    )
    written = write_card(folder, about, force=force)
    print("\n".join(f"wrote {path}" for path in written))
    for problem in check_card(written[0].read_text(encoding="utf8")):
        print(f"to do: {problem}")


def _print_report(title: str, report: dict[str, Any], as_json: bool) -> None:
    if as_json:
        print(json.dumps(report, indent=2, default=str))
        return
    _print_table(title, {name: _short(value) for name, value in report.items()})


@app.command()
def push(
    folder: Folder,
    repo: Annotated[str, typer.Argument(metavar="USER/NAME", help="the repository on the Hub", show_default=False)],
    to: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option(
            "--as",
            help=f"{_FORMATS}; or remote-code: native, and loadable without glmlike",
            show_default="as it is",
        ),
    ] = None,
    private: Annotated[bool, typer.Option("--private", help="create the repository private")] = False,
    revision: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option(help="the branch to push to; created if it is not there", show_default="main"),
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="show what would be uploaded, and stop")] = False,
    tokenizer: Annotated[bool, typer.Option("--tokenizer/--no-tokenizer", help="insist on a tokenizer")] = True,
    generation: GenerationOption = None,
    spec: SpecOption = None,
    as_json: AsJson = False,
) -> None:
    """Push FOLDER to the Hub as one commit, converted first where --as names another format; show what goes there."""
    from glmlike.push import prepared, send

    options = {"to": to, "private": private, "revision": revision, "tokenizer": tokenizer}
    with prepared(folder, repo, **options, generation=generation, spec=spec) as upload:  # type: ignore[arg-type]
        if not as_json:
            _print_upload(upload.facts())
        done = (upload if dry_run else send(upload)).facts()
    if as_json:
        print(json.dumps(done, indent=2))
    elif not dry_run:
        print(f"{'pushed' if done['changed'] else 'nothing had changed'}: {done['url']}")


def _print_upload(facts: dict[str, Any]) -> None:
    said = ("target", "revision", "private", "found_format", "format", "bytes", "left_out")
    files = "\n".join(f"{name}: {size:,}" for name, size in facts["files"].items())
    _print_table("to be pushed", {name: _short(facts[name]) for name in said} | {"files": files})
    for note in facts["notes"]:
        print(f"note: {note}")


def _print_table(title: str, rows: dict[str, Any]) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(title=title, show_header=False, title_justify="left")
    for name, value in rows.items():
        table.add_row(name.replace("_", " "), str(value))
    Console().print(table)


def _short(value: Any) -> str:
    """One line for a person: thousands grouped, long lists cut, seconds rounded."""
    if isinstance(value, bool) or value is None:
        return str(value)
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, float):
        return f"{value:.2f}"
    if isinstance(value, (list, tuple)):
        shown = ", ".join(str(item) for item in value[:4])
        return f"{shown}, … ({len(value)} in all)" if len(value) > 4 else shown or "none"
    if isinstance(value, dict):
        return ", ".join(f"{count} x {name}" for name, count in value.items())
    return str(value)
