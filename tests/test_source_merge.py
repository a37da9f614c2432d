"""Merging definitions of a package into one file: what is taken, what it may not meet, and that it still runs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from glmlike.source_merge import Cut, Import, SourceError, merge

FILES = {
    "pack/__init__.py": "",
    "pack/base.py": '''"""The base."""
from __future__ import annotations
import math as m
from collections.abc import Mapping

# How many sides it has.
SIDES, UNUSED = 4, 0
"""Four."""
NEVER = open("/nowhere")


class Square:
    """A square."""

    def scaled(self, factor: float, beside: Other | None = None) -> Square:  # Other comes later
        return Square()

    @property
    def sides(self) -> int:
        return SIDES + int(m.sqrt(0))

    def unwanted(self) -> Mapping[str, int]:
        return helper()


class Other:
    pass


def helper() -> int:
    return 1
''',
    "pack/shapes/__init__.py": "from pack.base import Square, helper as assist\n",
    "pack/user.py": '''from pack import shapes
from pack.shapes import assist as aid


class Mixin:
    pass


class Kept:
    pass


class Shape(shapes.Square, Kept, Mixin):
    """The old words."""

    kind = "ünïcode"; size = aid()

    def both(self):
        self.noise = 1
        return shapes.Square().sides + aid(), "ünï", shapes.assist()
''',
}
CUTS = {
    ("pack.base", "Square"): Cut(members=("unwanted",)),
    ("pack.user", "Shape"): Cut(bases=("Mixin",), statements=("self.noise = 1",), docstring="The new words."),
}


@pytest.fixture
def root(tmp_path: Path) -> Path:
    for name, text in FILES.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text, encoding="utf8")
    return tmp_path / "pack"


def executed(text: str) -> dict[str, Any]:
    space: dict[str, Any] = {"__name__": "merged"}
    exec(compile(text, "merged.py", "exec"), space)
    return space


def test_only_what_is_reached_is_taken_and_it_runs(root: Path) -> None:
    text = merge(root, [("pack.user", "Shape")], CUTS, header='"""Merged."""', footer="\nEND = Shape")
    found = executed(text)
    assert found["__doc__"] == "Merged."
    assert found["Shape"]().both() == (5, "ünï", 1)
    assert found["END"] is found["Shape"]
    assert [base.__name__ for base in found["Shape"].__bases__] == ["Square", "Kept"]
    assert found["Shape"].__doc__ == "The new words."
    assert not hasattr(found["Shape"](), "noise")
    assert not {"Mixin", "NEVER", "Mapping"} & found.keys()
    assert "unwanted" not in text
    assert '# How many sides it has.\nSIDES, UNUSED = 4, 0\n"""Four."""' in text
    assert text.splitlines()[2] == "import math as m"
    assert "pack" not in text


def test_annotations_are_quoted_where_they_speak_of_what_comes_later(root: Path) -> None:
    text = merge(root, [("pack.base", "Square")], {("pack.base", "Square"): Cut(members=("unwanted",))})
    assert 'def scaled(self, factor: float, beside: "Other | None" = None) -> "Square":' in text
    assert executed(text)["Square"]().scaled(2.0).sides == 4


@pytest.mark.parametrize("dropped", [("A",), ("B",), ("C",), ("A", "B"), ("A", "C"), ("B", "C"), ("A", "B", "C")])
def test_bases_are_taken_out_with_their_commas(dropped: tuple[str, ...], root: Path) -> None:
    classes = "".join(f"class {name}: pass\n" for name in "ABC")
    (root / "bases.py").write_text(f"{classes}class X(A, B,\n        C):\n    def f(self): return 1\n")
    found = executed(merge(root, [("pack.bases", "X")], {("pack.bases", "X"): Cut(bases=dropped)}))["X"]
    left = [name for name in "ABC" if name not in dropped]
    assert [base.__name__ for base in found.__bases__] == (left or ["object"])
    assert found().f() == 1


def test_imports_for_the_footer_are_merged_with_the_others(root: Path) -> None:
    extra = [Import("math", None, "m"), Import("os.path", "join", "join"), Import("math", "sqrt", "sqrt")]
    text = merge(root, [("pack.base", "Square")], {}, footer="HERE = join('a', 'b'), sqrt(4)", imports=extra)
    assert executed(text)["HERE"] == ("a/b", 2.0)
    assert text.count("import math as m") == 1
    with pytest.raises(SourceError, match="'m' is imported from math and from"):
        merge(root, [("pack.base", "Square")], {}, imports=[Import("numpy", None, "m")])


@pytest.mark.parametrize(
    ("cut", "message"),
    [
        ({("pack.user", "Shape"): Cut(members=("gone",))}, "'gone' is cut, but not there"),
        ({("pack.user", "Shape"): Cut(bases=("Gone",))}, "'Gone' is cut, but not there"),
        ({("pack.user", "Shape"): Cut(statements=("gone()",))}, "is cut, but not there"),
        ({("pack.base", "Other2"): Cut(members=("x",))}, "are cut, but nothing needs them"),
        ({("pack.base", "helper"): Cut(members=("x",))}, "only classes can be cut"),
    ],
)
def test_a_stale_cut_is_an_error(cut: dict[Any, Cut], message: str, root: Path) -> None:
    with pytest.raises(SourceError, match=message):
        merge(root, [("pack.user", "Shape")], cut)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("from . import base\nX = base", "a relative import"),
        ("def X():\n    from pack.base import Square\n", "imports pack.base in a function"),
        ("from pack.base import helper as other\ndef helper(): return 2\ndef X(): return helper(), other()", "Rename"),
        ("from pack.nowhere import Y\ndef X(): return Y", "pack.nowhere: no such module"),
        ("Y = 1", "expected a definition"),
    ],
)
def test_source_that_cannot_be_merged_is_an_error(text: str, message: str, root: Path) -> None:
    (root / "bad.py").write_text(text)
    with pytest.raises(SourceError, match=message):
        merge(root, [("pack.bad", "X")], {})


@given(st.data())
def test_chains_of_modules_in_any_order(data: st.DataObject) -> None:
    """Modules that use those before them, under names that say nothing of the order: merged, each is in time."""
    import tempfile

    names = data.draw(st.permutations([f"m{index}" for index in range(6)]))
    with tempfile.TemporaryDirectory() as room:
        root = Path(room) / "pack"
        root.mkdir()
        for place, name in enumerate(names):
            used = data.draw(st.lists(st.sampled_from(names[:place]), unique=True)) if place else []
            lines = [f"from pack.{one} import value_{one}" for one in used]
            terms = " + ".join(["1", *(f"value_{one}" for one in used)])
            (root / f"{name}.py").write_text("\n".join([*lines, f"value_{name} = {terms}"]))
        text = merge(root, [(f"pack.{names[-1]}", f"value_{names[-1]}")], {})
        assert executed(text)[f"value_{names[-1]}"] >= 1
        assert text == merge(root, [(f"pack.{names[-1]}", f"value_{names[-1]}")], {})
