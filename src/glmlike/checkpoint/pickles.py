"""A pickle run by an interpreter of our own: plain containers, and names that the caller knows. Nothing is imported.

Python's own unpickler imports what a file names and calls it; even a restricted subclass of it can be made to fill the
memory (memo indices) or the stack (hashes of nested tuples). Here the standard library only splits the bytes into
opcodes (``pickletools.genops``); of these the ones that ``torch.save`` writes are carried out, all others are errors.
"""

from __future__ import annotations

import pickletools
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

MAX_SIZE = 2**25
_MAX_OPCODES = 4_000_000  # a tensor takes about 25
_MAX_BITS = 64

_CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False}
_LITERALS = frozenset(
    {
        *("INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "LONG4", "FLOAT", "BINFLOAT"),
        *("UNICODE", "BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8"),
    }
)
_TUPLES = {"TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}
_KEYS = (str, int, float, type(None))


class PickleError(ValueError):
    """A program that is damaged, or that asks for more than plain containers and known names."""


@dataclass(frozen=True)
class Known:
    """What a name in a pickle stands for: a function of ours that makes the object, or a plain value."""

    name: str
    value: Any


class Ordered(dict[Any, Any]):
    """What an OrderedDict becomes; unlike a plain dict it may be given attributes, which are let go."""


def ordered(pairs: Any = ()) -> Ordered:
    """The dict of ``collections.OrderedDict``'s arguments."""
    found = Ordered()
    for pair in pairs if isinstance(pairs, (list, tuple)) else ():
        if not isinstance(pair, (list, tuple)) or len(pair) != 2:
            raise PickleError("an OrderedDict of other things than pairs")
        _put_items(found, list(pair))
    return found


def run(program: bytes, known: Mapping[str, Any], persistent: Callable[[Any], Any]) -> Any:
    """The object that a pickle describes.

    ``known`` has the names that may stand in it (``"module name"``), with a function that makes the object from plain
    arguments, or a value; ``persistent`` makes the object of a persistent id.

    Raises:
        PickleError: the program is damaged or too long, holds other objects or other names, or a key stands twice.
    """
    if len(program) > MAX_SIZE:
        raise PickleError(f"its pickle has {len(program)} bytes, expected at most {MAX_SIZE}")
    machine = _Machine(known, persistent)
    try:
        for count, (opcode, argument, position) in enumerate(pickletools.genops(program)):
            if count > _MAX_OPCODES:
                raise PickleError(f"more than {_MAX_OPCODES} opcodes")
            machine.step(opcode.name, argument)
            if opcode.name == "STOP" and position != len(program) - 1:
                raise PickleError("bytes after the end of its pickle")
    except PickleError:
        raise
    except (ValueError, TypeError, IndexError, KeyError, OverflowError) as error:
        raise PickleError(f"its pickle is damaged: {error!s:.80}") from None
    return machine.result()


class _Machine:
    """The stack, the marks and the memo of a running pickle."""

    def __init__(self, known: Mapping[str, Any], persistent: Callable[[Any], Any]) -> None:
        self._known, self._persistent = known, persistent
        self._stack: list[Any] = []
        self._below: list[list[Any]] = []  # what was on the stack at each mark
        self._memo: dict[int, Any] = {}

    def result(self) -> Any:
        if self._below or len(self._stack) != 1:
            raise PickleError("its pickle ends in the middle")
        return self._stack[0]

    def step(self, name: str, argument: Any) -> None:
        """Carry out one opcode."""
        if name in _LITERALS:
            if isinstance(argument, int) and argument.bit_length() > _MAX_BITS:
                raise PickleError(f"a number of {argument.bit_length()} bits")
            self._stack.append(argument)
        elif name in _CONSTANTS:
            self._stack.append(_CONSTANTS[name])
        elif name in ("PUT", "BINPUT", "LONG_BINPUT"):
            self._memo[argument] = self._stack[-1]
        elif name in ("GET", "BINGET", "LONG_BINGET"):
            self._stack.append(self._memo[argument])
        elif name in _TUPLES:
            self._stack.append(tuple(self._pop(_TUPLES[name])))
        elif name == "GLOBAL":
            self._stack.append(self._find(argument))
        elif name in _ACTIONS:
            _ACTIONS[name](self)
        elif name not in ("PROTO", "FRAME", "STOP"):
            raise PickleError(f"its pickle holds other things than tensors and plain containers (opcode {name})")

    def _pop(self, count: int) -> list[Any]:
        if len(self._stack) < count:
            raise PickleError("its pickle is damaged: nothing on the stack")
        taken = self._stack[-count:]
        del self._stack[-count:]
        return taken

    def _since_mark(self) -> list[Any]:
        if not self._below:
            raise PickleError("its pickle is damaged: no mark")
        items, self._stack = self._stack, self._below.pop()
        return items

    def _find(self, name: str) -> Known:
        if name not in self._known:
            raise PickleError(f"it names {name.replace(' ', '.')!r:.120}, which is no part of a tensor or container")
        return Known(name, self._known[name])

    def _mark(self) -> None:
        self._below.append(self._stack)
        self._stack = []

    def _global(self) -> None:
        module, name = self._pop(2)
        if not (isinstance(module, str) and isinstance(name, str)):
            raise PickleError("its pickle is damaged: a name that is not text")
        self._stack.append(self._find(f"{module} {name}"))

    def _call(self) -> None:
        function, arguments = self._pop(2)
        if not isinstance(function, Known) or not callable(function.value) or not isinstance(arguments, tuple):
            raise PickleError("its pickle calls what is no function of tensors or containers")
        self._stack.append(function.value(*arguments))

    def _build(self) -> None:
        self._pop(1)
        if not isinstance(self._stack[-1], Ordered):
            raise PickleError("its pickle gives attributes to other things than OrderedDicts")

    def _add(self, items: list[Any]) -> None:
        if not isinstance(self._stack[-1], list):
            raise PickleError("its pickle is damaged: expected a list")
        self._stack[-1].extend(items)

    def _set(self, items: list[Any]) -> None:
        _put_items(self._stack[-1], items)

    def _new_dict(self) -> None:
        found: dict[Any, Any] = {}
        _put_items(found, self._since_mark())
        self._stack.append(found)


def _put_items(target: Any, items: list[Any]) -> None:
    if not isinstance(target, dict) or len(items) % 2:
        raise PickleError("its pickle is damaged: expected a dict and pairs")
    for key, value in zip(items[::2], items[1::2], strict=True):
        if not isinstance(key, _KEYS):
            raise PickleError(f"a key of a dict is of type {type(key).__name__}")
        if key in target:
            raise PickleError(f"the name {key!r:.120} stands twice")
        target[key] = value


_ACTIONS: dict[str, Callable[[_Machine], None]] = {
    "MARK": _Machine._mark,
    "EMPTY_DICT": lambda machine: machine._stack.append({}),
    "EMPTY_LIST": lambda machine: machine._stack.append([]),
    "EMPTY_TUPLE": lambda machine: machine._stack.append(()),
    "TUPLE": lambda machine: _push(machine, tuple(machine._since_mark())),
    "LIST": lambda machine: _push(machine, machine._since_mark()),
    "DICT": _Machine._new_dict,
    "SETITEM": lambda machine: machine._set(machine._pop(2)),
    "SETITEMS": lambda machine: machine._set(machine._since_mark()),
    "APPEND": lambda machine: machine._add(machine._pop(1)),
    "APPENDS": lambda machine: machine._add(machine._since_mark()),
    "STACK_GLOBAL": _Machine._global,
    "REDUCE": _Machine._call,
    "BUILD": _Machine._build,
    "BINPERSID": lambda machine: _push(machine, machine._persistent(machine._pop(1)[0])),
    "MEMOIZE": lambda machine: machine._memo.__setitem__(len(machine._memo), machine._stack[-1]),
}


def _push(machine: _Machine, value: Any) -> None:
    """After the operands are taken: ``_since_mark`` replaces the stack."""
    machine._stack.append(value)
