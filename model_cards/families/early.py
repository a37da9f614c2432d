"""The families that fill blanks: GLM-10B, GLM-130B, ChatGLM-6B."""

from __future__ import annotations

from families.family import MODEL_LICENSE, Checkpoint, Family

_UNKNOWN = "see the original repository"

GLM_10B = Family(
    name="glm-10b",
    title="GLM-10B and its line",
    intro=(
        "Autoregressive blank infilling (arXiv 2103.10360): a text with blanks is read both ways, and each blank is "
        "written from left to right. English, and Chinese in the checkpoints that say so."
    ),
    checkpoints=(
        Checkpoint("THUDM/glm-10b", "glm-10b", _UNKNOWN),
        Checkpoint("THUDM/glm-2b", "glm-2b", _UNKNOWN),
        Checkpoint("THUDM/glm-515m", "glm-515m", _UNKNOWN),
        Checkpoint("THUDM/glm-10b-chinese", "glm-10b-chinese", _UNKNOWN),
        Checkpoint("THUDM/glm-large-chinese", "glm-large-chinese", _UNKNOWN),
    ),
    license="unknown",
    language=("en", "zh"),
    tags=("blank-infilling",),
    prompt=(
        "These models have no chat template. A text holds a blank, `[MASK]` (words), `[sMASK]` (sentences) or "
        "`[gMASK]` (the rest of a document); the tokenizer puts `[CLS]` before it and the end-of-text token after "
        "it, and a piece begins with `<|startofpiece|>` and ends with `<|endofpiece|>`:\n\n"
        "```text\n[CLS] GLM is a [MASK] model. <|endoftext|> <|startofpiece|>\n```"
    ),
    fills="GLM is a [MASK] model.",
    terms=(
        "The repositories of the weights name no licence that is known here: see the original repository before you "
        "use them for more than reading."
    ),
    limits=(
        '`model_type: "glm"` is also that of transformers\' own GLM-4 class. Without `import glmlike`, such a '
        "config.json is read as GLM-4's without an error, and describes another model.",
        "Positions are learned: a context and its pieces end where the table does (see the architecture).",
        "The code beside the weights computes the exact GELU, the code they were trained with its tanh form. The "
        'former is what is loaded; the spec says the other as `feed_forward="gelu_tanh"`.',
        "The original classes score `labels[t]` with `logits[t]`; for labels made for them pass `shift_labels=labels`.",
        "In glm-10b-chinese `[gMASK]` and the end of a piece are one token. The Chinese vocabulary drops line ends "
        "and has no bytes: an emoji is read as unknown.",
        "Three vocabularies in one line: byte-level BPE (glm-10b, glm-2b), WordPiece (glm-515m), SentencePiece "
        "(Chinese).",
    ),
    papers=("2103.10360",),
)

GLM_130B = Family(
    name="glm-130b",
    title="GLM-130B",
    intro="The large bilingual base model of the blank-infilling line (arXiv 2210.02414), English and Chinese.",
    checkpoints=(Checkpoint("THUDM/GLM-130B", "glm-130b", MODEL_LICENSE),),
    license="other",
    license_name="glm-130b",
    license_link="MODEL_LICENSE",
    language=("en", "zh"),
    tags=("blank-infilling",),
    prompt=(
        "A base model: no chat template. A text with `[MASK]` is filled there; a text without a blank gets "
        "`[gMASK]` at its end and is continued. Then comes the start-of-piece token. With `[MASK]` every token of "
        "the piece has the position of the blank, with `[gMASK]` positions run on:\n\n"
        "```text\nTsinghua University is in [gMASK]<sop>\n```"
    ),
    terms=("See the LICENSE (code) and the MODEL_LICENSE (weights) of the original repository."),
    limits=(
        "The files are model-parallel ranks (`mp_rank_*_model_states.pt`), read tensor by tensor by any degree of "
        "parallelism. There is no config.json: `model_config.json` is read where it is, else pass "
        '`spec="glm-130b"`.',
        "The residual is DeepNorm on the normed input, and the second half of the feed-forward is its gate: code "
        "for other GLMs that reads these matrices gets them wrong.",
        "Rotary frequencies were rounded to float16 in the library the model was released with; the spec says so, "
        "and angles are computed from the rounded ones.",
        "No classes of transformers or vLLM read this decoder: there is no layout but glmlike's to convert it to.",
    ),
    papers=("2210.02414",),
    main="glm-130b-sat",
)

CHATGLM_6B = Family(
    name="chatglm-6b",
    title="ChatGLM-6B",
    intro="The first ChatGLM: a chat model that still fills blanks, with two-dimensional rotary positions.",
    checkpoints=(
        Checkpoint("THUDM/chatglm-6b", "chatglm-6b", "chatglm-6b (MODEL_LICENSE)"),
        Checkpoint("THUDM/chatglm-6b-int8", "chatglm-6b", "chatglm-6b (MODEL_LICENSE)"),
        Checkpoint("THUDM/chatglm-6b-int4", "chatglm-6b", "chatglm-6b (MODEL_LICENSE)"),
    ),
    license="other",
    license_name="chatglm-6b",
    license_link="MODEL_LICENSE",
    tags=("chatglm", "blank-infilling"),
    generations=("chatglm-6b",),
    prompt="A first query stands alone; `[gMASK]<sop>` is the end of every prompt, not its beginning.",
    fills="床前明月光，疑是地上[MASK]。",
    terms=(
        "The code of the original repository is Apache-2.0. The weights are under the ChatGLM-6B licence in its "
        "MODEL_LICENSE, which changed in July 2023: the copy beside the files you have is the one that counts."
    ),
    limits=(
        "Two vocabularies share one name. v1.0 (150528 rows, March 2023) begins with 20000 image tokens; v1.1 has "
        "none, and each of its ids is 20000 less. A v1.0 folder loads as v1.1, its image rows cropped.",
        "The factor of the residual is that of 28 layers in the original code, whatever the number of layers.",
        "Rotary frequencies are rounded to float16, as in the original: up to 0.32 rad off the exact ones below "
        "position 2048.",
        "The files hold LayerNorms in float32 and the rest in float16; a conversion keeps each tensor's own type.",
        "Repositories ending in -int4 or -int8 hold integers. They load as floats, or stay integers with "
        "`GlmIntConfig(dequantize=False)`; a conversion makes floats of them.",
        "`metadata.total_size` of the v1.1 index is that of v1.0's larger tables, and is not checked.",
        "The tokenizer is not reversible: it folds full-width forms and drops a single leading blank.",
        "Flash attention and continuous batching are refused: they would drop the mask of the context.",
    ),
    papers=("2103.10360", "2210.02414"),
)
