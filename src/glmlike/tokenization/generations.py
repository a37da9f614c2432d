"""What tells the generations' tokenizers apart beyond their vocabularies: one table, a row a generation.

Ids and forms are those of the published tokenizers (THUDM/GLM: data_utils/tokenization.py; the tokenization_chatglm.py
of ChatGLM-6B, ChatGLM2, ChatGLM3 and GLM-4; icetk; tokenizer_config.json of GLM-Edge, LLaMA 3.1 and Qwen2.5).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Literal

from glmlike.errors import TokenizerError

Kind = Literal["ranks", "merges", "unigram", "sentencepiece-bpe", "cog-pretrain", "wordpiece"]
"""A vocabulary by what its files hold; see :mod:`glmlike.tokenization.kinds`."""


@dataclass(frozen=True)
class Generation:
    """One generation's tokenizer.

    ``sizes`` are the numbers of tokens that its published vocabulary files hold, before ``specials`` (text to id).
    ``named`` are transformers' attributes. ``single`` and ``pair`` are what encoding gives, with ``$A`` and ``$B`` for
    the texts. ``parsed``: whether a special token that is spelled in a plain text is that token, or text.
    ``left_stripped`` tokens take the blanks before them; ``shown`` ones are no special tokens when a text is decoded;
    ``aliases`` are spellings of a token that has another name.
    """

    name: str
    kinds: tuple[Kind, ...]
    sizes: tuple[int, ...]
    specials: Mapping[str, int]
    named: Mapping[str, str]
    single: tuple[str, ...] = ("$A",)
    pair: tuple[str, ...] = ("$A", "$B:1")
    parsed: bool = True
    padding_side: Literal["left", "right"] = "left"
    truncation_side: Literal["left", "right"] = "right"
    model_max_length: int | None = None
    left_stripped: tuple[str, ...] = ()
    shown: tuple[str, ...] = ()
    aliases: Mapping[str, str] = field(default_factory=dict)


def _from(start: int, *names: str) -> dict[str, int]:
    return {name: start + offset for offset, name in enumerate(names)}


_BLANKS = {"mask_token": "[MASK]", "gmask_token": "[gMASK]", "smask_token": "[sMASK]"}
_PIECE = {"sop_token": "<|startofpiece|>", "eop_token": "<|endofpiece|>"}
_ROLES = ("<|system|>", "<|user|>", "<|assistant|>", "<|observation|>")

_GLM_10B = Generation(
    "glm-10b",
    ("merges",),
    (50_257,),
    _from(
        50_256,
        *("<|endoftext|>", "<|startofpiece|>", "<|endofpiece|>", "[CLS]", "[MASK]", "[SEP]", "[UNK]"),
        *("[gMASK]", "[sMASK]", "[dBLOCK]"),
    ),
    {"eos_token": "<|endoftext|>", "pad_token": "<|endoftext|>", "cls_token": "[CLS]", "sep_token": "[SEP]"}
    | {"unk_token": "[UNK]", **_BLANKS, **_PIECE},
    ("[CLS]", "$A", "<|endoftext|>"),
    ("[CLS]", "$A", "<|endoftext|>", "$B:1", "<|endoftext|>:1"),
    padding_side="right",
    truncation_side="left",
    model_max_length=1024,
    left_stripped=("[MASK]",),
)
# glm-10b-chinese was trained with [gMASK] on the id of the end of a piece. An id has one name: the other is an alias,
# with an id of its own, 50010, that only transformers without glmlike gives (its row was never trained).
_GLM_10B_CHINESE = replace(
    _GLM_10B,
    name="glm-10b-chinese",
    kinds=("cog-pretrain",),
    sizes=(50_000,),
    specials={
        **_from(50_000, "<|endoftext|>", "[SEP]", "[CLS]", "[MASK]", "[UNK]", "<|reserved_50005|>"),
        **_from(50_006, "<|startofpiece|>", "<|endofpiece|>", "[sMASK]", "[dBLOCK]", "[gMASK]"),
    },
    named={name: token for name, token in _GLM_10B.named.items() if name != "gmask_token"},
    left_stripped=(),
    aliases={"[gMASK]": "<|endofpiece|>"},
)
_GLM_LARGE_CHINESE = replace(
    _GLM_10B_CHINESE,
    specials={**_GLM_10B_CHINESE.specials, "[gMASK]": 50_009, "[dBLOCK]": 50_010},
    named={**_GLM_10B.named},
    aliases={},
)
_GLM_BERT = replace(
    _GLM_10B,
    name="glm-bert",
    kinds=("wordpiece",),
    sizes=(30_522,),
    specials={
        "[PAD]": 0,
        "[UNK]": 100,
        "[CLS]": 101,
        "[SEP]": 102,
        "[MASK]": 103,
        **_from(30_522, "<|startofpiece|>", "<|endofpiece|>", "[gMASK]", "[sMASK]"),
    },
    named={**_GLM_10B.named, "eos_token": "[SEP]", "pad_token": "[PAD]"},
    single=("[CLS]", "$A", "[SEP]"),
    pair=("[CLS]", "$A", "[SEP]", "$B:1", "[SEP]:1"),
    model_max_length=512,
    left_stripped=(),
)
_GLM_ROBERTA = replace(
    _GLM_10B,
    name="glm-roberta",
    sizes=(50_265,),
    specials={
        "<s>": 0,
        "<pad>": 1,
        "</s>": 2,
        "<unk>": 3,
        "<mask>": 50_264,
        **_from(50_265, "<|startofpiece|>", "<|endofpiece|>"),
    },
    named={"bos_token": "<s>", "cls_token": "<s>", "eos_token": "</s>", "sep_token": "</s>", "pad_token": "<pad>"}
    | {"unk_token": "<unk>", "mask_token": "<mask>", **_PIECE},
    single=("<s>", "$A", "</s>"),
    pair=("<s>", "$A", "</s>", "</s>", "$B", "</s>"),
    model_max_length=512,
    left_stripped=("<mask>",),
)
# The original split [gMASK] and [sMASK] in a text, by an oversight of its class: here they are blanks as [MASK] is.
_CHATGLM_6B = Generation(
    "chatglm-6b",
    ("unigram",),
    (130_000, 130_344),
    {"<unk>": 0, "<pad>": 3, "[MASK]": 130_000, "[gMASK]": 130_001, "[sMASK]": 130_002}
    | {"<sop>": 130_004, "<eop>": 130_005},
    {"bos_token": "<sop>", "eos_token": "<eop>", "pad_token": "<pad>", "unk_token": "<unk>", **_BLANKS},
    ("$A", "[gMASK]", "<sop>"),
    ("$A", "[gMASK]", "<sop>", "$B:1", "<eop>:1"),
)
_GLM_130B = replace(
    _CHATGLM_6B,
    name="glm-130b",
    sizes=(130_000,),
    specials={text: token + 20_000 for text, token in _CHATGLM_6B.specials.items()},
)
_CHATGLM2 = Generation(
    "chatglm2",
    ("sentencepiece-bpe",),
    (64_789,),
    {"<unk>": 0, "<s>": 1, "</s>": 2, **_from(64_789, "[MASK]", "[gMASK]", "[sMASK]", "sop", "eop")},
    {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<unk>", "unk_token": "<unk>"},
    ("[gMASK]", "sop", "$A"),
    ("[gMASK]", "sop", "$A", "$B:1", "</s>:1"),
    parsed=False,
)
_CHATGLM3 = replace(_CHATGLM2, name="chatglm3", specials={**_CHATGLM2.specials, **_from(64_794, *_ROLES)})
_GLM_4_TOKENS = (
    *("<|endoftext|>", "[MASK]", "[gMASK]", "[sMASK]", "<sop>", "<eop>", *_ROLES),
    *("<|begin_of_image|>", "<|end_of_image|>", "<|begin_of_video|>", "<|end_of_video|>"),
)
_GLM_4_0414 = Generation(
    "glm-4-0414",
    ("ranks",),
    (151_329,),
    _from(151_329, *_GLM_4_TOKENS),
    {"eos_token": "<|endoftext|>", "pad_token": "<|endoftext|>"},
)
# The original asks for the id of "<eos>" after a pair, a token that does not exist; its <|endoftext|> stands there.
_GLM_4 = replace(
    _GLM_4_0414,
    name="glm-4",
    single=("[gMASK]", "<sop>", "$A"),
    pair=("[gMASK]", "<sop>", "$A", "$B:1", "<|endoftext|>:1"),
)
_LLAMA_3 = Generation(
    "llama-3",
    ("ranks",),
    (128_000,),
    _from(
        128_000,
        *("<|begin_of_text|>", "<|end_of_text|>", "<|reserved_special_token_0|>", "<|reserved_special_token_1|>"),
        *("<|finetune_right_pad_id|>", "<|reserved_special_token_2|>", "<|start_header_id|>", "<|end_header_id|>"),
        *("<|eom_id|>", "<|eot_id|>", "<|python_tag|>", *(f"<|reserved_special_token_{n}|>" for n in range(3, 248))),
    ),
    {"bos_token": "<|begin_of_text|>", "eos_token": "<|end_of_text|>", "pad_token": "<|finetune_right_pad_id|>"},
    ("<|begin_of_text|>", "$A"),
    ("<|begin_of_text|>", "$A", "<|begin_of_text|>:1", "$B:1"),
)
_QWEN_SHOWN = (
    *("<tool_call>", "</tool_call>", "<|fim_prefix|>", "<|fim_middle|>", "<|fim_suffix|>", "<|fim_pad|>"),
    *("<|repo_name|>", "<|file_sep|>"),
)
_QWEN = Generation(
    "qwen2.5",
    ("merges",),
    (151_643,),
    _from(
        151_643,
        *("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|object_ref_start|>", "<|object_ref_end|>"),
        *("<|box_start|>", "<|box_end|>", "<|quad_start|>", "<|quad_end|>", "<|vision_start|>", "<|vision_end|>"),
        *("<|vision_pad|>", "<|image_pad|>", "<|video_pad|>", *_QWEN_SHOWN),
    ),
    {"eos_token": "<|im_end|>", "pad_token": "<|endoftext|>"},
    shown=_QWEN_SHOWN,
)

GENERATIONS: Mapping[str, Generation] = {
    generation.name: generation
    for generation in (
        *(_GLM_10B, _GLM_10B_CHINESE, _GLM_BERT, _GLM_ROBERTA, _GLM_130B, _CHATGLM_6B, _CHATGLM2, _CHATGLM3),
        *(_GLM_4, _GLM_4_0414, replace(_GLM_4_0414, name="glm-z1")),
        replace(
            _GLM_4_0414, name="glm-edge", sizes=(59_246,), specials=_from(59_246, *_GLM_4_TOKENS)
        ),  # GLM-4's tokens after a vocabulary of its own
        replace(_CHATGLM2, name="codegeex2"),
        replace(_GLM_4, name="codegeex4"),
        *(_LLAMA_3, _QWEN),
    )
}
"""Every generation by its name."""


def generation_of(name: str, *, gmask: int | None = None) -> Generation:
    """The generation of a name; ``gmask`` says the id that its model's config has for [gMASK].

    glm-large-chinese is glm-10b-chinese with a token of its own for [gMASK], 50009, which nothing else tells.

    Raises:
        TokenizerError: no generation has the name.
    """
    if name not in GENERATIONS:
        raise TokenizerError(f"generation={name!r}: expected one of {', '.join(GENERATIONS)}.")
    if name == "glm-10b-chinese" and gmask == _GLM_LARGE_CHINESE.specials["[gMASK]"]:
        return _GLM_LARGE_CHINESE
    return GENERATIONS[name]
