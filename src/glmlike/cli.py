"""The command line: which commands there are, and how a run ends. What each does is in ``glmlike.commands``."""

from __future__ import annotations

import logging
import re
import sys
from collections.abc import Sequence
from typing import Annotated

import typer

import glmlike
from glmlike.commands import (
    card,
    chat,
    convert,
    convert_adapter,
    demo,
    doctor,
    evaluate,
    exec_,
    fill,
    inspect,
    merge,
    push,
    quantize,
    verify,
)
from glmlike.errors import GlmLikeError

EXIT_CODES = {
    0: "done",
    1: "a check found a problem, or anything else went wrong",
    2: "wrong arguments or wrong input, one sentence on standard error",
    130: "interrupted (Ctrl-C)",
}
"""How a run ends. ``exec`` ends as the command that it runs does, and with 127 where there is no such command."""

EXAMPLES = (
    "glmlike inspect chatglm3-6b",
    "glmlike convert chatglm3-6b chatglm3-6b-glm --to glm",
    "glmlike chat chatglm3-6b-glm",
)
_HELP = "Every GLM in today's Hugging Face transformers: inspect, convert, fine-tune, use and share."
_EPILOG = "\n\n".join(
    [
        "Examples:\n" + "\n".join(f"  {line}" for line in EXAMPLES),
        f"Exit codes: {'; '.join(f'{code} {meaning}' for code, meaning in EXIT_CODES.items())}.",
        "`glmlike COMMAND --help` says more; --install-completion makes the shell complete commands and formats.",
    ]
)

_NOISY = ("torchao", "torch.utils._pytree")
"""Loggers that, where torchao is installed, warn at import of kernels for other machines, whatever is run."""

app = typer.Typer(
    help=_HELP,
    epilog=_EPILOG,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line; a mistake in the input ends as one sentence on stderr and exit code 2."""
    for noisy in _NOISY:
        logging.getLogger(noisy).setLevel(logging.ERROR)
    try:
        app(args=None if arguments is None else list(arguments), prog_name="glmlike")
    except (GlmLikeError, OSError, ImportError) as error:
        print(f"Error: {re.sub(chr(10) + '+ *', ' ', str(error).strip())}", file=sys.stderr)
        sys.exit(2)


def _print_version(wanted: bool) -> None:
    if wanted:
        print(f"glmlike {glmlike.__version__}")
        raise typer.Exit


@app.callback(invoke_without_command=True)
def _options(
    context: typer.Context,
    version: Annotated[
        bool, typer.Option("--version", help="print the version", callback=_print_version, is_eager=True)
    ] = False,
) -> None:
    if context.invoked_subcommand is None:
        print(context.get_help(), end="")


# The order here is the order of the help; a line is a command, its panel and its module.
for _panel, _command in (
    ("Look", inspect.inspect),
    ("Look", verify.verify),
    ("Convert", convert.convert),
    ("Convert", quantize.quantize),
    ("Fine-tunes and adapters", merge.merge),
    ("Fine-tunes and adapters", convert_adapter.convert_adapter),
    ("Fine-tunes and adapters", card.card),
    ("Use", demo.demo),
    ("Use", chat.chat),
    ("Use", fill.fill),
    ("Use", evaluate.eval_),
    ("Hub", push.push),
    ("Help", doctor.doctor),
):
    app.command(_command.__name__.strip("_").replace("_", "-"), rich_help_panel=_panel)(_command)
# Everything after the command's own name belongs to it.
app.command(
    "exec",
    rich_help_panel="Use",
    context_settings={"ignore_unknown_options": True, "allow_interspersed_args": False},
)(exec_.exec_)
