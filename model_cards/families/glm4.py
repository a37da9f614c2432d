"""GLM-4-9B and what came after it in the same shape: 0414 and Z1, GLM-Edge, CodeGeeX4, LongWriter, LongCite."""

from __future__ import annotations

from families.family import Checkpoint, Family

_STOPS = "Generation stops at three tokens: `<|endoftext|>`, `<|user|>` and, after a tool call, `<|observation|>`."
_SAME_NAME = (
    "Two layouts of the same numbers: `chatglm` (the original repositories) and `glm` (the ones whose names end in "
    "`-hf`). A fine-tune's config.json says which; both load here."
)
_TEXT_ONLY = "GLM-4V checkpoints hold this decoder beside a vision tower; they are refused by name."
_YARN = (
    "Texts longer than config.json's positions need yarn scaling, which it does not switch on: add "
    '`"rope_scaling": {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32768}`.'
)

GLM_4_9B = Family(
    name="glm-4-9b",
    title="GLM-4-9B",
    intro="The open GLM-4: a causal decoder of forty layers with a tiktoken vocabulary (arXiv 2406.12793).",
    checkpoints=(
        Checkpoint("THUDM/glm-4-9b-chat", "glm-4-9b-chat", "glm-4 (LICENSE)"),
        Checkpoint("THUDM/glm-4-9b", "glm-4-9b", "glm-4 (LICENSE)"),
        Checkpoint("THUDM/glm-4-9b-chat-1m", "glm-4-9b-chat-1m", "glm-4 (LICENSE)"),
        Checkpoint("THUDM/glm-4-9b-chat-hf", "glm-4-9b-chat-hf", "glm-4 (LICENSE)"),
    ),
    license="other",
    license_name="glm-4",
    license_link="LICENSE",
    tags=("chatglm",),
    generations=("glm-4",),
    terms=(
        "The weights are under the glm-4-9b licence, the LICENSE of the original repository: free for academic "
        "research; commercial use asks for a registration. Who distributes the weights or what is made from them "
        "includes a copy of it, shows “Built with glm-4”, and begins the name of a model made with them with "
        "“glm-4”."
    ),
    limits=(
        "Base, chat and chat-1m differ in the rotary base, and chat-1m in its key-value heads: weights of one with "
        "the config.json of another load, or nearly, and give nonsense.",
        _STOPS,
        _SAME_NAME,
        "`tokenizer.model` is a tiktoken file, under the name of ChatGLM3's SentencePiece one.",
        _TEXT_ONLY,
    ),
    papers=("2406.12793",),
)

GLM_4_0414 = Family(
    name="glm-4-0414",
    title="GLM-4-0414 and GLM-Z1",
    intro=(
        "The 2025 generation, with a norm before and after each branch (sandwich); the GLM-Z1 models write their "
        "thoughts before the answer."
    ),
    checkpoints=(
        Checkpoint("THUDM/GLM-4-9B-0414", "glm-4-9b-0414", "mit"),
        Checkpoint("THUDM/GLM-Z1-9B-0414", "glm-4-9b-0414", "mit"),
        Checkpoint("THUDM/GLM-4-32B-0414", "glm-z1-32b-0414", "mit"),
        Checkpoint("THUDM/GLM-Z1-32B-0414", "glm-z1-32b-0414", "mit"),
    ),
    license="mit",
    tags=("glm4",),
    generations=("glm-4-0414", "glm-z1"),
    prompt=(
        "System messages come first, wherever they stand; tools are the template's `tools`. GLM-Z1's prompt ends "
        "with `<think>`, and of earlier replies only what follows `</think>` is kept."
    ),
    terms="The weights are MIT, as their authors say in the original repositories.",
    limits=(
        _YARN,
        "`post_attention_layernorm` is the norm before the feed-forward here, as LLaMA calls it; the two new ones "
        "are `post_self_attn_layernorm` and `post_mlp_layernorm`.",
        "9B has a bias on q, k and v; 32B has none. GLM-Z1-Rumination-32B has four times the key-value heads; the "
        "config says so, and it loads.",
        _STOPS,
        "Base models of this generation have no chat template.",
    ),
)

GLM_EDGE = Family(
    name="glm-edge",
    title="GLM-Edge",
    intro="Small GLM-4 decoders for devices: whole heads rotated, no bias, embedding and head tied.",
    checkpoints=(Checkpoint("THUDM/glm-edge-1.5b-chat", "glm-edge-1.5b", "glm-4, the text of GLM-Edge (LICENSE)"),),
    license="other",
    license_name="glm-4",
    license_link="LICENSE",
    tags=("glm",),
    generations=("glm-edge",),
    prompt="No `[gMASK]<sop>` before the first message.",
    terms=(
        "The weights are under the GLM-Edge licence, the LICENSE of the original repository: free for academic "
        "research; commercial use asks for a registration. Who distributes the weights or what is made from them "
        "includes a copy of it, shows “Built with GLM-Edge”, and begins the name of a model made with them with "
        "“GLM-Edge”."
    ),
    limits=(
        _STOPS,
        "Embedding and head are one matrix; merging an adapter on only one of them gives a model with a head of its "
        "own.",
        "The 4B checkpoint loads by its own config.json and is not in the table above; the vision models are refused.",
        "Copies of its template disagree on a line end after the last `<|assistant|>`; the one here has none.",
    ),
)

CODEGEEX4 = Family(
    name="codegeex4-all-9b",
    title="CodeGeeX4-ALL-9B",
    intro="GLM-4-9B trained further on code: chat about code, completion and filling in the middle.",
    checkpoints=(Checkpoint("THUDM/codegeex4-all-9b", "glm-4-9b-chat", "codegeex4 (LICENSE)"),),
    license="other",
    license_name="codegeex4",
    license_link="LICENSE",
    language=("zh", "en", "code"),
    base_model="THUDM/glm-4-9b",
    tags=("chatglm", "code"),
    generations=("codegeex4",),
    prompt=(
        "A system message in Chinese stands first unless you give one. To fill in the middle, one user message "
        "holds the suffix before the prefix: `<|code_suffix|>…<|code_prefix|>…<|code_middle|>`."
    ),
    terms=(
        "The weights are under the CodeGeeX4 licence, the LICENSE of the original repository: free for academic "
        "research; commercial use asks for a registration. Who distributes the weights or what is made from them "
        "includes a copy of it, shows “Built with CodeGeeX4”, and begins the name of a model made with them with "
        "“CodeGeeX4”."
    ),
    limits=(
        "The decoder is that of glm-4-9b-chat in shape; the numbers are its own.",
        "The ids of the code tokens come from the repository's own tokenizer files. With GLM-4's vocabulary instead "
        "they are read as plain text.",
        _STOPS,
    ),
    papers=("2303.17568",),
)

LONG = Family(
    name="longwriter-longcite",
    title="LongWriter and LongCite (GLM-4-9B)",
    intro="Fine-tunes of GLM-4-9B: LongWriter writes texts of many pages, LongCite cites the sentences it "
    "answers from.",
    checkpoints=(
        Checkpoint("THUDM/LongWriter-glm4-9b", "glm-4-9b-chat", "glm-4 (the LICENSE of glm-4-9b-chat)"),
        Checkpoint("THUDM/LongCite-glm4-9b", "glm-4-9b-chat", "see the original repository"),
    ),
    license="other",
    license_name="glm-4",
    license_link="LICENSE",
    language=("en", "zh"),
    base_model="THUDM/glm-4-9b",
    tags=("chatglm", "long-context"),
    generations=("glm-4",),
    prompt=(
        "GLM-4's template. LongCite's user message numbers the sentences of the context, `<C0>…<C1>…`, and its "
        "answer is made of `<statement>…<cite>[6-8]</cite></statement>`."
    ),
    terms=(
        "LongWriter names the glm-4-9b licence; see the original repositories, and the terms of GLM-4-9B, which ask "
        "for “Built with glm-4” and for a name that begins with “glm-4”."
    ),
    limits=(
        "The checkpoints of the same names on LLaMA 3.1 are LLaMA in shape and in licence: see the card of LLaMA 3.",
        "Long outputs need memory for keys and values; `max_new_tokens` has to be raised from its default.",
        _STOPS,
    ),
    papers=("2408.07055", "2409.02897"),
)
