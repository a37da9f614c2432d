"""What ``import glmlike`` adds: beside transformers alone, and before the Auto classes that everybody uses next."""

from __future__ import annotations

from common import child, interleaved, median, report

CASES = {
    "import transformers": "import transformers",
    "import transformers, glmlike": "import transformers, glmlike",
    "from transformers import AutoModelForCausalLM, LlamaForCausalLM": (
        "from transformers import AutoModelForCausalLM, LlamaForCausalLM"
    ),
    "import glmlike, then the same": "import glmlike\nfrom transformers import AutoModelForCausalLM, LlamaForCausalLM",
}


def main(repeats: int = 7) -> None:
    """Measure and write results/import_time.json."""
    measured = interleaved({name: (lambda code=code: child(code)) for name, code in CASES.items()}, repeats)
    names = list(CASES)
    rows = [
        {
            "import": f"`{name}`" if "then" not in name else name,
            "seconds": median(measured[name], "seconds"),
            "peak RSS, MiB": median(measured[name], "peak_mib"),
            "ratio to the line above": (
                median(measured[name], "seconds") / median(measured[names[index - 1]], "seconds") if index % 2 else "-"
            ),
        }
        for index, name in enumerate(names)
    ]
    report("import_time", rows, f"Median of {repeats} new processes each, interleaved, warm page cache.")


if __name__ == "__main__":
    main()
