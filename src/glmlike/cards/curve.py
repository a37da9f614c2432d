"""The curve of a loss: a picture where matplotlib is installed, and a line of text where it is not."""

from __future__ import annotations

import io
import math
from collections.abc import Sequence
from itertools import pairwise

from glmlike.cards.training import Point

_BARS = "▁▂▃▄▅▆▇█"
_WIDTH = 60


def sparkline(points: Sequence[Point], width: int = _WIDTH) -> str:
    """The values as bars from left to right, ``width`` at most; neighbours share a bar as their mean.

    A bar of points without a finite value is ``?``.
    """
    if not points:
        return ""
    count = min(width, len(points))
    cuts = [len(points) * place // count for place in range(count + 1)]
    means = [_mean([value for _, value in points[start:end]]) for start, end in pairwise(cuts)]
    finite = [mean for mean in means if mean is not None]
    low, high = (min(finite), max(finite)) if finite else (0.0, 0.0)
    span = (high - low) or 1.0
    return "".join("?" if mean is None else _BARS[round((mean - low) / span * (len(_BARS) - 1))] for mean in means)


def _mean(values: Sequence[float]) -> float | None:
    finite = [value for value in values if math.isfinite(value)]
    return sum(finite) / len(finite) if finite else None


def picture(curves: dict[str, Sequence[Point]]) -> bytes | None:
    """The curves as an SVG, the same bytes for the same points; None without matplotlib (``glmlike[cards]``)."""
    try:
        import matplotlib
        from matplotlib.figure import Figure
    except ImportError:
        return None
    with matplotlib.rc_context({"svg.hashsalt": "glmlike", "svg.fonttype": "none"}):
        figure = Figure(figsize=(6.4, 3.6), layout="constrained")
        axes = figure.subplots()
        for name, points in curves.items():
            axes.plot(*zip(*points, strict=True), label=name, marker="." if len(points) < 30 else None)
        axes.set_xlabel("step")
        axes.set_ylabel("loss")
        axes.grid(alpha=0.3)
        axes.legend()
        out = io.BytesIO()
        figure.savefig(out, format="svg", metadata={"Date": None})
    return out.getvalue()
