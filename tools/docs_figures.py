"""The pictures of docs/figures, drawn from what the package computes: python tools/docs_figures.py

Masks are those of ``glmlike.masking``, positions those of ``glmlike.prefix``, pairs those of ``glmlike.rotary``;
nothing here knows what they should be.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from glmlike.configuration import GlmLikeConfig
from glmlike.masking import attention_masks, default_positions, visible_contexts
from glmlike.published import PUBLISHED
from glmlike.rotary import GlmLikeRotaryEmbedding, apply_rotary, quarter_turn
from glmlike.spec import DecoderSpec

FOLDER = Path(__file__).parents[1] / "docs" / "figures"
_IDS = {"[MASK]": 90, "[sMASK]": 91, "[gMASK]": 92, "sop": 93}
_SMALL: dict[str, Any] = {"vocab_size": 96, "max_position_embeddings": 64}
_CELL, _GAP = 26, 96
_PAIRS = ("#cfe3ff", "#ffd9c2", "#d6f0d0", "#f2d2ea", "#fff0b3", "#d9d3f5", "#c9eeee", "#e8d8c3")


@dataclass(frozen=True)
class Grid:
    """A row of tokens as a decoder reads it: who sees whom [T, T], and the coordinates of each token by their name."""

    tokens: Sequence[str]
    sees: Tensor
    coordinates: dict[str, list[int]]


def grid(spec: DecoderSpec, tokens: Sequence[str], samples: Sequence[int] | None = None) -> Grid:
    """What the package computes for one row of ``tokens``; ``samples`` says which sample of a packed row each is of."""
    known = {"mask_token_id": 90, "smask_token_id": 91, "gmask_token_id": 92, "sop_token_id": 93}
    config = GlmLikeConfig.from_spec(spec.replace(**_SMALL), **known)
    config._attn_implementation = "eager"
    ids = torch.tensor([[_IDS.get(token, number + 1) for number, token in enumerate(tokens)]])
    seq_idx = None if samples is None else torch.tensor([list(samples)])
    embeds = torch.zeros(1, len(tokens), 4)
    positions = default_positions(config, ids, embeds, None, None, seq_idx)
    blocks = visible_contexts(config, ids, positions, None, None, seq_idx)
    kinds = spec.layer_types or ("full_attention",)
    masks = attention_masks(config, set(kinds), None, embeds, None, positions, blocks, seq_idx)
    mask = masks[kinds[-1]]
    sees = (mask if mask.dtype == torch.bool else mask == 0)[0, 0]
    rows = positions[0].tolist() if positions.ndim == 3 else positions.tolist()
    names = ("position", "place in the piece")
    return Grid(tokens, sees, dict(zip(names, rows, strict=False)))


def mask_svg(drawn: Grid) -> str:
    """The mask as a grid, a row a token and a column what it sees, with the coordinates below."""
    count = len(drawn.tokens)
    width, height = _GAP + count * _CELL + 90, 70 + (count + len(drawn.coordinates)) * _CELL + 30
    parts = []
    for t, token in enumerate(drawn.tokens):
        y = 70 + t * _CELL
        parts.append(_text(_GAP - 8, y + 17, token, "end"))
        x = _GAP + t * _CELL + 17
        parts.append(f'<text x="{x}" y="64" transform="rotate(-45 {x} 64)">{escape(token)}</text>')
        for s in range(count):
            filled = "#3f6fb5" if s <= t else "#e0894a"
            parts.append(_cell(_GAP + s * _CELL, y, filled if drawn.sees[t, s] else "#f3f3f3"))
    for r, (name, values) in enumerate(drawn.coordinates.items()):
        y = 84 + (count + r) * _CELL
        parts.append(_text(_GAP - 8, y + 17, name if len(name) < 12 else "in piece", "end"))
        for t, value in enumerate(values):
            parts.append(_cell(_GAP + t * _CELL, y, "#ffffff"))
            parts.append(_text(_GAP + t * _CELL + 13, y + 17, str(value), "middle"))
    return _svg(width, height, parts)


def mask_text(drawn: Grid) -> str:
    """The mask in characters, for readers and tests: ``#`` sees, ``.`` does not."""
    width = max(map(len, drawn.tokens))
    rows = (
        f"{token:>{width}} {''.join('#' if seen else '.' for seen in row)}"
        for token, row in zip(drawn.tokens, drawn.sees.tolist(), strict=True)
    )
    return "\n".join(rows)


def pairs(spec: DecoderSpec) -> list[tuple[int | None, int | None]]:
    """Of every feature of a head: the pair it turns in, and the coordinate that turns it; None where none does."""
    config = GlmLikeConfig.from_spec(spec.replace(**_SMALL))
    coordinates = 2 if spec.positions == "rotary_2d" else 1
    found: list[tuple[int | None, int | None]] = [(None, None)] * spec.head_dim
    seen = 0
    for coordinate in range(coordinates):
        positions = torch.zeros(1, coordinates, 1, dtype=torch.long)
        positions[0, coordinate] = 1
        basis = torch.eye(spec.head_dim)[None, :, None]
        places = positions if coordinates == 2 else positions[:, 0]
        cos, sin = GlmLikeRotaryEmbedding(config)(basis, places)
        turned = apply_rotary(basis, basis, cos, sin, quarter_turn(config))[0][0, :, 0]
        for feature in range(spec.head_dim):
            partners = [int(f) for f in turned[feature].abs().gt(1e-6).nonzero()[:, 0] if f != feature]
            if partners and found[feature] == (None, None):
                for f in (feature, *partners):
                    found[f] = (seen, coordinate)
                seen += 1
    return found


def pairs_svg(rows: dict[str, list[tuple[int | None, int | None]]]) -> str:
    """One head a row; features of one letter turn together, grey ones do not turn."""
    parts, left = [], 290
    for r, (name, features) in enumerate(rows.items()):
        y = 12 + r * (_CELL + 14)
        parts.append(_text(left - 10, y + 17, name, "end"))
        for f, (pair, coordinate) in enumerate(features):
            colour = "#ececec" if pair is None else _PAIRS[pair % len(_PAIRS)]
            parts.append(_cell(left + f * (_CELL + 4), y, colour))
            said = "" if pair is None else "abcdefgh"[pair] + ("′" if coordinate else "")
            parts.append(_text(left + f * (_CELL + 4) + 13, y + 17, said, "middle"))
    return _svg(left + max(map(len, rows.values())) * (_CELL + 4) + 16, 16 + len(rows) * (_CELL + 14), parts)


def architecture_svg() -> str:
    """The rooms and what passes between them."""
    parts = [
        *_box(300, 20, 220, 54, "DecoderSpec", "sizes and closed choices", "#fff0b3"),
        *_box(20, 120, 200, 54, "config.json", "hub_json: both ways", "#d6f0d0"),
        *_box(310, 120, 200, 54, "the one decoder", "modeling, attention, rotary", "#cfe3ff"),
        *_box(600, 120, 200, 54, "format tables", "Rule(native, foreign, layout)", "#ffd9c2"),
        *_box(600, 220, 200, 54, "plan", "named steps, no file opened", "#ffd9c2"),
        *_box(20, 320, 240, 54, "on the fly", "from_pretrained of any format", "#d9d3f5"),
        *_box(290, 320, 240, 54, "convert, merge, GGUF", "streams bytes, resumes, verifies", "#d9d3f5"),
        *_box(560, 320, 240, 54, "verify, inspect, adapters", "hashes, shapes, LoRA", "#d9d3f5"),
        *_box(310, 220, 200, 54, "state_dict()", "native names", "#cfe3ff"),
        *(_arrow(*ends) for ends in ((340, 74, 120, 120), (410, 74, 410, 120), (480, 74, 700, 120))),
        *(_arrow(*ends) for ends in ((410, 174, 410, 220), (700, 174, 700, 220), (600, 247, 510, 247))),
        *(_arrow(*ends) for ends in ((640, 274, 160, 320), (670, 274, 410, 320), (710, 274, 680, 320))),
    ]
    return _svg(820, 394, parts)


def figures() -> dict[str, str]:
    """Every picture by its file's name."""
    spec = {name: PUBLISHED[name].spec for name in PUBLISHED}
    head = {"num_attention_heads": 2, "hidden_size": 16, "num_key_value_heads": 1, "head_dim": 8}
    small = {name: each.replace(**head) for name, each in spec.items()}
    blanks = ["a", "[MASK]", "b", "c", "[sMASK]", "sop", "x", "y", "sop", "z"]
    sliding = spec["qwen2.5-7b"].replace(
        num_hidden_layers=2, layer_types=("full_attention", "sliding_attention"), sliding_window=3
    )
    grids = {
        "mask-causal": grid(spec["glm-4-9b"], list("abcdef")),
        "mask-blanks-2d": grid(spec["chatglm-6b"], blanks),
        "mask-gmask-2d": grid(spec["glm-10b"], ["a", "b", "c", "[gMASK]", "sop", "x", "y", "z"]),
        "mask-gmask-1d": grid(spec["glm-130b"], ["a", "b", "c", "[gMASK]", "sop", "x", "y", "z"]),
        "mask-blanks-1d": grid(spec["glm-130b"], blanks),
        "mask-packed": grid(
            spec["chatglm-6b"], ["a", "[MASK]", "sop", "x", "b", "c", "[gMASK]", "sop", "y"], [0] * 4 + [1] * 5
        ),
        "mask-sliding": grid(sliding, list("abcdef")),
    }
    heads = {
        "ChatGLM2/3, GLM-4 (0.5, interleaved)": pairs(small["glm-4-9b"]),
        "GLM-Edge (1.0, interleaved)": pairs(small["glm-edge-1.5b"]),
        "LLaMA 3, Qwen2.5, GLM-130B (halves)": pairs(small["llama-3-8b"]),
        "ChatGLM-6B (rotary_2d)": pairs(small["chatglm-6b"].replace(num_key_value_heads=2)),
    }
    drawn = {f"{name}.svg": mask_svg(each) for name, each in grids.items()}
    return {**drawn, "rotary-pairs.svg": pairs_svg(heads), "architecture.svg": architecture_svg()}


def _svg(width: int, height: int, parts: Sequence[str]) -> str:
    style = "text { font: 13px sans-serif; fill: #222; } .small { font-size: 11px; fill: #444; }"
    body = "\n".join(parts)
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" viewBox="0 0 {width} {height}">\n'
        f'<style>{style}</style>\n<rect width="{width}" height="{height}" fill="#ffffff"/>\n{body}\n</svg>\n'
    )


def _cell(x: float, y: float, colour: str) -> str:
    return f'<rect x="{x}" y="{y}" width="{_CELL}" height="{_CELL}" fill="{colour}" stroke="#bbbbbb"/>'


def _text(x: float, y: float, said: str, anchor: str) -> str:
    return f'<text x="{x}" y="{y}" text-anchor="{anchor}">{escape(said)}</text>'


def _box(x: int, y: int, width: int, height: int, title: str, said: str, colour: str) -> list[str]:
    middle = x + width // 2
    return [
        f'<rect x="{x}" y="{y}" width="{width}" height="{height}" rx="6" fill="{colour}" stroke="#888888"/>',
        _text(middle, y + 22, title, "middle"),
        f'<text class="small" x="{middle}" y="{y + 42}" text-anchor="middle">{escape(said)}</text>',
    ]


def _arrow(x1: int, y1: int, x2: int, y2: int) -> str:
    return f'<line x1="{x1}" y1="{y1}" x2="{x2}" y2="{y2}" stroke="#888888" stroke-width="1.5"/>'


if __name__ == "__main__":
    FOLDER.mkdir(parents=True, exist_ok=True)
    for name, content in figures().items():
        (FOLDER / name).write_text(content, encoding="utf8")
