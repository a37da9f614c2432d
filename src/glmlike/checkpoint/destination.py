"""The folder a conversion writes into: a sibling that becomes the destination when it is whole.

It has one name for one destination, so an interrupted run is found again; a lock keeps a second process out.
"""

from __future__ import annotations

import logging
import os
import shutil
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

from glmlike.checkpoint import provenance
from glmlike.checkpoint.byte_files import stored_bytes, sync
from glmlike.checkpoint.journal import NAME as JOURNAL
from glmlike.checkpoint.journal import Journal
from glmlike.checkpoint.plan import Plan
from glmlike.errors import CheckpointError

logger = logging.getLogger(__name__)


def require_apart(destination: Path, source: Path) -> None:
    """Raise CheckpointError if ``destination`` is the source, inside it or around it, links resolved."""
    target, origin = destination.resolve(), source.resolve()
    if target == origin or origin in target.parents or target in origin.parents:
        raise CheckpointError(f"{destination}: must not be {source}, inside it or around it. Choose another folder.")


def require_new(plan: Plan) -> None:
    """Raise CheckpointError if the destination is taken; the message says so if it is what ``plan`` would write."""
    target = plan.destination.resolve()
    before = provenance.earlier_record(target) if target.is_dir() else None
    if before is not None and before.get("plan") == plan.identity:
        raise CheckpointError(
            f"{plan.destination}: exists already, and its {provenance.RECORD} says that it is this conversion of the "
            f"same source to {plan.target_format!r}. Nothing is left to do; remove the folder to convert twice."
        )
    require_free(plan.destination)


def require_free(destination: Path) -> None:
    """Raise CheckpointError if something is at the destination that is not an empty folder."""
    target = destination.resolve()
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise CheckpointError(f"{destination}: exists already. Choose a new folder, or remove this one.")


@contextmanager
def partial_folder(plan: Plan, *, resume: bool) -> Iterator[tuple[Path, Journal]]:
    """A folder and its journal to write into; it becomes the destination, on the disk, when the block ends well.

    On an error nothing is left. On Ctrl-C and SIGTERM what is done stays for ``resume``, and a warning says where.

    Raises:
        CheckpointError: an interrupted run is there and ``resume`` is False, or another process is at it, or the disk
            is too small.
    """
    target = plan.destination.resolve()
    with _reserved(target, plan.destination) as partial:
        journal = _open_journal(partial, plan, resume)
        try:
            yield partial, journal
            _sync_all(partial)
            journal.close(remove=True)
            _move_into_place(partial, target, plan.files[0] if plan.one_file else None)
        except BaseException as error:
            _leave(partial, journal, keep=isinstance(error, (KeyboardInterrupt, SystemExit)))
            raise


@contextmanager
def fresh_folder(destination: Path, source: Path) -> Iterator[Path]:
    """:func:`partial_folder` of a run that cannot be resumed: whatever ends it early, nothing is left.

    Raises:
        CheckpointError: the destination is taken, or is the source, inside it or around it, or another process writes
            it, or an interrupted conversion to it can be resumed.
    """
    require_apart(destination, source)
    target = destination.resolve()
    require_free(destination)
    with _reserved(target, destination) as partial:
        if _is_begun(partial):
            raise _interrupted(partial, destination)
        try:
            _empty(partial)
            yield partial
            _sync_all(partial)
            _move_into_place(partial, target)
        except BaseException:
            shutil.rmtree(partial, ignore_errors=True)
            raise


@contextmanager
def _reserved(target: Path, destination: Path) -> Iterator[Path]:
    """The hidden sibling of ``target``, for this process alone, with SIGTERM taken as Ctrl-C."""
    partial = target.parent / f".{target.name}.partial"
    target.parent.mkdir(parents=True, exist_ok=True)
    partial.mkdir(exist_ok=True)
    with _locked(partial, destination), _terminated_as_interrupted():
        yield partial


def _sync_all(partial: Path) -> None:
    for path in (*filter(Path.is_file, partial.rglob("*")), *filter(Path.is_dir, partial.rglob("*"))):
        sync(path)


def _move_into_place(partial: Path, target: Path, file: str | None = None) -> None:
    """The folder becomes the target, or its one ``file`` does."""
    sync(partial)
    if file is not None:
        (partial / file).rename(target)
        partial.rmdir()
    else:
        if target.exists():
            target.rmdir()
        partial.rename(target)
    sync(target.parent)


def _empty(partial: Path) -> None:
    for path in partial.iterdir():
        shutil.rmtree(path) if path.is_dir() else path.unlink()


def _is_begun(partial: Path) -> bool:
    return (partial / JOURNAL).exists() and (partial / JOURNAL).stat().st_size > 0


def _interrupted(partial: Path, destination: Path) -> CheckpointError:
    return CheckpointError(
        f"{partial}: an interrupted conversion to {destination} is here. Go on with it (--resume), or remove this "
        "folder."
    )


def run_identity(plan: Plan) -> str:
    """What a journal belongs to: the plan, and files that were not written since."""
    return provenance.sha256_of([plan.identity, provenance.times(list(plan.found.checkpoint.files))])


def _open_journal(partial: Path, plan: Plan, resume: bool) -> Journal:
    """The journal of the folder, which is emptied unless it belongs to a run that can be resumed."""
    begun = _is_begun(partial)
    if begun and not resume:
        raise _interrupted(partial, plan.destination)
    try:
        _require_space(partial, plan)
        if not begun:
            _empty(partial)
        return Journal(partial, run_identity(plan))
    except BaseException:
        if not begun:
            shutil.rmtree(partial, ignore_errors=True)
        raise


def _require_space(partial: Path, plan: Plan) -> None:
    already = sum(stored_bytes(path) for path in partial.rglob("*") if path.is_file())
    free = shutil.disk_usage(partial.parent).free
    if plan.disk - already > free:
        raise CheckpointError(
            f"{plan.destination}: needs {(plan.disk - already) / 1e9:.1f} GB, its disk has {free / 1e9:.1f} GB free. "
            "Make room, or choose another disk."
        )


def _leave(partial: Path, journal: Journal, *, keep: bool) -> None:
    """Remove the folder, unless it was interrupted after something was done."""
    done = len(journal.tensors)
    journal.close(remove=False)
    if not keep or not done:
        shutil.rmtree(partial, ignore_errors=True)
        return
    logger.warning(
        "Interrupted: %d finished tensors are in %s. The same command with --resume goes on; remove the folder to "
        "start anew.",
        done,
        partial,
    )


@contextmanager
def _locked(partial: Path, destination: Path) -> Iterator[None]:
    """Nobody else writes into the folder meanwhile; the lock ends with the process, however that ends."""
    try:
        import fcntl
    except ImportError:  # Windows refuses to remove or replace a file that is open, which is enough
        yield
        return
    fd = os.open(partial, os.O_RDONLY)
    try:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise CheckpointError(f"{destination}: another process is writing it at this moment.") from None
        yield
    finally:
        os.close(fd)


@contextmanager
def _terminated_as_interrupted() -> Iterator[None]:
    """SIGTERM ends the block as Ctrl-C does, with exit code 143; a handler of the program's own is left alone."""
    alone = threading.current_thread() is threading.main_thread() and signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
    if not alone:
        yield
        return

    def end(number: int, frame: FrameType | None) -> Any:
        raise SystemExit(128 + number)

    signal.signal(signal.SIGTERM, end)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
