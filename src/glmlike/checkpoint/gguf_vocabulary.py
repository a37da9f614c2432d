"""A folder's tokenizer as GGUF metadata, and back.

llama.cpp knows two tokenizers that our architectures have: ``gpt2``, byte-level BPE whose way of cutting text into
words has a name (``tokenizer.ggml.pre``), and ``llama``, SentencePiece's BPE (src/llama-vocab.cpp). What it does
otherwise than a folder's tokenizer is said in notes. No code of a checkpoint is run.
"""

from __future__ import annotations

import base64
import binascii
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from glmlike.checkpoint.formats.llama_cpp import Architecture
from glmlike.checkpoint.gguf_words import SPACE, pre_name, pre_tokenizer_of
from glmlike.checkpoint.shards import read_json
from glmlike.errors import CheckpointError
from glmlike.hub_json import Generation
from glmlike.spec import DecoderSpec

NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = range(1, 7)
"""llama.cpp's types of tokens (llama.h, ``llama_token_type``)."""

RENAMED = "glmlike.renamed_tokens"
"""Our own key: JSON of the texts, by id, that tokens have in their tokenizer and not in the file."""

_KEY = "tokenizer.ggml."
_IDS = {"bos": "bos", "eos": "eos", "eot": "eot", "eom": "eom", "unk": "unknown", "pad": "padding"}

# What tokenization_chatglm.py appends to the pieces of tokenizer.model, in this order; the roles came with ChatGLM3.
_CHATGLM2_TOKENS = ("[MASK]", "[gMASK]", "[sMASK]", "sop", "eop")
_CHATGLM3_TOKENS = ("<|system|>", "<|user|>", "<|assistant|>", "<|observation|>")


# ChatGLM2's and ChatGLM3's control tokens that are letters of words: llama.cpp would cut "people" at "eop", and its BPE
# would put "s" and "op" of "philosophy" together. The file names them as GLM-4 does, in its chat template as well.
_SPELLED = {"sop": "<sop>", "eop": "<eop>"}
_BEFORE = "[gMASK]"  # what stands before "sop" wherever a template writes it


@dataclass(frozen=True)
class Vocabulary:
    """A tokenizer as llama.cpp has it; ``model`` is ``gpt2``, ``llama``, or ``none`` for a file of token ids only."""

    model: str
    pre: str = ""
    tokens: tuple[str, ...] = ()
    types: tuple[int, ...] = ()
    scores: tuple[float, ...] = ()
    merges: tuple[str, ...] = ()
    ids: Mapping[str, int] = field(default_factory=dict)
    add_bos: bool = False
    space_prefix: bool = False
    template: str | None = None
    renamed: Mapping[int, str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    def fields(self) -> dict[str, Any]:
        """The metadata, by key."""
        found: dict[str, Any] = {_KEY + "model": self.model}
        found |= {f"{_KEY}{_IDS[name]}_token_id": number for name, number in self.ids.items()}
        if self.model == "none":
            return found
        found |= {_KEY + "pre": self.pre, _KEY + "tokens": list(self.tokens), _KEY + "token_type": list(self.types)}
        if self.scores:
            found[_KEY + "scores"] = list(self.scores)
        if self.model == "gpt2":
            # llama.cpp refuses a file without merges, and gguf leaves an empty list out; no text has this pair.
            found[_KEY + "merges"] = list(self.merges) or ["\0 \0"]
        found |= {_KEY + "add_bos_token": self.add_bos, _KEY + "add_eos_token": False}
        found[_KEY + "add_space_prefix"] = self.space_prefix
        if self.renamed:
            found[RENAMED] = json.dumps(dict(self.renamed))
        return found | ({"tokenizer.chat_template": self.template} if self.template else {})


def no_tokenizer(folder: Path, config: Mapping[str, Any]) -> Vocabulary:
    """No tokenizer at all, but the special ids that the folder's configs say."""
    ids, _ = _special_ids(folder, config, {}, {})
    return Vocabulary("none", ids=ids, notes=("no tokenizer: the file takes token ids only",))


@dataclass
class _Added:
    """A token that is cut out of text before anything else is done."""

    text: str
    special: bool


def read(
    folder: Path,
    config: Mapping[str, Any],
    spec: DecoderSpec,
    architecture: Architecture,
    generation: Generation | None = None,
    pre: str | None = None,
) -> Vocabulary:
    """The tokenizer of a checkpoint's folder; a model of ``none`` where it has no file of one.

    It is read from tokenizer.model (SentencePiece or tiktoken ranks), tokenizer.json, or vocab.json and merges.txt.

    Raises:
        CheckpointError: a tokenizer that llama.cpp has not, or more tokens than rows.
    """
    settings = read_json(folder / "tokenizer_config.json") if (folder / "tokenizer_config.json").exists() else {}
    fast = read_json(folder / "tokenizer.json") if (folder / "tokenizer.json").exists() else {}
    model = folder / "tokenizer.model"
    if model.exists() and not _is_ranks(model):
        appended = _added(fast, settings)
        parts = _read_sentencepiece(model, appended, architecture, _is_chatglm2(settings, config, generation))
        parts["add_bos"] = architecture == "llama" and settings.get("add_bos_token") is not False
    elif fast:
        parts = _read_fast(fast, folder / "tokenizer.json", architecture, pre)
    elif model.exists():
        parts = _read_ranks(model, _added(fast, settings), architecture, pre)
    elif (folder / "vocab.json").exists():
        parts = _read_pairs(folder, _added(fast, settings), architecture, pre)
    else:
        return no_tokenizer(folder, config)
    tokens, types, scores = parts.pop("tokens"), parts.pop("types"), parts.pop("scores", {})
    taken = set(tokens.values())
    controls = {row: tokens[row] for row, kind in types.items() if kind == CONTROL}
    renamed = {row: text for row, text in controls.items() if _SPELLED.get(text, text) not in taken}
    if tokens and max(tokens) >= spec.vocab_size:
        raise CheckpointError(
            f"{folder}: the tokenizer has id {max(tokens)}, but the embedding has {spec.vocab_size} rows. Resize the "
            "embedding or restore the original tokenizer."
        )
    if not tokens:
        raise CheckpointError(f"{folder}: the tokenizer has no tokens. Download its files again.")
    rows = range(spec.vocab_size)
    ids, notes = _special_ids(folder, config, settings, {text: number for number, text in tokens.items()})
    if (first := parts.pop("first", None)) is not None:
        ids["bos"] = next(number for number, text in tokens.items() if text == first)
    template = _template(folder, settings)
    if renamed:
        tokens |= {row: _SPELLED[text] for row, text in renamed.items()}
        template = _respelled(template, _SPELLED)
        notes.append("sop and eop are <sop> and <eop> in the file, since llama.cpp would cut words at the former")
    return Vocabulary(
        tokens=tuple(tokens.get(row, f"[PAD{row}]") for row in rows),
        types=tuple(types.get(row, UNUSED) for row in rows),
        scores=tuple(scores.get(row, -1000.0) for row in rows) if scores else (),
        ids=ids,
        template=template,
        renamed=renamed,
        notes=(*parts.pop("notes", ()), *notes),
        **parts,
    )


def _added(fast: Mapping[str, Any], settings: Mapping[str, Any]) -> dict[int, _Added]:
    """The added tokens that tokenizer.json and tokenizer_config.json name, by id."""
    entries = {int(number): entry for number, entry in (settings.get("added_tokens_decoder") or {}).items()}
    entries |= {entry["id"]: entry for entry in fast.get("added_tokens") or ()}
    return {number: _Added(entry["content"], bool(entry.get("special"))) for number, entry in entries.items()}


def _type_of(token: _Added) -> int:
    """As llama.cpp's converter: what looks like a control token is one, whatever its entry says."""
    looks = token.text.startswith("<|") and token.text.endswith("|>")
    return CONTROL if token.special or looks else USER_DEFINED


# --- SentencePiece ---------------------------------------------------------------------------------------------------


def _read_sentencepiece(
    model: Path, added: Mapping[int, _Added], architecture: Architecture, chatglm2: bool
) -> dict[str, Any]:
    try:
        from sentencepiece import SentencePieceProcessor
    except ImportError:
        raise CheckpointError(f"{model}: reading it needs sentencepiece: pip install 'glmlike[gguf]'.") from None
    processor = SentencePieceProcessor()
    try:
        processor.LoadFromSerializedProto(model.read_bytes())
    except RuntimeError:
        raise CheckpointError(f"{model}: neither SentencePiece nor tiktoken ranks. Download it again.") from None
    tokens, types, scores = {}, {}, {}
    for number in range(processor.vocab_size()):
        tokens[number], scores[number] = processor.IdToPiece(number), processor.GetScore(number)
        types[number] = _piece_type(processor, number)
    ranked = [scores[number] for number, kind in types.items() if kind == NORMAL]
    if any(score != int(score) for score in ranked):
        raise CheckpointError(
            f"{model}: a unigram vocabulary; llama.cpp's 'llama' tokenizer is BPE and would cut text otherwise. Pass "
            "with_tokenizer=False for a file that takes token ids."
        )
    appended = dict(added)
    if not appended and architecture == "chatglm":
        appended = _chatglm_tokens(len(tokens), chatglm2)
    for number, token in appended.items():
        tokens[number], types[number], scores[number] = token.text, _type_of(token), 0.0
    prefix = bool(processor.EncodeAsPieces("a")) and processor.EncodeAsPieces("a")[0].startswith(SPACE)
    return {
        "model": "llama",
        "pre": "default",
        "tokens": tokens,
        "types": types,
        "scores": scores,
        "space_prefix": prefix,
    }


def _piece_type(processor: Any, number: int) -> int:
    if processor.IsUnknown(number):
        return UNKNOWN
    if processor.IsControl(number):
        return CONTROL
    if processor.IsUnused(number):
        return UNUSED
    return BYTE if processor.IsByte(number) else NORMAL


def _chatglm_tokens(start: int, chatglm2: bool) -> dict[int, _Added]:
    texts = _CHATGLM2_TOKENS if chatglm2 else (*_CHATGLM2_TOKENS, *_CHATGLM3_TOKENS)
    return {start + place: _Added(text, special=True) for place, text in enumerate(texts)}


def _is_chatglm2(settings: Mapping[str, Any], config: Mapping[str, Any], generation: Generation | None) -> bool:
    if generation is not None:
        return generation == "chatglm2"
    recorded = f"{settings.get('name_or_path', '')} {config.get('_name_or_path', '')} {config.get('generation', '')}"
    return any(name in recorded.lower() for name in ("chatglm2", "codegeex2"))


# --- byte-level BPE --------------------------------------------------------------------------------------------------


def _byte_level(
    vocabulary: Mapping[str, int],
    merges: list[str],
    added: Mapping[int, _Added],
    pre: str,
    **more: Any,
) -> dict[str, Any]:
    tokens = {number: text for text, number in vocabulary.items()}
    types = dict.fromkeys(tokens, NORMAL)
    for number, token in added.items():
        tokens[number], types[number] = token.text, _type_of(token)
    if len(set(tokens.values())) != len(tokens):
        raise CheckpointError("the tokenizer has one text under two ids, which llama.cpp refuses. Remove one of them.")
    return {"model": "gpt2", "pre": pre, "tokens": tokens, "types": types, "merges": tuple(merges), **more}


def _read_fast(fast: Mapping[str, Any], path: Path, architecture: Architecture, pre: str | None) -> dict[str, Any]:
    model = fast.get("model") or {}
    if model.get("type") != "BPE" or not isinstance(model.get("vocab"), Mapping):
        raise CheckpointError(
            f"{path}: a {model.get('type')!r} tokenizer; llama.cpp has BPE for these architectures. Pass "
            "with_tokenizer=False for a file that takes token ids."
        )
    merges = [pair if isinstance(pair, str) else " ".join(pair) for pair in model.get("merges") or ()]
    added = _added(fast, {})
    if model.get("byte_fallback"):
        return _pieces_of_fast(fast, model["vocab"], merges, added)
    name = pre or pre_name(fast.get("pre_tokenizer"), bool(model.get("ignore_merges")), architecture)
    if name is None:
        raise CheckpointError(
            f"{path}: llama.cpp has no name that this package knows for its pre_tokenizer. If llama.cpp has one (its "
            "docs list tokenizer.ggml.pre), pass it as pre_tokenizer, or pass with_tokenizer=False."
        )
    notes = [f"llama.cpp leaves the normalizer {fast['normalizer'].get('type')} out"] if fast.get("normalizer") else []
    leading = _leading(fast.get("post_processor"))
    if len(leading) > 1:
        notes.append(f"llama.cpp puts {' '.join(leading)} in front only where the chat template says it")
    first = {"first": leading[0]} if len(leading) == 1 else {}
    return _byte_level(model["vocab"], merges, added, name, add_bos=bool(first), notes=tuple(notes), **first)


def _leading(processor: Mapping[str, Any] | None) -> list[str]:
    """The special tokens that a post-processor puts in front of a text."""
    if not processor:
        return []
    if processor.get("type") == "Sequence":
        return [token for part in processor.get("processors") or () for token in _leading(part)]
    found = []
    for item in processor.get("single") or ():
        if "SpecialToken" not in item:
            break
        found.append(item["SpecialToken"]["id"])
    return found


def _pieces_of_fast(
    fast: Mapping[str, Any], vocabulary: Mapping[str, int], merges: list[str], added: Mapping[int, _Added]
) -> dict[str, Any]:
    """SentencePiece's BPE from a tokenizer.json: a piece scores by the first merge that makes it."""
    tokens = {number: text for text, number in vocabulary.items()}
    places: dict[str, int] = {}
    for place, pair in enumerate(merges):
        places.setdefault(pair.replace(" ", ""), place)
    types = {number: BYTE if _is_byte(text) else NORMAL for number, text in tokens.items()}
    scores = {number: -float(places.get(text, len(merges))) for number, text in tokens.items()}
    unknown = (fast.get("model") or {}).get("unk_token")
    for number, token in added.items():
        tokens[number], types[number], scores[number] = token.text, _type_of(token), 0.0
        if token.text == unknown:
            types[number] = UNKNOWN
    prefix = SPACE in json.dumps(fast.get("normalizer"), ensure_ascii=False) and "Prepend" in json.dumps(
        fast.get("normalizer")
    )
    metaspace = fast.get("pre_tokenizer") or {}
    prefix = prefix or (metaspace.get("type") == "Metaspace" and metaspace.get("prepend_scheme", "always") != "never")
    leading = _leading(fast.get("post_processor"))
    return {
        "model": "llama",
        "pre": "default",
        "tokens": tokens,
        "types": types,
        "scores": scores,
        "space_prefix": prefix,
        "add_bos": len(leading) == 1,
        **({"first": leading[0]} if len(leading) == 1 else {}),
    }


def _is_byte(text: str) -> bool:
    return len(text) == 6 and text.startswith("<0x") and text.endswith(">")


def _is_ranks(path: Path) -> bool:
    """Whether a tokenizer.model is tiktoken's: lines of base64 and a rank."""
    with path.open("rb") as file:
        first = file.readline(1024).split()
    try:
        return len(first) == 2 and first[1].isdigit() and bool(base64.b64decode(first[0], validate=True))
    except binascii.Error:
        return False


def _read_ranks(path: Path, added: Mapping[int, _Added], architecture: Architecture, pre: str | None) -> dict[str, Any]:
    ranks: dict[bytes, int] = {}
    for line in path.read_bytes().splitlines():
        text, _, rank = line.partition(b" ")
        try:
            ranks[base64.b64decode(text, validate=True)] = int(rank)
        except (binascii.Error, ValueError):
            raise CheckpointError(f"{path}: not lines of base64 and a rank. Download it again.") from None
    letters = _byte_letters()
    spell = {token: "".join(letters[byte] for byte in token) for token in ranks}
    merges = [f"{spell[left]} {spell[right]}" for left, right in _merges(ranks)]
    # tiktoken takes a word that is a token as it is: what 'glm4' and 'llama-bpe' do before they merge.
    name = pre or ("llama-bpe" if architecture in ("llama", "qwen2") else "glm4")
    notes = () if added else ("no file names the special tokens of tokenizer.model: their rows are [PAD…]",)
    vocabulary = {spell[token]: rank for token, rank in ranks.items()}
    return _byte_level(vocabulary, merges, added, name, notes=notes, add_bos=architecture == "llama")


def _merges(ranks: Mapping[bytes, int]) -> Iterator[tuple[bytes, bytes]]:
    """The pairs that byte-pair ranks merge, first to last: each token's ways to be two tokens, best parts first."""
    for token, _ in sorted(ranks.items(), key=lambda item: item[1]):
        ways = [(token[:at], token[at:]) for at in range(1, len(token))]
        known = [(left, right) for left, right in ways if left in ranks and right in ranks]
        yield from sorted(known, key=lambda pair: (ranks[pair[0]], ranks[pair[1]]))


def _byte_letters() -> dict[int, str]:
    """GPT-2's printable letter for each byte: the byte's own where it is one, else the next from 256 on."""
    own = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    others = [byte for byte in range(256) if byte not in own]
    return {byte: chr(byte) for byte in own} | {byte: chr(256 + place) for place, byte in enumerate(others)}


def _read_pairs(
    folder: Path, added: Mapping[int, _Added], architecture: Architecture, pre: str | None
) -> dict[str, Any]:
    path = folder / "merges.txt"
    if not path.exists():
        raise CheckpointError(f"{path}: missing, but vocab.json is there. Download this file.")
    lines = path.read_text(encoding="utf8").split("\n")
    merges = [line for line in lines if line and not line.startswith("#version")]
    name = pre or ("qwen2" if architecture == "qwen2" else None)
    if name is None:
        raise CheckpointError(
            f"{folder}: vocab.json and merges.txt do not say how text is cut into words. Add tokenizer.json, or pass "
            "llama.cpp's name of it as pre_tokenizer."
        )
    notes = ("llama.cpp leaves the normalizer NFC out",) if name == "qwen2" else ()
    return _byte_level(read_json(folder / "vocab.json"), merges, added, name, notes=notes)


# --- special ids and the template ------------------------------------------------------------------------------------


def _special_ids(
    folder: Path, config: Mapping[str, Any], settings: Mapping[str, Any], ids: Mapping[str, int]
) -> tuple[dict[str, int], list[str]]:
    """Ids by llama.cpp's names. It stops at eos, eot and eom: the first three ends that the folder names."""
    path = folder / "generation_config.json"
    generation = read_json(path) if path.exists() else {}
    found: dict[str, int] = {}
    for name in ("bos", "pad", "unk"):
        said = config.get(f"{name}_token_id") if name != "unk" else None
        text = settings.get(f"{name}_token")
        text = text.get("content") if isinstance(text, Mapping) else text
        number = said if isinstance(said, int) else ids.get(text) if isinstance(text, str) else None
        if number is not None:
            found[name] = number
    ends = generation.get("eos_token_id")
    ends = config.get("eos_token_id") if ends is None else ends
    ends = [ends] if isinstance(ends, int) else list(ends or ())
    found |= dict(zip(("eos", "eot", "eom"), ends, strict=False))
    notes = [f"llama.cpp has three ends of generation; left out: {ends[3:]}"] if len(ends) > 3 else []
    return found, notes


def _respelled(template: str | None, names: Mapping[str, str]) -> str | None:
    for before, after in names.items() if template else ():
        template = str(template).replace(_BEFORE + before, _BEFORE + after)
    return template


def _template(folder: Path, settings: Mapping[str, Any]) -> str | None:
    path = folder / "chat_template.jinja"
    if path.exists():
        return path.read_text(encoding="utf8")
    said = settings.get("chat_template")
    if isinstance(said, list):
        said = next((entry.get("template") for entry in said if entry.get("name") == "default"), None)
    return said if isinstance(said, str) else None


# --- back ------------------------------------------------------------------------------------------------------------


def token_ids(fields: Mapping[str, Any]) -> dict[str, Any]:
    """The ids that a config.json holds, from GGUF metadata; several ends of generation are a list."""
    found = {name: fields.get(f"{_KEY}{_IDS[name]}_token_id") for name in ("bos", "pad")}
    ends = [fields[key] for name in ("eos", "eot", "eom") if (key := f"{_KEY}{_IDS[name]}_token_id") in fields]
    found["eos"] = ends[0] if len(ends) == 1 else ends or None
    return {f"{name}_token_id": number for name, number in found.items() if number is not None}


def lost(fields: Mapping[str, Any]) -> tuple[str, ...]:
    """What :func:`to_files` cannot rebuild, in words."""
    model, tokens, pre = (fields.get(_KEY + name) for name in ("model", "tokens", "pre"))
    if model in (None, "none", "no_vocab") or not isinstance(tokens, list):
        return ("the file has no tokenizer",)
    scored = isinstance(fields.get(_KEY + "scores"), list)
    known = pre_tokenizer_of(str(pre)) is not None if model == "gpt2" else model == "llama" and scored
    return () if known else (f"tokenizer {model!r} with words {pre!r}: tokenizer.json is not rebuilt",)


def to_files(fields: Mapping[str, Any], where: str) -> dict[str, Any]:
    """The files of a folder's tokenizer, by name, from GGUF metadata, but for what is :func:`lost`.

    Exact as far as the file says it: a control token is special on return, since its entry's flag is not stored.

    Raises:
        CheckpointError: lists of the tokenizer that contradict each other.
    """
    ids = token_ids(fields)
    files: dict[str, Any] = {"generation_config.json": {"_from_model_config": True, **ids}} if ids else {}
    template = fields.get("tokenizer.chat_template")
    renamed = _renamed(fields, where)
    if isinstance(template, str):
        back = {_SPELLED[text]: text for text in renamed.values() if text in _SPELLED}
        files["chat_template.jinja"] = _respelled(template, back)
    if lost(fields):
        return files
    tokens = [renamed.get(row, text) for row, text in enumerate(fields[_KEY + "tokens"])]
    types, scores = fields.get(_KEY + "token_type") or [NORMAL] * len(tokens), fields.get(_KEY + "scores", tokens)
    if not len(tokens) == len(types) == len(scores):
        raise CheckpointError(
            f"{where}: {len(tokens)} tokens, {len(types)} types, {len(scores)} scores: expected as many of each. "
            "Download the file again."
        )
    rows = {row: (text, kind) for row, (text, kind) in enumerate(zip(tokens, types, strict=True)) if kind != UNUSED}
    numbers = {name: fields.get(f"{_KEY}{_IDS[name]}_token_id", -1) for name in ("bos", "eos", "unk", "pad")}
    special = {f"{name}_token": rows[number][0] for name, number in numbers.items() if number in rows}
    files["tokenizer.json"] = (_fast_bytes if fields[_KEY + "model"] == "gpt2" else _fast_pieces)(fields, rows)
    files["tokenizer_config.json"] = {"tokenizer_class": "PreTrainedTokenizerFast", "padding_side": "left", **special}
    return files


def names_of_files(fields: Mapping[str, Any]) -> list[str]:
    """The names of :func:`to_files`."""
    found = [] if lost(fields) else ["tokenizer.json", "tokenizer_config.json"]
    found += ["generation_config.json"] if token_ids(fields) else []
    return found + (["chat_template.jinja"] if isinstance(fields.get("tokenizer.chat_template"), str) else [])


def _renamed(fields: Mapping[str, Any], where: str) -> dict[int, str]:
    try:
        found = json.loads(fields.get(RENAMED, "{}"))
        return {int(row): str(text) for row, text in found.items()}
    except (ValueError, TypeError, AttributeError, RecursionError):
        raise CheckpointError(f"{where}: {RENAMED} is no JSON object of texts by id. Write the file again.") from None


def _added_entries(rows: Mapping[int, tuple[str, int]]) -> list[dict[str, Any]]:
    flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    kinds = {CONTROL: True, UNKNOWN: True, USER_DEFINED: False}
    return [
        {"id": row, "content": text, **flags, "special": kinds[kind]}
        for row, (text, kind) in rows.items()
        if kind in kinds
    ]


def _fast(fields: Mapping[str, Any], rows: Mapping[int, tuple[str, int]], **parts: Any) -> dict[str, Any]:
    model = {
        "type": "BPE",
        "dropout": None,
        "unk_token": None,
        "continuing_subword_prefix": None,
        "end_of_word_suffix": None,
        "fuse_unk": False,
        "byte_fallback": False,
        "ignore_merges": False,
        **parts.pop("model"),
        # An added token stands here too, since tokenizers takes its id from here and else counts on without gaps.
        "vocab": {text: row for row, (text, _) in rows.items()},
    }
    shell = {"version": "1.0", "truncation": None, "padding": None, "added_tokens": _added_entries(rows)}
    return {**shell, "normalizer": None, "post_processor": _bos_first(fields, rows), **parts, "model": model}


def _bos_first(fields: Mapping[str, Any], rows: Mapping[int, tuple[str, int]]) -> dict[str, Any] | None:
    bos = fields.get(_KEY + "bos_token_id", -1)
    # llama.cpp's defaults where the file does not say.
    default = fields.get(_KEY + "model") == "llama" or fields.get(_KEY + "pre") == "llama-bpe"
    if not fields.get(_KEY + "add_bos_token", default) or bos not in rows:
        return None
    text = rows[bos][0]
    first, one, two = ({"SpecialToken": {"id": text, "type_id": 0}}, _sequence("A", 0), _sequence("B", 1))
    special = {text: {"id": text, "ids": [bos], "tokens": [text]}}
    return {"type": "TemplateProcessing", "single": [first, one], "pair": [first, one, two], "special_tokens": special}


def _sequence(name: str, kind: int) -> dict[str, Any]:
    return {"Sequence": {"id": name, "type_id": kind}}


def _fast_bytes(fields: Mapping[str, Any], rows: Mapping[int, tuple[str, int]]) -> dict[str, Any]:
    words = pre_tokenizer_of(str(fields.get(_KEY + "pre")))
    assert words is not None, "lost"
    pre_tokenizer, ignore_merges = words
    merges = [pair for pair in _split_merges(fields.get(_KEY + "merges") or []) if "\0" not in pair]
    decoder = {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True}
    model = {"merges": merges, "ignore_merges": ignore_merges}
    return _fast(fields, rows, pre_tokenizer=pre_tokenizer, decoder=decoder, model=model)


def _split_merges(merges: list[str]) -> list[list[str]]:
    """Pairs; llama.cpp cuts at the first blank that is not the first letter."""
    return [[line[: line.index(" ", 1)], line[line.index(" ", 1) + 1 :]] for line in merges if " " in line[1:]]


def _fast_pieces(fields: Mapping[str, Any], rows: Mapping[int, tuple[str, int]]) -> dict[str, Any]:
    scores = fields[_KEY + "scores"]
    normal = {text: scores[row] for row, (text, kind) in rows.items() if kind == NORMAL}
    pairs = [
        ((text[:at], text[at:]), score)
        for text, score in normal.items()
        for at in range(1, len(text))
        if text[:at] in normal and text[at:] in normal
    ]
    merges = [list(pair) for pair, _ in sorted(pairs, key=lambda item: -item[1])]
    unknown = next((text for text, kind in rows.values() if kind == UNKNOWN), None)
    spaces = {"type": "Replace", "pattern": {"String": " "}, "content": SPACE}
    prefix = fields.get(_KEY + "add_space_prefix", True)
    steps: list[dict[str, Any]] = [{"type": "Prepend", "prepend": SPACE}, spaces] if prefix else [spaces]
    back: list[dict[str, Any]] = [
        {"type": "Replace", "pattern": {"String": SPACE}, "content": " "},
        {"type": "ByteFallback"},
        {"type": "Fuse"},
        *([{"type": "Strip", "content": " ", "start": 1, "stop": 0}] if prefix else []),
    ]
    bytes_known = any(kind == BYTE for _, kind in rows.values())
    return _fast(
        fields,
        rows,
        normalizer={"type": "Sequence", "normalizers": steps},
        pre_tokenizer=None,
        decoder={"type": "Sequence", "decoders": back},
        model={"merges": merges, "unk_token": unknown, "fuse_unk": True, "byte_fallback": bytes_known},
    )
