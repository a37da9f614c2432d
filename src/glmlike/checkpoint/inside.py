"""Which files of a folder may be opened: regular files that are in it, also when the way to them is a symbolic link."""

from __future__ import annotations

from pathlib import Path

from glmlike.errors import CheckpointError

MAX_JSON = 2**25
"""Bytes of a JSON file at most; the indices of the largest published checkpoints have a few million."""


def require_inside(path: Path, folder: Path) -> Path:
    """``path``, if it is a regular file of ``folder``.

    Links that leave the folder are refused, since a downloaded folder could point to any file of the reader's machine.
    A Hub cache is made of links, from ``models--x/snapshots/y`` to ``models--x/blobs``, or (huggingface_hub 2.4, files
    over Xet) to ``blobs`` beside ``models--x``, which all repositories share: there, both count as the folder.

    Raises:
        CheckpointError: ``path`` leads out of the folder, or is not a regular file (a pipe, a device, a folder).
    """
    try:
        real, homes = path.resolve(strict=True), _homes(folder.resolve())
    except (OSError, RuntimeError) as error:
        raise CheckpointError(f"{path}: cannot be opened ({error}). Download this file.") from None
    if not any(real.is_relative_to(home) for home in homes):
        raise CheckpointError(
            f"{path}: a link to {real}, which is outside of {homes[0]}. Nothing was read. If you trust it, put a copy "
            "of the file in the place of the link."
        )
    if not real.is_file():
        raise CheckpointError(f"{path}: not a regular file. Download this file.")
    return path


def _homes(folder: Path) -> tuple[Path, ...]:
    """Where the files of a folder may be: in it, or where a Hub cache that it is part of keeps them."""
    for place in (folder, *folder.parents):
        repository = place.parent.parent
        is_cached = place.parent.name == "snapshots" and repository.name.startswith("models--")
        if is_cached and (repository / "blobs").is_dir():
            return repository, repository.parent / "blobs"
    return (folder,)


def require_small(path: Path, limit: int = MAX_JSON) -> None:
    """Raise CheckpointError if a text file is larger than any such file is."""
    size = path.stat().st_size
    if size > limit:
        raise CheckpointError(f"{path}: {size} bytes, expected at most {limit}. Download it again.")
