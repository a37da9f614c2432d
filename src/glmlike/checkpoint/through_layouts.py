"""Layouts applied to streams: by their rows where a layout moves rows, through tensors where it does more."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING

from glmlike.checkpoint.layouts import Layout, RowLayout, Run, Shape
from glmlike.checkpoint.streams import LastMade, Loaded, Rows, Stream, read_all

if TYPE_CHECKING:
    from torch import Tensor


def to_native_streams(layout: Layout, foreign: Sequence[Stream], shapes: Sequence[Shape]) -> list[Stream]:
    """The native tensors, of these shapes, as streams; copies of one tensor are not compared here."""
    if isinstance(layout, RowLayout):
        return [_picked(runs, foreign) for runs in layout.native_rows([stream.shape for stream in foreign])]
    return _through_tensors(layout.to_native, foreign, shapes)


def to_foreign_streams(layout: Layout, native: Sequence[Stream]) -> list[Stream]:
    """The foreign tensors as streams. Raises CheckpointError if the layout has no way to them."""
    shapes = [stream.shape for stream in native]
    if isinstance(layout, RowLayout):
        return [_picked(runs, native) for runs in layout.foreign_rows(shapes)]
    return _through_tensors(layout.to_foreign, native, layout.foreign_shapes(shapes))


def _picked(runs: Sequence[Run], streams: Sequence[Stream]) -> Stream:
    if len(runs) == 1:
        index, first, last = runs[0]
        if (first, last) == (0, streams[index].shape[0] if streams[index].shape else 1):
            return streams[index]
    return Rows(tuple((streams[index], first, last) for index, first, last in runs))


def _through_tensors(
    change: Callable[[Sequence[Tensor]], list[Tensor]], streams: Sequence[Stream], shapes: Sequence[Shape]
) -> list[Stream]:
    """What ``change`` makes of whole tensors: all of one step are in memory while one of them is read."""
    made = LastMade(lambda: change([read_all(stream) for stream in streams]))
    return [Loaded(partial(made.get, at), streams[0].dtype, shape) for at, shape in enumerate(shapes)]
