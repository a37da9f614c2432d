"""How much memory the process uses, and how a bound on it is shared out among workers."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from glmlike.checkpoint.streams import Stream, size_of
from glmlike.errors import GlmLikeError

DEFAULT = 10**9
_LARGEST_CHUNK = 2**21  # larger ones leave the processor's cache between being read, hashed and written; measured
_SMALLEST_CHUNK = 2**16
_SLACK = 32 * 2**20  # the allocator's, the plan's and the threads' own
_SLACK_OF_TORCH = 48 * 2**20  # with what its first products of matrices leave behind


@dataclass(frozen=True)
class Memory:
    """A bound on the resident memory of the whole process, with those it starts, and how it is kept.

    ``bound``: the bytes promised; ``baseline``: what the process held before; ``workers`` threads, each of which has
    ``share`` bytes for a stretch of a tensor and what is computed from it. ``apart``: what the tokenizer takes
    beside the baseline, before the workers begin or after they ended, in this process or the largest of its own.
    ``peak`` is what is expected at most, of all processes together.
    """

    bound: int
    baseline: int
    workers: int
    share: int
    peak: int
    apart: int = 0

    def chunk(self, stream: Stream) -> int:
        """The number of bytes of ``stream`` that one worker may ask for at once."""
        return max(stream.grain, min(_LARGEST_CHUNK, int(self.share / (1 + stream.overhead))))


def share_out(
    bound: int | None,
    workers: int | None,
    streams: Sequence[Stream],
    held: int,
    *,
    apart: int = 0,
    what: str = "the process that writes the tokenizer anew",
    beside: int = 0,
) -> Memory:
    """A plan of memory for reading ``streams``, where each worker holds ``held`` bytes of tensors that are read whole.

    ``bound=None`` is 1 GB, or what the process holds and 256 MB, or what ``apart`` needs, where that is more.
    ``apart`` bytes are taken by ``what`` while no worker is at work, ``beside`` bytes by this process while they are.

    Raises:
        GlmLikeError: an explicit bound that cannot be kept; the message says the least that will do.
    """
    baseline = resident()
    least = max((need(stream) for stream in streams), default=_SMALLEST_CHUNK)
    most = max((_most(stream) for stream in streams), default=_SMALLEST_CHUNK)
    wanted = workers if workers is not None else min(4, os.cpu_count() or 1)
    if wanted < 1:
        raise GlmLikeError(f"workers={workers}: expected a whole number of at least 1.")
    limit = max(DEFAULT, baseline + max(256 * 10**6 + held + least, apart)) if bound is None else bound
    slack = beside + (_SLACK_OF_TORCH if any(stream.overhead for stream in streams) else _SLACK)
    free = limit - baseline - slack
    if free < least + held or limit - baseline < apart:
        needed = (baseline + max(slack + held + least, apart)) // 10**6 + 1
        for_rows = f"the largest row needs {(least + held) // 10**6} MB more"
        for_others = f"{what} may take {apart // 10**6} MB beside it"
        raise GlmLikeError(
            f"max_memory={limit // 10**6} MB: this process holds {baseline // 10**6} MB already, and "
            f"{for_rows if apart < slack + held + least else for_others}. Pass at least {needed} MB."
        )
    count = min(wanted, max(1, free // (least + held)))
    share = min(free // count - held, most)
    peak = baseline + max(slack + count * (share + held), apart)
    return Memory(limit, baseline, count, share, peak, apart)


def need(stream: Stream) -> int:
    """The least memory that a stretch of a stream takes."""
    smallest = max(stream.grain, min(_SMALLEST_CHUNK, size_of(stream)))
    return int(smallest * (1 + stream.overhead))


def _most(stream: Stream) -> int:
    return max(need(stream), int(min(_LARGEST_CHUNK, max(size_of(stream), 1)) * (1 + stream.overhead)))


def resident() -> int:
    """The resident memory of this process in bytes; its peak where the system says no more."""
    status = Path("/proc/self/status")
    if status.exists():
        line = next(line for line in status.read_text().splitlines() if line.startswith("VmRSS"))
        return int(line.split()[1]) * 1024
    try:
        import resource
    except ImportError:  # Windows
        return 64 * 2**20
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
