"""What every script here does around one call of :func:`glmlike.convert`: get the source, check, convert, verify.

A source is a folder, or the id of a repository on the Hub, which is downloaded to the Hub's cache first: the weights
once (.safetensors where there are both kinds) and no code. The commit that was read is printed; ``--revision`` pins it.
"""

from __future__ import annotations

import argparse
import shutil
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from checking import check
from recipes import LICENCE, RECIPES, Recipe, recipe_of_repo

import glmlike
from glmlike.checkpoint.destination import fresh_folder
from glmlike.checkpoint.inside import require_inside
from glmlike.checkpoint.ranked import RANKED
from glmlike.checkpoint.sources import HUB_ID, download
from glmlike.hub_json import Format


@dataclass(frozen=True)
class Source:
    """A folder to read, its recipe if it has one, and the commit if it came from the Hub."""

    folder: Path
    recipe: Recipe | None
    commit: str | None = None


def parser(description: str | None, **defaults: Any) -> argparse.ArgumentParser:
    """The arguments of every script; ``defaults`` are those of the script's own."""
    made = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("source", help="a checkpoint's folder, or a repository on the Hub such as THUDM/chatglm3-6b")
    made.add_argument("destination", type=Path, help="a new folder")
    made.add_argument("--revision", help="of the repository: a commit, so that the same files are read every time")
    made.add_argument("--recipe", choices=RECIPES, metavar="NAME", help="of README.md: refuse what differs from it")
    made.add_argument("--max-shard-size", default=None, help="the largest file to write (default: 5GB)")
    made.add_argument("--no-verify", action="store_true", help="do not compare both folders tensor by tensor after")
    made.set_defaults(**{"generation": None, "spec": None, "tensor_parallel": None, **defaults})
    return made


def run(options: argparse.Namespace, *, reads: tuple[Format, ...] = (), to: Format) -> glmlike.ConversionReport:
    """Convert what the arguments name to the format ``to``, and compare both folders; the report of the conversion.

    The destination appears when both are found equal, and not at all if anything fails before.

    ``reads`` are the formats the script is for (none: any).

    Raises:
        ConfigError, CheckpointError: the source is not there, not of these formats, or not what its recipe says.
        CannotExpressError: ``to`` has no way to say this decoder.
    """
    source = find_source(options.source, options.revision, options.recipe, reads)
    if source.commit:
        pinned = source.commit in (options.revision, source.recipe and source.recipe.revision)
        print(
            f"read: {options.source} at {source.commit}" + ("" if pinned else f" (pin it: --revision {source.commit})")
        )
    said: dict[str, Any] = {"generation": options.generation, "spec": options.spec}
    if source.recipe:
        _require_recipe(source)
        said["generation"] = said["generation"] or source.recipe.generation
        if source.recipe.format in RANKED:  # rank files say less of their decoder than a config.json does
            said["spec"] = said["spec"] or source.recipe.spec
    found = glmlike.detect(source.folder, **said)
    if reads and found.format not in reads:
        raise glmlike.ConfigError(
            f"{source.folder}: holds format {found.format!r}, and this script reads {', '.join(reads)}. Use "
            "convert_to_native.py, or glmlike convert."
        )
    size = {} if options.max_shard_size is None else {"max_shard_size": options.max_shard_size}
    with fresh_folder(options.destination, source.folder) as partial:
        whole = partial / "whole"
        report = glmlike.convert(source.folder, whole, to=to, tensor_parallel=options.tensor_parallel, **said, **size)
        _bring_licences(source, whole)
        if not options.no_verify:
            count = glmlike.verify(source.folder, whole, **said)
            print(f"verified: {count} tensors of both folders have the same dtype, shape and bytes")
        for path in list(whole.iterdir()):
            path.rename(partial / path.name)
        whole.rmdir()
    return replace(report, destination=options.destination)


def start(main: Callable[[], glmlike.ConversionReport]) -> None:
    """Run a script: one line of what was done, or one sentence of what is wrong and exit code 1."""
    try:
        done = main()
    except (glmlike.GlmLikeError, OSError) as error:
        raise SystemExit(f"Error: {error}") from None
    print(f"{done.destination}: {done.tensors} tensors, {done.bytes / 1e9:.2f} GB, {done.seconds:.1f} s")
    for note in done.notes:
        print(f"note: {note}")


def find_source(text: str, revision: str | None, name: str | None, reads: tuple[Format, ...]) -> Source:
    """The folder that an argument names, downloaded if it is a repository's id.

    Raises:
        ConfigError: a revision of a folder, or a repository that cannot be read.
    """
    folder = Path(text)
    if folder.exists() or not HUB_ID.fullmatch(text):
        if revision is not None:
            raise glmlike.ConfigError(f"{text}: --revision is of repositories on the Hub, and this is a folder.")
        return Source(folder, RECIPES[name] if name else None)
    name = name or recipe_of_repo(text, reads)
    recipe = RECIPES[name] if name else None
    snapshot = download(text, revision or (recipe and recipe.revision), recipe.folder if recipe else "")
    return Source(snapshot / recipe.folder if recipe else snapshot, recipe, snapshot.name)


def _require_recipe(source: Source) -> None:
    """What is lacking besides weights, or too much, is said on stderr; what differs is refused."""
    assert source.recipe is not None
    found = check(source.folder, source.recipe)
    if found.differs:
        raise glmlike.CheckpointError(
            f"{source.folder}: not the checkpoint of its recipe: {'; '.join(found.differs)}. Download it again, or "
            "pass the folder without --recipe."
        )
    for line in found.lines():
        print(f"note: {line}", file=sys.stderr)


def _bring_licences(source: Source, destination: Path) -> None:
    """Licences under any name go where their weights go, also from above a folder of rank files."""
    above = [source.folder.parent] if source.recipe and source.recipe.folder else []
    for place in (source.folder, *above):
        for path in sorted(place.glob(LICENCE)):
            if path.is_file() and not (destination / path.name).exists():
                shutil.copyfile(require_inside(path, place), destination / path.name)
