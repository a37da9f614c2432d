"""Texts that show whether two tokenizers are one: always the same, each there for what some tokenizer gets wrong."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from functools import cache

from glmlike.tokenization.generations import GENERATIONS

_SCRIPTS = (
    *(
        "Hello, world!",
        "你好，世界。",
        "中文和 English 混排 v1.5",
        "繁體字與异体字",
        "こんにちは、カタカナ",
        "안녕하세요",
    ),
    *("Привет, мир", "Γειά σου Κόσμε", "שלום עולם", "مرحبا بالعالم", "नमस्ते दुनिया", "สวัสดีชาวโลก", "Tiếng Việt đẹp"),
    *("ÀÉÎÕÜ çñß œæ ĳ", "İıſẞ", "Ⅷ ① ㎏ ㍻ ㋿", "ＡＢＣ１２３，：", "ｶﾞｷﾞﾊﾟ", "ﷺ ﬁ ﬂ", "𠮷野家 𝒳𝟚", "ሰላም ជំរាបសួរ"),
)
_COMPOSED = (
    *("e\u0301", "\u00e9", "a\u0323\u0302", "a\u0302\u0323", "\u1100\u1161\u11a8", "가\u11a8", "q\u0307\u0323"),
    *("🙂", "👩‍💻", "🏳️‍🌈", "🇨🇳", "1️⃣", "👍🏽", "❤️🔥", "\ufe0f", "\u200d", "\u200b", "\u00ad", "\u202e abc"),
)
_BLANKS = (
    *(
        "",
        " ",
        "  ",
        "   ",
        "\t",
        "\n",
        "\n\n",
        "\r\n",
        "\r",
        " \n ",
        "\n \n",
        "\u00a0",
        "\u3000",
        "\u2028",
        "\x0b\x0c",
    ),
    *(" a", "a ", "  a", "a  ", "a  b", "a   b", "a\tb", "a\nb", "a\n\nb", "a \n b", "\ta", "\n\ta\n", " " * 17 + "a"),
    *("a" + " " * 80 + "b", "\n" * 9, "\t" * 9 + "x", "    return 1", "▁", "▁a▁▁b", " ▁ ", "\ufeffa", "a\u3000b"),
)
_CONTROL = ("\x00", "a\x00b", "\x01\x02", "\x1b[31m", "\x7f", "\x85", "\ufffd", "\ue000", "\U0010ffff", "\ufffe")
_NUMBERS = (
    "0",
    "12",
    "123",
    "1234",
    "12345678901",
    "3.14159",
    "-1e-10",
    "1,000,000",
    "0x1F",
    "２０２４年",
    "٣٤٥",
    "½²",
)
_CODE = (
    *("def f(x):\n    return x**2  # 平方\n", "for (int i=0;i<n;i++){a[i]+=b[i];}", 'print(f"{a!r:>10}")', "x=='='"),
    *(
        "#include <vector>\n\nint main() {\n\treturn 0;\n}",
        '<div class="a">&nbsp;</div>',
        "SELECT * FROM t WHERE a<>'b';",
    ),
    *(
        "https://a.b/c?d=e&f=%20",
        "C:\\dir\\n.txt",
        "don't we'LL they'Re I'm",
        "-----\n=====",
        "((((]]]]",
        "a_b.c->d::e",
    ),
    *(
        '{"k": [1, null, "v"]}',
        "\\n\\t\\\\",
        "```python\nx\n```",
        "$\\frac{a}{b}$",
        "!!!???...",
        "…—–“”‘’",
        "@user #tag",
    ),
)
_LONG = (
    "x" * 61,
    "ab" * 40,
    "哈" * 60,
    "0" * 50,
    "=" * 70,
    "aA" * 20 + "你" * 20,
    "supercalifragilisticexpialidocious",
)


@cache
def probes() -> tuple[str, ...]:
    """Some 190 texts: scripts, blanks, control characters, code, and the special tokens of every generation."""
    specials = dict.fromkeys(t for each in GENERATIONS.values() for t in each.specials if "reserved" not in t)
    spelled = [f"a{token}b {token}" for token in specials]
    spelled += [
        "<n>",
        "<|tab|>",
        "<|blank_5|>",
        "<|blank_1|><|blank_81|>",
        "<0x0A><0xFF>",
        "<image 5>",
        "sop eop",
        "<think>",
    ]
    return tuple(dict.fromkeys((*_SCRIPTS, *_COMPOSED, *_BLANKS, *_CONTROL, *_NUMBERS, *_CODE, *_LONG, *spelled)))


def sha256_of(ids: Sequence[Sequence[int]]) -> str:
    """One hash for the ids of all texts."""
    return hashlib.sha256(json.dumps(ids).encode()).hexdigest()
