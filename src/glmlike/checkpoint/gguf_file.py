"""The GGUF file that is written: where each tensor's bytes go, known before one is written, and what stands before.

The package ``gguf`` writes the header. The record of where the numbers come from is in it, of one length for any
hashes, so the header is made once and the record is filled in last.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from glmlike.checkpoint.containers import Sums
from glmlike.checkpoint.gguf_blocks import bytes_of, gguf_package

RECORD = "glmlike.record"
"""Our own key: where the numbers come from, as JSON (glmlike.checkpoint.provenance)."""

_ALIGNMENT = 32


class GgufFile:
    """One GGUF file: ``tensors`` are name, type by GGUF's name, and shape, in the order of the file.

    ``record`` gives the text under ``RECORD`` from the tensors' hashes, as many bytes for any hashes.
    """

    checked = False

    def __init__(
        self,
        path: str,
        architecture: str,
        fields: Mapping[str, Any],
        tensors: Sequence[tuple[str, str, tuple[int, ...]]],
        record: Callable[[Mapping[str, Sums]], str],
    ) -> None:
        self.path = path
        self._record = record
        self._empty = record({name: Sums() for name, _, _ in tensors}).encode()
        self._header = _header(architecture, {**fields, RECORD: self._empty.decode()}, tensors)
        position = len(self._header)
        self.at: dict[str, int] = {}
        for name, kind, shape in tensors:
            self.at[name] = position
            position += bytes_of(kind, shape)
            position += -position % _ALIGNMENT
        self.size = position

    def frame(self, sums: Mapping[str, Sums]) -> list[tuple[int, bytes]]:
        filled = self._record(sums).encode()
        if len(filled) != len(self._empty) or self._header.count(self._empty) != 1:
            raise AssertionError(f"{self.path}: a record of {len(filled)} bytes where {len(self._empty)} were kept")
        return [(0, self._header.replace(self._empty, filled))]


def _header(architecture: str, fields: Mapping[str, Any], tensors: Sequence[tuple[str, str, tuple[int, ...]]]) -> bytes:
    """Everything before the first tensor."""
    import numpy as np

    gguf = gguf_package()
    with TemporaryDirectory() as folder:
        path = Path(folder) / "header.gguf"
        writer = gguf.GGUFWriter(path, architecture)
        try:
            for key, value in fields.items():
                _add(writer, key, value)
            for name, kind, shape in tensors:
                raw = gguf.GGMLQuantizationType[kind]
                writer.add_tensor_info(name, shape, np.dtype(np.float32), bytes_of(kind, shape), raw_dtype=raw)
            writer.write_header_to_file()
            writer.write_kv_data_to_file()
            writer.write_ti_data_to_file()
        finally:
            writer.close()
        found = path.read_bytes()
    return found + bytes(-len(found) % _ALIGNMENT)


def _add(writer: Any, key: str, value: Any) -> None:
    if isinstance(value, bool):
        writer.add_bool(key, value)
    elif isinstance(value, int):
        writer.add_uint32(key, value)
    elif isinstance(value, float):
        writer.add_float32(key, value)
    elif isinstance(value, str):
        writer.add_string(key, value)
    else:
        writer.add_array(key, value)
