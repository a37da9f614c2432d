"""What people without glmlike get of a folder: run as a script, where neither glmlike nor torch can be imported.

Standard input has JSON: ``folder``, ``texts`` and ``chat``. The last line of standard output has the ``class`` that
AutoTokenizer takes, and the ids of the texts with special tokens ``parsed``, of the texts with special tokens
``spelled``, and of the ``chat`` (empty without a template).
"""

from __future__ import annotations

import json
import sys
from typing import Any


def main() -> None:
    """Read the folder, and print."""
    sys.modules["glmlike"] = None  # type: ignore[assignment]
    sys.modules["torch"] = None  # type: ignore[assignment]  # tokenizers do without it, and it takes seconds
    from transformers.models.auto.tokenization_auto import AutoTokenizer

    asked = json.load(sys.stdin)
    tokenizer: Any = AutoTokenizer.from_pretrained(asked["folder"], trust_remote_code=False)
    parsed, spelled = (tokenizer(asked["texts"], split_special_tokens=split)["input_ids"] for split in (False, True))
    chat: list[int] = []
    if tokenizer.chat_template:
        chat = tokenizer.apply_chat_template(asked["chat"], add_generation_prompt=True, return_dict=False)
    found = {"class": type(tokenizer).__name__, "parsed": parsed, "spelled": spelled, "chat": chat}
    sys.stdout.write("\n" + json.dumps(found) + "\n")


if __name__ == "__main__":
    main()
