"""The causal 6B generations: ChatGLM2, ChatGLM3, CodeGeeX2."""

from __future__ import annotations

from families.family import MODEL_LICENSE, Checkpoint, Family

_HALF_PRECISION = (
    "The original computes rotary angles and positions in the model's own type: in float16 they are 1.1 rad off at "
    "position 2048 and 23 rad at 32768. Here they are float32, so long texts give other (and exact) results in half "
    "precision; in float32 the logits are equal."
)
_VOCABULARY = (
    "The prefix tokens are `[gMASK]` and `sop`, the latter without angle brackets, at the start of every text. The "
    "last rows of the embedding belong to no token."
)
_PLUGIN = "`AutoModel` on these folders gives the language model with its head, as their `auto_map` says."

CHATGLM2 = Family(
    name="chatglm2-6b",
    title="ChatGLM2-6B",
    intro="The second ChatGLM: a causal decoder with grouped keys and values, and half of each head rotated.",
    checkpoints=(
        Checkpoint("THUDM/chatglm2-6b", "chatglm2-6b", "chatglm2-6b (MODEL_LICENSE)"),
        Checkpoint("THUDM/chatglm2-6b-int4", "chatglm2-6b", "chatglm2-6b (MODEL_LICENSE)"),
        Checkpoint("THUDM/chatglm2-6b-32k", "chatglm2-6b", "chatglm2-6b (MODEL_LICENSE)"),
    ),
    license="other",
    license_name="chatglm2-6b",
    license_link="MODEL_LICENSE",
    tags=("chatglm",),
    generations=("chatglm2",),
    prompt="Rounds are numbered from 1. Only a reply at the end is followed by the end token.",
    terms=(
        "The code of the original repository is Apache-2.0. The weights are under the ChatGLM2-6B licence in its "
        "MODEL_LICENSE; older copies of it allow non-commercial research only: the copy beside the files you have "
        "is the one that counts."
    ),
    limits=(
        "chatglm2-6b-32k divides positions by `rope_ratio`, where ChatGLM3 multiplies the rotary base by it, and no "
        "field of config.json tells the two apart. If `_name_or_path` does not say it either, pass "
        '`generation="chatglm2"`. Its column of the architecture is that of chatglm2-6b, without this scaling.',
        _HALF_PRECISION,
        _VOCABULARY,
        _PLUGIN,
        "Repositories ending in -int4 or -int8 hold integers. They load as floats, or stay integers with "
        "`GlmIntConfig(dequantize=False)`; a conversion makes floats of them.",
        "P-tuned checkpoints (`pre_seq_len`) load with their prefix; besides `chatglm`, only `glmlike` can say one.",
    ),
    papers=("2103.10360", "2406.12793"),
)

CHATGLM3 = Family(
    name="chatglm3-6b",
    title="ChatGLM3-6B",
    intro="ChatGLM2's decoder and vocabulary with role tokens, tools and new weights.",
    checkpoints=(
        Checkpoint("THUDM/chatglm3-6b", "chatglm3-6b", "chatglm3-6b (MODEL_LICENSE)"),
        Checkpoint("THUDM/chatglm3-6b-base", "chatglm3-6b", "chatglm3-6b (MODEL_LICENSE)"),
        Checkpoint("THUDM/chatglm3-6b-32k", "chatglm3-6b-32k", "chatglm3-6b (MODEL_LICENSE)"),
    ),
    license="other",
    license_name="chatglm3-6b",
    license_link="MODEL_LICENSE",
    tags=("chatglm",),
    generations=("chatglm3",),
    prompt="The blank after each line end is part of the prompt: the original encodes each text with a dummy prefix.",
    terms=(
        "The code of the original repository is Apache-2.0. The weights are under the ChatGLM3-6B licence in its "
        "MODEL_LICENSE: free for academic research; commercial use asks for a registration."
    ),
    limits=(
        "Generation stops at three tokens: `</s>`, `<|user|>` and, after a tool call, `<|observation|>`.",
        "A tool call is a line of Python in the reply. Read it with a parser; never evaluate it.",
        "`seq_length` of config.json is no limit of the decoder; chatglm3-6b-128k has another `rope_ratio` than 32k.",
        "chatglm3-6b-base has the same vocabulary and was not trained on the chat template.",
        _VOCABULARY,
        _PLUGIN,
    ),
    papers=("2103.10360", "2406.12793"),
)

CODEGEEX2 = Family(
    name="codegeex2-6b",
    title="CodeGeeX2-6B",
    intro="ChatGLM2's decoder trained further on code; it completes code and does not chat.",
    checkpoints=(Checkpoint("THUDM/codegeex2-6b", "codegeex2-6b", MODEL_LICENSE),),
    license="other",
    license_name="codegeex2-6b",
    license_link="MODEL_LICENSE",
    language=("zh", "en", "code"),
    base_model="THUDM/chatglm2-6b",
    tags=("chatglm", "code"),
    prompt="No chat template: a line that names the language, and what is to be completed.",
    completes="# language: Python\n# write a bubble sort function\n",
    terms="See the LICENSE and MODEL_LICENSE of the original repository, and the terms of ChatGLM2-6B.",
    limits=(
        "Its tokenizer.model is its own, not ChatGLM2's.",
        "config.json has `rotary_percent` and `interleaved_qkv`, at the values that ChatGLM2's code takes for "
        "granted. Others are refused.",
        _VOCABULARY,
    ),
    papers=("2303.17568",),
)
