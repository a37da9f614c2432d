"""From files of text or chats to rows that Trainer takes: clean, without near-duplicates, split, packed or bucketed.

    python examples/prepare_data.py corpus.jsonl prepared --tokenizer FOLDER --length 1024
    python examples/prepare_data.py chats.jsonl prepared --tokenizer FOLDER --length 1024 --rows separate
    python examples/prepare_data.py chats.jsonl clean.jsonl           # no tokenizer: cleaned rows, as SFTTrainer takes

Input: .jsonl files with "text" or "messages" in each line, or .txt files, one document each. Output: a datasets folder
(``datasets.load_from_disk``), or .jsonl. It needs datasets and datasketch: pip install 'glmlike[data]'.

* Cleaning: Unicode NFC (never NFKC, which rewrites Chinese punctuation), no control or invisible characters, and
  documents that are too short, mostly symbols or wrongly decoded are left out.
* Near-duplicates: MinHash over shingles of characters, which need no words (Broder 1997); the first one stays.
* A long document becomes pieces that overlap, so that each piece begins with context; what was scored in one piece is
  not scored again in the next. Chats cannot be cut so: longer ones are left out and counted.
* Packed rows have ``seq_idx``, by which glmlike keeps samples apart; the first token of a sample is not scored.
  Separate rows have their ``length``: pass train_sampling_strategy="group_by_length" to TrainingArguments.
"""

from __future__ import annotations

import argparse
import json
import re
import unicodedata
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from datasets import Dataset, concatenate_datasets, load_dataset
from datasketch import MinHash, MinHashLSH

IGNORED = -100
_KEPT = "\n\t\u200c\u200d"  # control characters with a meaning: line, tab, and the joiners of Persian and emoji
_DROPPED_KINDS = ("Cc", "Cf", "Cs", "Co", "Cn")  # control, format, surrogate, private, unassigned


def clean(text: str) -> str:
    """``text`` with composed characters, one kind of line end, and nothing invisible."""
    text = unicodedata.normalize("NFC", text.replace("\r\n", "\n").replace("\r", "\n"))
    kept = (char for char in text if char in _KEPT or unicodedata.category(char) not in _DROPPED_KINDS)
    lines = "".join(kept).replace("\u2028", "\n").replace("\u2029", "\n\n")
    return re.sub(r"\n{3,}", "\n\n", re.sub(r"[ \t\u00a0]+$", "", lines, flags=re.M)).strip()


def is_worth_keeping(text: str, shortest: int = 20, symbols: float = 0.4) -> bool:
    """Whether ``text`` has ``shortest`` characters, at most that share of symbols, and no sign of a wrong decoding."""
    visible = [char for char in text if not char.isspace()]
    if len(visible) < shortest or text.count("\ufffd") > len(visible) / 100:
        return False
    return sum(not char.isalnum() for char in visible) <= symbols * len(visible)


def signature(text: str, permutations: int = 128, width: int = 5) -> MinHash:
    """The MinHash of the shingles of ``width`` characters, letter case and spacing aside."""
    plain = "".join(char for char in text.casefold() if char.isalnum())
    shingles = {plain[start : start + width] for start in range(max(1, len(plain) - width + 1))}
    hashed = MinHash(num_perm=permutations, seed=1)
    hashed.update_batch(sorted(shingle.encode("utf8") for shingle in shingles))
    return hashed


def first_of_each_kind(texts: Iterable[str], threshold: float) -> list[int]:
    """The numbers of the texts that resemble no earlier kept one by ``threshold`` of their shingles (estimated)."""
    index, signatures = MinHashLSH(threshold=threshold, num_perm=128), {}
    for number, text in enumerate(texts):
        found = signature(text)
        if all(found.jaccard(signatures[other]) < threshold for other in index.query(found)):
            index.insert(number, found)
            signatures[number] = found
    return list(signatures)


def read(paths: Sequence[Path]) -> Dataset:
    """One dataset with a column ``text``, or one with ``messages``."""
    parts = [
        load_dataset("text", data_files=str(path), split="train", sample_by="document")
        if path.suffix == ".txt"
        else load_dataset("json", data_files=str(path), split="train")
        for path in paths
    ]
    kinds = [next((name for name in ("messages", "text") if name in part.column_names), None) for part in parts]
    if len(set(kinds)) != 1 or kinds[0] is None:
        raise SystemExit(f"{dict(zip(map(str, paths), kinds, strict=True))}: expected 'text' in all, or 'messages'.")
    return concatenate_datasets([part.select_columns(kinds[0]) for part in parts])


def text_of(row: dict[str, Any]) -> str:
    """What a row says, whoever says it."""
    return row["text"] if "text" in row else "\n".join(message["content"] or "" for message in row["messages"])


def cleaned(row: dict[str, Any]) -> dict[str, Any]:
    """``row`` with its text, or the content of each message, cleaned."""
    if "text" in row:
        return {"text": clean(row["text"])}
    return {"messages": [{**message, "content": clean(message["content"] or "")} for message in row["messages"]]}


def pieces(texts: list[str], tokenizer: Any, length: int, overlap: int) -> dict[str, list[Any]]:
    """Token ids of each text, in pieces of at most ``length`` of which neighbours share ``overlap``, and labels.

    The end-of-text token follows the last piece. Labels leave out special tokens at the beginning of a piece and what
    the piece before scored already, so that every token of a text is scored once.
    """
    end = tokenizer.eos_token_id
    encoded = tokenizer(
        texts,
        truncation=True,
        max_length=length - 1,
        stride=overlap,
        return_overflowing_tokens=True,
        return_special_tokens_mask=True,
    )
    sources = encoded["overflow_to_sample_mapping"]
    rows: dict[str, list[Any]] = {"input_ids": [], "labels": []}
    for number, (ids, special) in enumerate(zip(encoded["input_ids"], encoded["special_tokens_mask"], strict=True)):
        repeated = overlap if number and sources[number - 1] == sources[number] else 0
        begin = next((place for place, mark in enumerate(special) if not mark), len(special)) + repeated
        is_last = number + 1 == len(sources) or sources[number + 1] != sources[number]
        ids = [*ids, end] if is_last and ids[-1:] != [end] else list(ids)
        rows["input_ids"].append(ids)
        rows["labels"].append([IGNORED] * begin + ids[begin:])
    return rows


def chats(talks: list[Any], tokenizer: Any) -> dict[str, list[Any]]:
    """Token ids of each chat by the tokenizer's template; labels on what the assistant says."""
    rows: dict[str, list[Any]] = {"input_ids": [], "labels": []}
    for talk in talks:
        said = [{key: value for key, value in message.items() if value is not None} for message in talk]
        made = tokenizer.apply_chat_template(said, return_dict=True, return_assistant_tokens_mask=True)
        if not any(made["assistant_masks"]):
            raise SystemExit("a chat without a reply, or a template that marks none ({% generation %}): no label.")
        ids, marks = made["input_ids"], made["assistant_masks"]
        rows["input_ids"].append(ids)
        rows["labels"].append([token if mark else IGNORED for token, mark in zip(ids, marks, strict=True)])
    return rows


def pack(batch: dict[str, list[Any]], length: int, padding: int) -> dict[str, list[Any]]:
    """Samples, longest first, each into the first row of ``length`` with room; padding is a sample of its own."""
    rows: list[list[int]] = []
    room: list[int] = []
    sizes = [len(ids) for ids in batch["input_ids"]]
    for number in sorted(range(len(sizes)), key=lambda sample: -sizes[sample]):
        place = next((row for row, free in enumerate(room) if free >= sizes[number]), len(rows))
        if place == len(rows):
            rows.append([])
            room.append(length)
        rows[place].append(number)
        room[place] -= sizes[number]
    packed: dict[str, list[Any]] = {"input_ids": [], "labels": [], "seq_idx": []}
    for samples, free in zip(rows, room, strict=True):
        ids = [token for number in samples for token in batch["input_ids"][number]]
        labels = [label for number in samples for label in (IGNORED, *batch["labels"][number][1:])]
        places = [place for place, number in enumerate(samples) for _ in range(sizes[number])]
        packed["input_ids"].append(ids + [padding] * free)
        packed["labels"].append(labels + [IGNORED] * free)
        packed["seq_idx"].append(places + [len(samples)] * free)
    return packed


def tokenize(dataset: Dataset, tokenizer: Any, length: int, overlap: int) -> Dataset:
    """Rows of ``input_ids`` and ``labels`` of at most ``length`` tokens."""
    names = dataset.column_names
    if "messages" in names:
        made = dataset.map(lambda batch: chats(batch["messages"], tokenizer), batched=True, remove_columns=names)
        return made.filter(lambda row: len(row["input_ids"]) <= length)
    arguments = {"tokenizer": tokenizer, "length": length, "overlap": overlap}
    return dataset.map(lambda batch: pieces(batch["text"], **arguments), batched=True, remove_columns=names)


def prepare(paths: Sequence[Path], options: argparse.Namespace) -> tuple[Dataset, dict[str, int]]:
    """The dataset, and how many rows each step left."""
    dataset = read(paths)
    counts = {"read": len(dataset)}
    dataset = dataset.map(cleaned).filter(lambda row: is_worth_keeping(text_of(row), options.shortest, options.symbols))
    counts["clean"] = len(dataset)
    dataset = dataset.select(first_of_each_kind(map(text_of, dataset), options.threshold))
    counts["unlike"] = len(dataset)
    if options.tokenizer is None:
        return dataset, counts
    from transformers import AutoTokenizer

    import glmlike  # noqa: F401  (registers the tokenizers)

    tokenizer = AutoTokenizer.from_pretrained(options.tokenizer)
    dataset = tokenize(dataset, tokenizer, options.length, options.overlap)
    counts |= {"samples": len(dataset), "tokens": sum(map(len, dataset["input_ids"]))}
    if options.rows == "separate":
        return dataset.map(lambda row: {"length": len(row["input_ids"])}), counts
    padding = tokenizer.eos_token_id if tokenizer.pad_token_id is None else tokenizer.pad_token_id
    arguments = {"length": options.length, "padding": padding}
    dataset = dataset.map(pack, batched=True, fn_kwargs=arguments, remove_columns=dataset.column_names)
    return dataset, {**counts, "rows": len(dataset)}


def main(arguments: Sequence[str] | None = None) -> dict[str, int]:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("inputs", type=Path, nargs="+", help=".jsonl or .txt files")
    parser.add_argument("output", type=Path, help="a folder to make, or a .jsonl file")
    parser.add_argument("--tokenizer", help="a folder or Hub id; without one, cleaned rows are written")
    parser.add_argument("--length", type=int, default=1024, help="tokens of a row")
    parser.add_argument("--overlap", type=int, default=64, help="tokens that neighbouring pieces of a document share")
    parser.add_argument("--rows", choices=("packed", "separate"), default="packed")
    parser.add_argument("--threshold", type=float, default=0.8, help="what near-duplicates share of their shingles")
    parser.add_argument("--shortest", type=int, default=20, help="characters that a document needs")
    parser.add_argument("--symbols", type=float, default=0.4, help="the largest share of symbols in a document")
    options = parser.parse_args(arguments)
    if options.output.exists():
        raise SystemExit(f"{options.output} exists: pass a name that does not.")
    dataset, counts = prepare(options.inputs, options)
    if options.output.suffix == ".jsonl":
        dataset.to_json(options.output, force_ascii=False)
    else:
        dataset.save_to_disk(options.output)
    print(json.dumps(counts))
    return counts


if __name__ == "__main__":
    main()
