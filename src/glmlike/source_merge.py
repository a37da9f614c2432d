"""One self-contained file from the definitions that some names of a package need.

Only what is reached from the asked names is taken, definition by definition, with its comments and its own text:
modules in the order of their imports, external imports once at the top. What is not wanted is named in ``Cut``s; a cut
that finds nothing is an error, so that it cannot go stale. Standard library only; no code is executed.
"""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from graphlib import TopologicalSorter
from pathlib import Path

_WIDTH = 120
Name = tuple[str, str]
"""A module's full name and a name in it."""


class SourceError(RuntimeError):
    """The package is not written as the merger needs it; a mistake of its authors, never of its users."""


@dataclass(frozen=True)
class Cut:
    """What a class is left without: members, bases, statements (as ``ast.unparse`` writes them); its new docstring."""

    members: tuple[str, ...] = ()
    bases: tuple[str, ...] = ()
    statements: tuple[str, ...] = ()
    docstring: str | None = None


@dataclass(frozen=True)
class Import:
    """``from module import name`` (``import module`` where ``name`` is None), under the name it is used by."""

    module: str
    name: str | None
    used: str


@dataclass
class Module:
    """One file of the package, parsed: what it defines, and what its imports bind."""

    name: str
    source: bytes
    bindings: dict[str, Name | Import | str] = field(default_factory=dict)
    """A name of the package, something external, or (a string) a module of the package."""

    @cached_property
    def tree(self) -> ast.Module:
        return ast.parse(self.source)

    @cached_property
    def offsets(self) -> list[int]:
        """The byte at which each line starts, and the end."""
        starts = [0]
        for line in self.source.splitlines(keepends=True):
            starts.append(starts[-1] + len(line))
        return starts

    @cached_property
    def definitions(self) -> dict[str, ast.stmt]:
        found: dict[str, ast.stmt] = {}
        for node in self.tree.body:
            for name in _defined(node):
                found[name] = node
        return found

    @cached_property
    def lazy_annotations(self) -> bool:
        imports = (node for node in self.tree.body if isinstance(node, ast.ImportFrom))
        return any(node.module == "__future__" for node in imports)

    def span(self, node: ast.AST) -> tuple[int, int]:
        """The first byte of a node and the one after its last."""
        begin = self.offsets[node.lineno - 1] + node.col_offset  # type: ignore[attr-defined]
        return begin, self.offsets[node.end_lineno - 1] + node.end_col_offset  # type: ignore[attr-defined]

    def text(self, node: ast.AST) -> str:
        begin, end = self.span(node)
        return self.source[begin:end].decode()


class Package:
    """The modules of a package by their full names, read when they are asked for."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.modules: dict[str, Module] = {}

    def path(self, name: str) -> Path | None:
        base = self.root.joinpath(*name.split(".")[1:])
        found = [path for path in (base.with_suffix(".py"), base / "__init__.py") if path.is_file()]
        return found[0] if name.split(".")[0] == self.root.name and found else None

    def module(self, name: str) -> Module:
        if name not in self.modules:
            path = self.path(name)
            if path is None:
                raise SourceError(f"{name}: no such module in {self.root.name}.")
            self.modules[name] = module = Module(name, path.read_bytes())
            module.bindings.update(self._bindings(module))
        return self.modules[name]

    def _bindings(self, module: Module) -> Iterator[tuple[str, Name | Import | str]]:
        for node in _top_level(module.tree):
            if isinstance(node, ast.Import):
                for alias in node.names:
                    used = alias.asname or alias.name
                    yield used.split(".")[0], Import(alias.name, None, used)
            elif isinstance(node, ast.ImportFrom) and node.module != "__future__":
                for alias in node.names:
                    yield alias.asname or alias.name, self._imported(module, node, alias)

    def _imported(self, module: Module, node: ast.ImportFrom, alias: ast.alias) -> Name | Import | str:
        if node.level or node.module is None:
            raise SourceError(f"{module.name}: a relative import; write it with the package's name.")
        if node.module.split(".")[0] != self.root.name:
            return Import(node.module, alias.name, alias.asname or alias.name)
        submodule = f"{node.module}.{alias.name}"
        return submodule if self.path(submodule) else (node.module, alias.name)

    def resolve(self, module: str, name: str) -> Name | Import | str | None:
        """Where a name used in a module is defined, through re-exports; None: a builtin or a local name."""
        home = self.module(module)
        if name in home.definitions:
            return module, name
        found = home.bindings.get(name)
        return self.resolve(*found) if isinstance(found, tuple) else found


def _top_level(tree: ast.Module) -> Iterator[ast.stmt]:
    """The statements of a module, those under ``if TYPE_CHECKING`` too: an annotation may need them."""
    for node in tree.body:
        yield from node.body if isinstance(node, ast.If) else [node]


def _defined(node: ast.stmt) -> Iterator[str]:
    if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
        yield node.name
    elif isinstance(node, (ast.Assign, ast.AnnAssign)):
        targets = node.targets if isinstance(node, ast.Assign) else [node.target]
        for target in targets:
            yield from (part.id for part in ast.walk(target) if isinstance(part, ast.Name))


@dataclass(frozen=True)
class _Taken:
    """A definition as it goes into the file: what is cut of it, and what it uses."""

    module: str
    node: ast.stmt
    cut: Cut
    dropped: tuple[ast.AST, ...]
    uses: frozenset[Name]
    imports: frozenset[Import]


def merge(
    root: Path,
    wanted: Sequence[Name],
    cuts: Mapping[Name, Cut],
    *,
    header: str = "",
    footer: str = "",
    imports: Sequence[Import] = (),
) -> str:
    """The source of one file that defines ``wanted`` and all they need of the package in the folder ``root``.

    ``cuts`` are by class; ``header`` (a docstring) and ``footer`` stand around the definitions as they are, and
    ``imports`` are what the footer needs.

    Raises:
        SourceError: a name is not there; a cut finds nothing; two modules use one name for different things; or a
            definition imports from the package inside a function.
    """
    package = Package(root)
    taken = _reach(package, wanted, cuts)
    ordered = _in_order(package, taken)
    lines = [
        header.rstrip("\n"),
        "",
        *_import_lines({*imports, *(one for part in ordered for one in part.imports)}),
        "",
    ]
    known: dict[str, str] = {}
    for part in ordered:
        text = _written(package, part, _later(ordered, known))
        names = list(_defined(part.node))
        earlier = [known[name] for name in names if name in known]
        if earlier and earlier != [text] * len(names):
            raise SourceError(f"{part.module}: {names} is the name of something else in another module. Rename one.")
        known |= dict.fromkeys(names, text)
        if not earlier:
            blank = "\n\n" if isinstance(part.node, (ast.FunctionDef, ast.ClassDef)) else ""
            lines.append(blank + text + blank)
    body = "\n".join([*lines, footer])
    while "\n\n\n\n" in body:
        body = body.replace("\n\n\n\n", "\n\n\n")
    ast.parse(body)
    return body.rstrip("\n") + "\n"


def _reach(package: Package, wanted: Sequence[Name], cuts: Mapping[Name, Cut]) -> dict[Name, _Taken]:
    taken: dict[Name, _Taken] = {}
    waiting = list(wanted)
    while waiting:
        found = package.resolve(*waiting.pop())
        if not isinstance(found, tuple):
            raise SourceError(f"{found}: expected a definition of {package.root.name}.")
        if found not in taken:
            taken[found] = _take(package, found, cuts.get(found, Cut()))
            waiting += sorted(taken[found].uses)
    if stale := sorted(cuts.keys() - taken.keys()):
        raise SourceError(f"{stale} are cut, but nothing needs them. Remove these cuts.")
    return taken


def _take(package: Package, name: Name, cut: Cut) -> _Taken:
    module = package.module(name[0])
    node = module.definitions[name[1]]
    dropped = tuple(_dropped(name, node, cut))
    uses: set[Name] = set()
    imports: set[Import] = set()
    for part in _walk(node, dropped):
        if isinstance(part, ast.ImportFrom) and (part.module or "").split(".")[0] == package.root.name:
            raise SourceError(f"{name}: imports {part.module} in a function; import it at the top of the module.")
        found = _used(package, module.name, part)
        if isinstance(found, tuple):
            uses.add(found)
        elif isinstance(found, Import):
            imports.add(found)
    return _Taken(module.name, node, cut, dropped, frozenset(uses - {name}), frozenset(imports))


def _used(package: Package, module: str, node: ast.AST) -> Name | Import | str | None:
    """What a name, or an attribute of a module of the package, stands for."""
    if isinstance(node, ast.Name):
        return package.resolve(module, node.id)
    if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
        found = package.resolve(module, node.value.id)
        return package.resolve(found, node.attr) if isinstance(found, str) else None
    return None


def _dropped(name: Name, node: ast.stmt, cut: Cut) -> Iterator[ast.AST]:
    """The nodes of a class that its cut takes away, each asked-for thing at least once."""
    if cut == Cut():
        return
    if not isinstance(node, ast.ClassDef):
        raise SourceError(f"{name}: only classes can be cut.")
    members = {what: part for part in node.body for what in _defined(part)}
    bases = {ast.unparse(base): base for base in node.bases}
    statements = {ast.unparse(part): part for part in ast.walk(node) if isinstance(part, ast.stmt)}
    asked = ((members, cut.members), (bases, cut.bases), (statements, cut.statements))
    for there, names in asked:
        for what in names:
            if what not in there:
                raise SourceError(f"{name}: {what!r} is cut, but not there. Correct the cut.")
            yield there[what]


def _walk(node: ast.AST, dropped: tuple[ast.AST, ...]) -> Iterator[ast.AST]:
    if any(node is one for one in dropped):
        return
    yield node
    for child in ast.iter_child_nodes(node):
        yield from _walk(child, dropped)


def _in_order(package: Package, taken: Mapping[Name, _Taken]) -> list[_Taken]:
    """Modules after those they use, and within a module the order of the file."""
    parts = {id(part.node): part for _, part in sorted(taken.items())}  # one statement may define several names
    graph: dict[str, set[str]] = {}
    for part in parts.values():
        graph.setdefault(part.module, set()).update(module for module, _ in part.uses if module != part.module)
    order = list(TopologicalSorter({module: sorted(graph[module]) for module in sorted(graph)}).static_order())
    return sorted(parts.values(), key=lambda part: (order.index(part.module), part.node.lineno))


def _later(ordered: Sequence[_Taken], known: Mapping[str, str]) -> set[str]:
    return {name for part in ordered for name in _defined(part.node)} - known.keys()


def _written(package: Package, part: _Taken, later: set[str]) -> str:
    """The text of a definition with its comments: cuts made, modules of the package taken off names."""
    module = package.module(part.module)
    edits = [_removal(module, node) for node in part.dropped if isinstance(node, ast.stmt)]
    if part.cut.bases and isinstance(part.node, ast.ClassDef):
        edits += _bases(module, part.node, part.dropped)
    if part.cut.docstring is not None and isinstance(part.node, ast.ClassDef):
        edits.append((*module.span(part.node.body[0]), f'"""{part.cut.docstring}"""'))
    if module.lazy_annotations:
        edits += _quoted(module, part, later)
    quoted = [edit[:2] for edit in edits]
    for node in _walk(part.node, part.dropped):
        begin, end = module.span(node) if isinstance(node, (ast.Name, ast.Attribute)) else (0, 0)
        found = _used(package, part.module, node)
        local = node.id if isinstance(node, ast.Name) else None
        if isinstance(found, tuple) and found[1] != local and not any(b <= begin < e for b, e in quoted):
            edits.append((begin, end, found[1]))
    begin, end = _whole(module, part.node)
    source = module.source
    for first, last, new in sorted(edits, reverse=True):
        source = source[:first] + new.encode() + source[last:]
    grown = len(source) - len(module.source)
    return source[begin : end + grown].decode().strip("\n")


def _whole(module: Module, node: ast.stmt) -> tuple[int, int]:
    """The bytes of a top-level statement with the comments above it and the docstring of a constant below it."""
    first = min([node.lineno, *(one.lineno for one in getattr(node, "decorator_list", []))])
    lines = module.source.decode().split("\n")
    while first > 1 and lines[first - 2].startswith("#"):
        first -= 1
    after = module.tree.body[module.tree.body.index(node) + 1 :][:1]
    doc = after and isinstance(after[0], ast.Expr) and isinstance(after[0].value, ast.Constant)
    last = after[0].end_lineno if doc and isinstance(node, (ast.Assign, ast.AnnAssign)) else node.end_lineno
    return module.offsets[first - 1], module.offsets[last or node.lineno]


def _removal(module: Module, node: ast.stmt) -> tuple[int, int, str]:
    """The edit that takes the lines of a statement away, and the empty line above them."""
    first = min([node.lineno, *(one.lineno for one in getattr(node, "decorator_list", []))])
    lines = module.source.splitlines()
    while not lines[first - 2].strip():
        first -= 1
    return module.offsets[first - 1], module.offsets[node.end_lineno or node.lineno], ""


def _bases(module: Module, node: ast.ClassDef, dropped: tuple[ast.AST, ...]) -> Iterator[tuple[int, int, str]]:
    """The edits that take bases out of a class, each with one of its commas."""
    spans = [module.span(base) for base in node.bases]
    kept = [index for index, base in enumerate(node.bases) if not any(base is one for one in dropped)]
    last = max(kept, default=-1)
    for index, (begin, _) in enumerate(spans):
        if index not in kept and index < last:
            yield begin, spans[index + 1][0], ""
    if last < len(spans) - 1:
        yield spans[last][1] if kept else spans[0][0], spans[-1][1], ""


def _quoted(module: Module, part: _Taken, later: set[str]) -> list[tuple[int, int, str]]:
    """Annotations that speak of what comes later in the file, as strings: the module had its annotations unevaluated.

    The others are evaluated, since transformers reads some of them; a file has them one way only.
    """
    found: list[tuple[int, int, str]] = []
    for node in _walk(part.node, part.dropped):
        evaluated: list[ast.expr | None] = []
        if isinstance(node, ast.FunctionDef):
            arguments = [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs]
            every = [*arguments, *filter(None, (node.args.vararg, node.args.kwarg))]
            evaluated = [*(argument.annotation for argument in every), node.returns]
        elif isinstance(node, ast.ClassDef):
            evaluated = [one.annotation for one in node.body if isinstance(one, ast.AnnAssign)]
        for annotation in filter(None, evaluated):
            names = {one.id for one in ast.walk(annotation) if isinstance(one, ast.Name)}
            if names & later:
                found.append((*module.span(annotation), f'"{module.text(annotation)}"'))
    return found


def _import_lines(imports: set[Import]) -> Iterator[str]:
    """Import statements, one a module, the standard library's first; wrapped where they are long."""
    by_used: dict[str, Import] = {}
    for one in sorted(imports, key=lambda item: (item.module, item.name or "", item.used)):
        if by_used.setdefault(one.used, one) != one:
            raise SourceError(f"{one.used!r} is imported from {by_used[one.used].module} and from {one.module}.")
    standard = {one for one in by_used.values() if one.module.split(".")[0] in sys.stdlib_module_names}
    for group in (standard, set(by_used.values()) - standard):
        for one in sorted((one for one in group if one.name is None), key=lambda one: one.module):
            yield f"import {one.module}" + (f" as {one.used}" if one.used != one.module else "")
        yield from _from_lines(one for one in by_used.values() if one in group and one.name is not None)
        yield ""


def _from_lines(imports: Iterable[Import]) -> Iterator[str]:
    names: dict[str, list[str]] = {}
    for one in imports:
        names.setdefault(one.module, []).append(f"{one.name}" + (f" as {one.used}" if one.used != one.name else ""))
    for module, taken in sorted(names.items()):
        line = f"from {module} import {', '.join(taken)}"
        yield line if len(line) <= _WIDTH else f"from {module} import (\n    " + ",\n    ".join(taken) + ",\n)"
