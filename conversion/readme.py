"""Write the tables of conversion/README.md from the recipes and the scripts: python conversion/readme.py"""

from __future__ import annotations

import ast
import re
from pathlib import Path

from recipes import RECIPES, Recipe

HERE = Path(__file__).parent
README = HERE / "README.md"
_NO_CONVERSION = ("command", "recipes", "readme")


def recipe_table() -> str:
    """One row a published checkpoint."""
    rows = ["| recipe | repository | format | tensors | GB | licence | converts to | notes |", "|" + "---|" * 8]
    return "\n".join([*rows, *(_row(name, recipe) for name, recipe in RECIPES.items())])


def _row(name: str, recipe: Recipe) -> str:
    place = ", ".join(filter(None, (recipe.repo or "(not on the Hub)", recipe.folder and f"{recipe.folder}/")))
    cells = (
        name,
        f"{place} at {recipe.revision}" if recipe.revision else place,
        f"`{recipe.format}`",
        recipe.tensors,
        f"{recipe.bytes / 1e9:.2f}",
        recipe.licence or "not known here",
        ", ".join(f"`{fmt}`" for fmt in recipe.converts_to),
        recipe.notes,
    )
    return "| " + " | ".join(map(str, cells)) + " |"


def script_table() -> str:
    """One row a script: the first sentence of its docstring."""
    rows = ["| script | what for |", "|---|---|"]
    for path in sorted(HERE.glob("*.py")):
        if path.stem not in _NO_CONVERSION:
            said = ast.get_docstring(ast.parse(path.read_text(encoding="utf8"))) or ""
            rows.append(f"| `{path.name}` | {said.partition(chr(10))[0].replace('``', '`')} |")
    return "\n".join(rows)


def written(text: str) -> str:
    """The README with both tables as they should be."""
    for mark, table in (("scripts", script_table()), ("recipes", recipe_table())):
        begin, end = f"<!-- {mark}: written by readme.py -->", f"<!-- end of {mark} -->"
        text = re.sub(
            f"{re.escape(begin)}.*?{re.escape(end)}", lambda _, t=f"{begin}\n{table}\n{end}": t, text, flags=re.S
        )
    return text


if __name__ == "__main__":
    README.write_text(written(README.read_text(encoding="utf8")), encoding="utf8")
