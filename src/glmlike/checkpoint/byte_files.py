"""Files as bytes at offsets: shared by threads, never mapped, holes kept.

What is read this way passes through the page cache but never counts as memory of the process, as mapped pages do.
"""

from __future__ import annotations

import errno
import os
import struct
import sys
import threading
import weakref
from pathlib import Path

from glmlike.errors import CheckpointError

_BINARY = getattr(os, "O_BINARY", 0)  # Windows would translate line ends
# Two file systems, a kernel without the call, or a file system without it: bytes are read and written instead.
_CANNOT_COPY = (errno.EXDEV, errno.ENOSYS, errno.EINVAL, errno.EOPNOTSUPP, errno.EPERM)
BLOCK = 4096
"""What a stretch begins and ends at that a file system may share between files, in nearly all of them."""
_CLONE_RANGE = 0x4020940D  # Linux's FICLONERANGE, with struct file_clone_range
_AT_OFFSET = hasattr(os, "preadv") and hasattr(os, "pwrite")


class ByteFile:
    """One file, opened when it is first used; any number of threads may read and write at offsets."""

    def __init__(self, path: Path, *, writable: bool = False) -> None:
        self.path = path
        self._flags = (os.O_RDWR if writable else os.O_RDONLY) | _BINARY
        self._lock = threading.Lock()
        self._fd: int | None = None

    @property
    def fd(self) -> int:
        """The open file's descriptor; closed when this object is no longer used."""
        if self._fd is None:
            with self._lock:
                if self._fd is None:
                    fd = os.open(self.path, self._flags)
                    weakref.finalize(self, os.close, fd)
                    self._fd = fd
        return self._fd

    def read_into(self, view: memoryview, offset: int) -> None:
        """Fill ``view`` with the bytes from ``offset`` on.

        Raises:
            CheckpointError: the file ends before.
        """
        while len(view):
            count = self._read(view, offset)
            if not count:
                raise CheckpointError(f"{self.path}: ends at byte {offset}: it became shorter while it was read.")
            view, offset = view[count:], offset + count

    def write(self, view: memoryview, offset: int) -> None:
        """Write ``view`` at ``offset``."""
        while len(view):
            count = self._write(view, offset)
            view, offset = view[count:], offset + count

    def is_hole(self, start: int, stop: int) -> bool:
        """Whether the file system stores nothing for the bytes ``[start, stop)``, which then are zeros."""
        if not hasattr(os, "SEEK_DATA") or not _AT_OFFSET:
            return False
        try:
            return os.lseek(self.fd, start, os.SEEK_DATA) >= stop
        except OSError as error:
            return error.errno == errno.ENXIO  # nothing but a hole until the end of the file

    def copy_from(self, other: ByteFile, offset: int, count: int, to: int) -> bool:
        """Copy ``count`` bytes at ``offset`` of ``other`` to ``to`` in the kernel; False where it cannot do that."""
        if not hasattr(os, "copy_file_range"):
            return False
        while count:
            try:
                done = os.copy_file_range(other.fd, self.fd, count, offset, to)
            except OSError as error:
                if error.errno in _CANNOT_COPY:
                    return False
                raise
            if not done:
                raise CheckpointError(f"{other.path}: ends at byte {offset}: it became shorter while it was read.")
            count, offset, to = count - done, offset + done, to + done
        return True

    def begin_to_store(self, offset: int, count: int) -> None:
        """Have the system begin to put what was just written on the disk, which a sync at the end would wait for."""
        if hasattr(os, "posix_fadvise"):
            os.posix_fadvise(self.fd, offset, count, os.POSIX_FADV_DONTNEED)

    def share_from(self, other: ByteFile, offset: int, count: int, to: int) -> tuple[int, int]:
        """Have this file share the whole blocks of ``count`` bytes at ``offset`` of ``other``, at ``to``.

        Returns the stretch ``[first, last)`` of these bytes that is shared: it took neither time nor room. (0, 0) where
        nothing is, because the places differ by no whole blocks or the file system cannot (XFS, Btrfs and others can).
        """
        first = -offset % BLOCK
        last = first + (count - first) // BLOCK * BLOCK
        if sys.platform != "linux" or (offset - to) % BLOCK or last <= first:
            return 0, 0
        import fcntl

        try:
            fcntl.ioctl(self.fd, _CLONE_RANGE, struct.pack("qQQQ", other.fd, offset + first, last - first, to + first))
        except OSError as error:
            if error.errno in (*_CANNOT_COPY, errno.ENOTTY):
                return 0, 0
            raise
        return first, last

    def _read(self, view: memoryview, offset: int) -> int:
        fd = self.fd
        if _AT_OFFSET:
            return os.preadv(fd, [view], offset)
        with self._lock:
            os.lseek(fd, offset, os.SEEK_SET)
            found = os.read(fd, len(view))
        view[: len(found)] = found
        return len(found)

    def _write(self, view: memoryview, offset: int) -> int:
        fd = self.fd
        if _AT_OFFSET:
            return os.pwrite(fd, view, offset)
        with self._lock:
            os.lseek(fd, offset, os.SEEK_SET)
            return os.write(fd, view)


def sync(path: Path) -> None:
    """Have a file's bytes, or a folder's entries, reach the disk; a no-op for folders where the system has no such."""
    if path.is_dir() and os.name == "nt":
        return
    fd = os.open(path, os.O_RDONLY if path.is_dir() else os.O_RDWR | _BINARY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def stored_bytes(path: Path) -> int:
    """How many bytes of a file the disk holds: less than its size where it has holes."""
    status = path.stat()
    blocks = getattr(status, "st_blocks", None)
    return status.st_size if blocks is None else min(status.st_size, blocks * 512)
