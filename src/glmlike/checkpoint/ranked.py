"""The formats whose folders are rank files without a config.json: each is a module with the same five functions."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from glmlike.checkpoint import meta, sat
from glmlike.checkpoint.ranks import RankedCheckpoint, RankLayout
from glmlike.hub_json import Format
from glmlike.spec import DecoderSpec


@dataclass(frozen=True)
class RankedFormat:
    """``file`` says the decoder, with the fields that ``arguments`` takes from a config and the number of ranks.

    ``open_folder`` reads a folder that ``is_here``: its decoder, config, who says the decoder, and its tensors.
    ``layout`` says which files a decoder's tensors go to, for a number of ranks.
    """

    file: str
    is_here: Callable[[Path], bool]
    open_folder: Callable[[Path, str | DecoderSpec | None], tuple[DecoderSpec, dict[str, Any], str, RankedCheckpoint]]
    layout: Callable[[DecoderSpec, int], RankLayout]
    arguments: Callable[[Mapping[str, Any], int], dict[str, Any]]


RANKED: dict[Format, RankedFormat] = {
    "glm-130b": RankedFormat(sat.ARGUMENTS, sat.is_here, sat.open_folder, sat.layout, sat.arguments),
    "meta": RankedFormat(meta.ARGUMENTS, meta.is_here, meta.open_folder, meta.layout, meta.arguments),
}


def ranked_format(folder: Path) -> Format | None:
    """Which of them a folder is; None for a folder with a config.json, and for any other."""
    if (folder / "config.json").exists():
        return None
    return next((name for name, ranked in RANKED.items() if ranked.is_here(folder)), None)
