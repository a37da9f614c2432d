"""Shards written a tensor at a time, when neither dtypes nor shapes nor metadata are known before.

A shard's bytes lie in a spool file until it is full; then its header and the bytes, in the order that aligns them, make
the file. No more than the tensor at hand is in memory.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from glmlike.checkpoint.checksums import tensor_hasher
from glmlike.checkpoint.containers import SafetensorsFile, Sums
from glmlike.checkpoint.headers import DTYPE_SIZES
from glmlike.checkpoint.shards import name_shards, open_checkpoint
from glmlike.checkpoint.streams import digest, dtype_name
from glmlike.errors import CheckpointError

if TYPE_CHECKING:
    from torch import Tensor

_COPIED = 2**22


class SpooledShards:
    """Tensors added one by one to .safetensors files of at most ``limit`` bytes in ``folder``.

    ``metadata`` is what the headers hold beside ``format``; it may grow while tensors are added, and the last file has
    all of it. ``index`` (that of transformers) and ``sums`` (hashes by name) are complete once the files are closed.
    """

    def __init__(self, folder: Path, limit: int, metadata: Mapping[str, str]) -> None:
        self.sums: dict[str, str] = {}
        self.index: dict[str, Any] = {}
        self._folder, self._limit, self._metadata = folder, limit, metadata
        self._shards: list[list[str]] = []
        self._waiting: dict[str, tuple[str, tuple[int, ...], int]] = {}
        self._total = 0
        self._spool: BinaryIO | None = None

    def add(self, name: str, tensor: Tensor) -> None:
        """Write one more tensor."""
        import torch

        if self._waiting and self._size() + tensor.nbytes > self._limit:
            self._finish_shard()
        if self._spool is None:
            self._spool = (self._folder / "spool").open("w+b")
        kind = dtype_name(str(tensor.dtype).removeprefix("torch."))
        self._waiting[name] = (kind, tuple(tensor.shape), self._spool.tell())
        view = tensor.detach().contiguous().reshape(-1).view(torch.uint8).numpy().data
        self._spool.write(view)
        hasher = tensor_hasher()
        hasher.update(view)
        self.sums[name] = hasher.hexdigest()
        self._total += tensor.nbytes

    def close(self) -> None:
        """Finish the last file and name all of them."""
        if self._waiting:
            self._finish_shard()
        self.index = name_shards(self._folder, self._shards, self._total)

    def discard(self) -> None:
        """Close and remove what is not finished."""
        if self._spool is not None:
            self._spool.close()
        (self._folder / "spool").unlink(missing_ok=True)

    def _size(self) -> int:
        return 0 if self._spool is None else self._spool.tell()

    def _finish_shard(self) -> None:
        assert self._spool is not None
        metadata = {"format": "pt", **self._metadata}
        tensors = [(name, kind, shape) for name, (kind, shape, _) in self._waiting.items()]
        container = SafetensorsFile(f"shard-{len(self._shards)}", tensors, lambda sums: metadata)
        with (self._folder / container.path).open("wb") as file:
            for offset, content in container.frame(dict.fromkeys(self._waiting, Sums())):
                file.seek(offset)
                file.write(content)
            for name, (kind, shape, start) in self._waiting.items():
                file.seek(container.at[name])
                self._copy(start, math.prod(shape) * DTYPE_SIZES[kind], file)
        self._shards.append(list(self._waiting))
        self._waiting.clear()
        self._spool.close()
        (self._folder / "spool").unlink()
        self._spool = None

    def _copy(self, start: int, size: int, target: BinaryIO) -> None:
        assert self._spool is not None
        self._spool.seek(start)
        while size:
            content = self._spool.read(min(_COPIED, size))
            target.write(content)
            size -= len(content)


@contextmanager
def spooled_shards(folder: Path, limit: int, metadata: Mapping[str, str]) -> Iterator[SpooledShards]:
    """Shards to add tensors to, closed when the block ends well."""
    shards = SpooledShards(folder, limit, metadata)
    try:
        yield shards
        shards.close()
    finally:
        shards.discard()


def require_written(folder: Path, sums: Mapping[str, str]) -> dict[str, dict[str, str]]:
    """The hashes of what stands in the files, by file, once they are those of what was to be written."""
    checkpoint, buffer = open_checkpoint(folder), memoryview(bytearray(_COPIED))
    found = {name: digest(checkpoint.stream(name), tensor_hasher(), buffer) for name in checkpoint.tensors}
    wrong = sorted(name for name in found.keys() | sums.keys() if found.get(name) != sums.get(name))
    if wrong:
        raise CheckpointError(f"{wrong[:1]}: the file does not hold what was written to it. Check the disk, run again.")
    by_file: dict[str, dict[str, str]] = {}
    for name, info in checkpoint.tensors.items():
        by_file.setdefault(info.file.name, {})[name] = found[name]
    return by_file
