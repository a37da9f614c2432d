"""What a downloaded folder lacks or has too much against its recipe, from headers alone: no tensor is read.

    python conversion/checking.py chatglm3-6b ~/downloads/chatglm3-6b

Exit code 0: it is whole; 1: it is not, one line a finding.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from recipes import LICENCE, RECIPES, Recipe

import glmlike
from glmlike.checkpoint.headers import TensorInfo
from glmlike.checkpoint.inside import require_inside
from glmlike.checkpoint.ranked import RANKED
from glmlike.checkpoint.shards import read_json, tensors_of
from glmlike.hub_json import detect, dropped_rows, read_spec

# How far texts were seen is said by many configs of one model in many ways, and changes no number.
_NOT_COMPARED = ("max_position_embeddings",)
_KINDS = (("model.safetensors", "*.safetensors"), ("pytorch_model.bin", "*.bin"))


@dataclass
class Check:
    """The findings: what is lacking, what is there without need, what is there and is not what was published."""

    lacks: list[str] = field(default_factory=list)
    too_much: list[str] = field(default_factory=list)
    differs: list[str] = field(default_factory=list)

    @property
    def is_whole(self) -> bool:
        """Nothing is lacking, and nothing is another checkpoint's."""
        return not self.lacks and not self.differs

    def lines(self) -> list[str]:
        """One line a finding."""
        kinds = (("lacks", self.lacks), ("differs", self.differs), ("too much", self.too_much))
        return [f"{kind}: {finding}" for kind, findings in kinds for finding in findings]


def check(folder: str | Path, recipe: Recipe) -> Check:
    """What ``folder`` lacks or has too much against ``recipe``; files that are broken are findings, not errors."""
    folder, found = Path(folder), Check()
    if not folder.is_dir():
        found.lacks.append(f"the folder {folder}")
        return found
    _check_files(folder, recipe, found)
    if recipe.format in RANKED:
        _check_ranks(folder, recipe, found)
    else:
        _check_config(folder, recipe, found)
        _check_weights(folder, recipe, found)
    return found


def _check_files(folder: Path, recipe: Recipe, found: Check) -> None:
    places = [folder, folder.parent] if recipe.folder else [folder]
    for pattern in (*recipe.files, *((LICENCE,) if recipe.licence else ())):
        within = places if pattern == LICENCE else [folder]
        if not any(any(place.glob(pattern)) for place in within):
            what = f"the licence ({pattern}): {recipe.licence}" if pattern == LICENCE else pattern
            found.lacks.append(what)
    found.too_much += [f"{path.name}: code, never run" for path in sorted(folder.glob("*.py"))]
    found.too_much += [f"{path.name}: a download that did not end" for path in sorted(folder.glob("*.incomplete"))]


def _check_ranks(folder: Path, recipe: Recipe, found: Check) -> None:
    """Rank files say nothing one by one: glmlike's own detection compares them, and with the spec."""
    try:
        read = glmlike.detect(folder, spec=recipe.spec)
    except glmlike.GlmLikeError as error:
        found.differs.append(str(error))
        return
    if read.format != recipe.format:
        found.differs.append(f"format {read.format!r}, expected {recipe.format!r}")
        return
    _check_tensors(read.checkpoint.tensors, recipe, found)


def _check_config(folder: Path, recipe: Recipe, found: Check) -> None:
    path = folder / "config.json"
    if not path.exists():
        return
    try:
        config = read_json(path)
        fmt, spec = detect(config, str(path)), read_spec(config, str(path), generation=recipe.generation)
    except glmlike.GlmLikeError as error:
        found.differs.append(str(error))
        return
    if fmt != recipe.format:
        found.differs.append(f"config.json: format {fmt!r}, expected {recipe.format!r}")
    if dropped_rows(config) != recipe.image_rows:
        rows = recipe.image_rows
        found.differs.append(
            f"config.json: {dropped_rows(config)} rows of image tokens, expected {rows}: v1.0 or v1.1?"
        )
    for name, (theirs, ours) in spec.differences(recipe.spec).items():
        if name not in _NOT_COMPARED:
            found.differs.append(f"config.json: {name}={theirs!r}, expected {ours!r}")


def _check_weights(folder: Path, recipe: Recipe, found: Check) -> None:
    kinds = [kind for kind in _KINDS if any((folder / f"{kind[0]}{end}").exists() for end in ("", ".index.json"))]
    if not kinds:
        found.lacks.append("the weights: neither model.safetensors nor pytorch_model.bin, nor an index of them")
        return
    (first, _), *others = kinds
    found.too_much += [f"{pattern}: the weights once more, beside {first}" for _, pattern in others]
    try:
        names = _weight_files(folder, first)
    except glmlike.GlmLikeError as error:
        found.differs.append(str(error))
        return
    absent = [name for name in names if not (folder / name).exists()]
    found.lacks += absent
    broken = len(found.differs)
    tensors: dict[str, TensorInfo] = {}
    for name in sorted(set(names) - set(absent)):
        tensors |= _tensors(folder, name, found)
    said = bool(absent) or len(found.differs) > broken
    _check_tensors(_whole_names(tensors, recipe), recipe, found, said_missing=said)


def _tensors(folder: Path, name: str, found: Check) -> dict[str, TensorInfo]:
    """What one file holds; a broken one holds nothing, and is a finding."""
    try:
        return tensors_of(require_inside(folder / name, folder))
    except glmlike.GlmLikeError as error:
        found.differs.append(str(error))
        return {}


def _weight_files(folder: Path, first: str) -> list[str]:
    """The one file, or those that the index names; a name that leads elsewhere is no file of the folder."""
    if (folder / first).exists():
        return [first]
    index = folder / f"{first}.index.json"
    weight_map = read_json(index).get("weight_map")
    if not isinstance(weight_map, dict) or not all(_is_plain(name) for name in weight_map.values()):
        raise glmlike.CheckpointError(f"{index}: expected a 'weight_map' of plain file names. Download it again.")
    return sorted(set(weight_map.values()))


def _is_plain(name: object) -> bool:
    return isinstance(name, str) and name not in ("", ".", "..") and not set(name) & {"/", "\\", "\0"}


def _whole_names(tensors: dict[str, TensorInfo], recipe: Recipe) -> dict[str, TensorInfo]:
    """Files of a bare decoder leave the prefix of all names out."""
    prefix = recipe.table.prefix
    if not prefix or any(name.startswith(prefix) for name in tensors):
        return tensors
    return {prefix + name: info for name, info in tensors.items()}


def _check_tensors(
    tensors: Mapping[str, TensorInfo], recipe: Recipe, found: Check, *, said_missing: bool = False
) -> None:
    """Names, shapes and dtypes; tensors of files that are missing or broken are not listed a second time."""
    expected = recipe.shapes
    if not said_missing:
        found.lacks += _counted("tensors", expected.keys() - tensors.keys())
    found.too_much += _counted("tensors", tensors.keys() - expected.keys() - recipe.ignored)
    known = {name: tensors[name] for name in expected if name in tensors}
    shapes = {name: (info.shape, expected[name]) for name, info in known.items()}
    dtypes = {
        name: (info.dtype, " or ".join(recipe.dtypes_of(name)))
        for name, info in known.items()
        if info.dtype not in recipe.dtypes_of(name)
    }
    found.differs += _differing("shape", shapes) + _differing("dtype", dtypes)


def _counted(what: str, names: Iterable[str]) -> list[str]:
    some = sorted(names)
    return [f"{len(some)} {what}, first {some[0]}"] if some else []


def _differing(what: str, pairs: Mapping[str, tuple[object, object]]) -> list[str]:
    """One line for all the pairs whose sides differ."""
    some = [name for name, (theirs, ours) in pairs.items() if theirs != ours]
    if not some:
        return []
    theirs, ours = pairs[some[0]]
    return [f"{len(some)} tensors of another {what}, first {some[0]}: {theirs}, expected {ours}"]


def main(argv: Sequence[str] | None = None) -> Check:
    """Check one folder; the findings."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipe", choices=RECIPES, metavar="RECIPE", help="a name of the table in README.md")
    parser.add_argument("folder", type=Path, help="the downloaded folder")
    options = parser.parse_args(argv)
    return check(options.folder, RECIPES[options.recipe])


if __name__ == "__main__":
    result = main()
    print("\n".join(result.lines()) or "whole")
    raise SystemExit(0 if result.is_whole else 1)
