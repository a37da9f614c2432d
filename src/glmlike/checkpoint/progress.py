"""A bar of bytes, bytes a second and time left, on a terminal; nothing where stderr is a file or a pipe."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from functools import partial


def on_terminal(
    quiet: bool = False, doing: str = "converting"
) -> Callable[[int], AbstractContextManager[Callable[[int], None]]] | None:
    """What ``convert(..., watch=)`` takes, or None where nobody would see it; ``doing`` stands before the bar."""
    return None if quiet or not sys.stderr.isatty() else partial(_bar, doing=doing)


@contextmanager
def _bar(total: int, doing: str) -> Iterator[Callable[[int], None]]:
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn

    columns = (TextColumn(doing), BarColumn(), DownloadColumn(), TransferSpeedColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task(doing, total=total)
        yield lambda count: progress.advance(task, count)
