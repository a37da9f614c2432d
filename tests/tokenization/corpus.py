"""Texts to hold a tokenizer against another: deterministic, mixed, from what every machine with the test extras has."""

from __future__ import annotations

import random
import sys
import sysconfig
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Literal

EMOJI = "🙂🚀👩‍💻🏳️‍🌈🇨🇳1️⃣👍🏽❤️𠮷🀄🄰"
HARD = (
    *(
        "",
        " ",
        "  ",
        "   a",
        "a   ",
        "\n",
        "\n\n\t",
        "\r\n",
        "\t a",
        "\x00",
        "a\x00b",
        "\x01a\x02",
        "\x7f\x85\x9f",
        "\u2581",
        "\u2581\u2581a \u2581b",
    ),
    *(
        "▁",
        "a▁b ▁",
        "\ufeffa",
        "\ufffd",
        "\u200b a\u200d",
        "\u3000全角 空\u3000",
        "ＡＢＣ：１２３，",
        "ｶﾞｷﾞ ﾊﾟ",
        "e\u0301 a\u0323\u0302 a\u0302\u0323",
    ),
    *(
        "u\u0308\u0304",
        "Ａ\u0301",
        "\n\u0338",
        "<n>\u0338x",
        "\u1100\u1161\u11a8 가\u11a8",
        "ㄱㅏ",
        "①ⅷ㎏㍻㋿",
        "ﷺ ﬁ",
        "ǆ",
        "\u0344",
        "q\u0307\u0323",
    ),
    *(
        "[gMASK] <sop> <eop> [MASK]",
        "<n><|tab|><|blank_5|>",
        "<|blank_81|><|blank_1|>",
        "<0x0A><0xFF>",
        "<s></s><unk><pad>",
    ),
    *(
        "<image 5>",
        "x" * 61,
        "=" * 200,
        "哈" * 77,
        "ab" * 50,
        " " * 300 + "a",
        "0" * 100,
        "▁" * 33,
        "-----\n=====\n" * 5,
    ),
    *(EMOJI, "👩‍💻" * 7, "\U0010ffff\ue000", "\ud7ff", "मनीष มากกว่า עברית العربية"),
)


def mixed_corpus(size: int, seed: int, pieces: Sequence[str] = ()) -> list[str]:
    """Texts of together at least ``size`` UTF-8 bytes, the ``HARD`` ones first; the same ones for the same seed.

    Code and English from installed Python sources, Chinese from ``pieces`` put together at random, and noise:
    emoji, control characters, any code points, and all of them joined. Lengths run from one character to 30000.
    """
    rng = random.Random(seed)
    sources = _sources()
    out, total = list(HARD), 0
    makers = (_code, _code, _chinese, _noise, _mixture) if pieces else (_code, _code, _noise)
    while total < size:
        text = rng.choice(makers)(rng, sources, pieces)
        out.append(text)
        total += len(text.encode())
    return out


def random_text(rng: random.Random, length: int) -> str:
    """``length`` code points from all of Unicode but surrogates, most from the blocks that normalisers act on."""
    blocks = (
        (0, 0x80),
        (0, 0x300),
        (0x300, 0x370),
        (0x1100, 0x1200),
        (0x2000, 0x2100),
        (0x3000, 0x3400),
        (0xFF00, 0x10000),
    )
    wide = (*blocks, (0x4E00, 0x9FFF), (0xAC00, 0xD7A4), (0, 0xD800), (0xE000, 0x110000))
    return "".join(chr(rng.randrange(*rng.choice(wide))) for _ in range(length))


def _sources() -> list[Path]:
    package = find_spec("transformers")
    folders = [Path(sysconfig.get_path("stdlib"))]
    if package and package.origin:
        folders.append(Path(package.origin).parent / "models")
    found = [path for folder in folders for path in folder.rglob("*.py") if "site-packages" not in path.parts]
    return sorted(path for path in found if 200 < path.stat().st_size < 400_000) or [
        Path(sys.modules[__name__].__file__ or "")
    ]


def _length(rng: random.Random) -> int:
    return min(30_000, int(rng.lognormvariate(6.5, 1.5)) + 1)


def _code(rng: random.Random, sources: list[Path], _: Sequence[str]) -> str:
    text = rng.choice(sources).read_text(encoding="utf8", errors="replace")
    start = rng.randrange(len(text))
    return text[start : start + _length(rng)]


def _chinese(rng: random.Random, _: list[Path], pieces: Sequence[str]) -> str:
    words = rng.choices(pieces, k=_length(rng) // 3 + 1)
    return "".join(
        word.replace("▁", " ") + rng.choice(("", "", "", "", "，", "。", "、", "！\n", "：“")) for word in words
    )


def _noise(rng: random.Random, *_: object) -> str:
    kind = rng.randrange(4)
    length = min(400, _length(rng))
    if kind == 0:
        return random_text(rng, length)
    if kind == 1:
        return "".join(rng.choices(EMOJI + "a 字", k=length))
    if kind == 2:
        return "".join(rng.choices("\x00\x01\t\n\r\x0b\x0c\x1b\x7f\x85 \u2028\u3000ab", k=length))
    return rng.choice(" =-#*x哈0.") * length


def _mixture(rng: random.Random, sources: list[Path], pieces: Sequence[str]) -> str:
    return "".join(
        rng.choice((_code, _chinese, _noise))(rng, sources, pieces)[:200] for _ in range(rng.randrange(2, 9))
    )


def sample(size: int, language: Literal["code", "chinese"], pieces: Sequence[str]) -> list[str]:
    """About ``size`` UTF-8 bytes of one kind in texts of some 3000 characters, for measuring; always the same."""
    rng, out, total, sources = random.Random(0), [], 0, _sources()
    words = [piece for piece in pieces if any("\u4e00" <= each <= "\u9fff" for each in piece)]
    while total < size:
        text = "".join((_code if language == "code" else _chinese)(rng, sources, words) for _ in range(3))[:3000]
        out.append(text)
        total += len(text.encode())
    return out
