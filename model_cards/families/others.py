"""The two families that the same decoder reads besides GLM: LLaMA 3 and Qwen2.5."""

from __future__ import annotations

from families.family import Checkpoint, Family

LLAMA_3 = Family(
    name="llama-3",
    title="LLaMA 3, 3.1 and 3.2 (text)",
    intro="LLaMA's text checkpoints as decoders of this package: the same specs, attention and conversion.",
    checkpoints=(
        Checkpoint("meta-llama/Meta-Llama-3-8B-Instruct", "llama-3-8b", "llama3"),
        Checkpoint("meta-llama/Llama-3.1-8B-Instruct", "llama-3.1-8b", "llama3.1"),
        Checkpoint("meta-llama/Llama-3.2-1B-Instruct", "llama-3.2-1b", "llama3.2"),
    ),
    license="llama3",
    language=("en",),
    tags=("llama",),
    generations=("llama-3",),
    terms=(
        "Each release is under the community licence of its own number (the table names it); the field above is "
        "that of 3.0. The licences ask for their notice beside the weights. See the original repositories."
    ),
    limits=(
        "Meta's own files (`original/`, `consolidated.*.pth`) pair rotary features differently; they are converted "
        "by the layout `meta`, in both directions.",
        "The vision models of 3.2 are not read.",
    ),
    papers=("2407.21783",),
)

QWEN2_5 = Family(
    name="qwen2.5",
    title="Qwen2.5",
    intro="Qwen2.5's text checkpoints as decoders of this package: the same specs, attention and conversion.",
    checkpoints=(
        Checkpoint("Qwen/Qwen2.5-7B-Instruct", "qwen2.5-7b", "apache-2.0"),
        Checkpoint("Qwen/Qwen2.5-0.5B-Instruct", "qwen2.5-0.5b", "apache-2.0"),
    ),
    license="apache-2.0",
    tags=("qwen2",),
    generations=("qwen2.5",),
    prompt="A default system message stands first unless you give one.",
    terms=(
        "The two sizes above are Apache-2.0; other sizes of Qwen2.5 have licences of their own. See the original "
        "repositories."
    ),
    limits=(
        "q, k and v have a bias, the output has none; sizes up to 3B tie embedding and head.",
        "Texts longer than config.json's positions need yarn scaling, which it does not switch on.",
    ),
    papers=("2412.15115",),
)
