"""The published checkpoints: where each is, what its files hold, what must come along, where it can go.

Names, shapes and sizes are not written down here: they follow from the decoder (:mod:`glmlike.published`) and from the
table of its format. The tests compare them with the indices that were published. ``revision`` is None where no commit
is known: pin one yourself; the scripts print the commit that they read.

Repositories are named as they were published; those of THUDM are under zai-org today, and both names lead there.
A fine-tune that is not here reads as its base does. Pre-quantized releases (int4, int8) convert too, but have no
recipe, since their tensors are not the table's.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from glmlike.checkpoint.formats import FormatTable, table_of
from glmlike.checkpoint.headers import DTYPE_SIZES
from glmlike.hub_json import FORMATS, Format, Generation, cannot_express
from glmlike.published import PUBLISHED
from glmlike.spec import DecoderSpec

LICENCE = "*LICENSE*"
"""What the file with the terms of the weights is called: LICENSE, MODEL_LICENSE, LICENSE.txt."""

_FIRST_VOCABULARY_ROWS = 20_000


@dataclass(frozen=True)
class Recipe:
    """One published checkpoint.

    ``repo`` is its id on the Hub (None: it is not there), ``folder`` where in it the weights are. ``spec`` is what its
    config says, but for the fields in ``unsettled``, whose published values are not known here. ``files`` are patterns
    that the weights are of no use without. ``licence`` is the name of the weights' terms (None: not known here).
    ``angles`` tensors of rotary angles are in the files, though no format needs them; ``image_rows`` are what v1.0's
    tables begin with. Norms are float32 where ``float32_norms``, all else is ``dtype``. ``index_bytes`` is what the
    published index says where it is wrong.
    """

    repo: str | None
    format: Format
    spec: DecoderSpec
    files: tuple[str, ...]
    licence: str | None
    dtype: str = "BF16"
    revision: str | None = None
    folder: str = ""
    generation: Generation | None = None
    unsettled: tuple[str, ...] = ()
    angles: int = 0
    image_rows: int = 0
    float32_norms: bool = False
    index_bytes: int | None = None
    notes: str = ""

    @property
    def table(self) -> FormatTable:
        """The table of its files."""
        return table_of(self.format, self.image_rows)

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Every tensor that a conversion reads, with its shape."""
        return self.table.foreign_shapes(self.spec)

    @property
    def ignored(self) -> set[str]:
        """Tensors that the files may hold besides: angles, and copies of a tied embedding."""
        return self.table.dropped_names(self.spec) | self.table.copies(self.spec).keys()

    @property
    def tensors(self) -> int:
        """How many tensors are in the published files, angles included."""
        return len(self.shapes) + self.angles

    @property
    def bytes(self) -> int:
        """Bytes of those tensors. Angles are a quarter of a head long in every format that stores them."""
        numbers = sum(math.prod(shape) * DTYPE_SIZES[self.dtype_of(name)] for name, shape in self.shapes.items())
        return numbers + self.angles * self.spec.head_dim // 4 * DTYPE_SIZES[self.dtype]

    @property
    def converts_to(self) -> list[Format]:
        """The other formats that can say this decoder; the own one as well where conversion drops rows."""
        able = [fmt for fmt in FORMATS if not cannot_express(self.spec, fmt)]
        return [fmt for fmt in able if fmt != self.format or self.image_rows]

    def dtype_of(self, name: str) -> str:
        """What a tensor is published as, in safetensors' names."""
        return "F32" if self.float32_norms and "layernorm." in name else self.dtype


_SENTENCE_PIECE = ("config.json", "tokenizer.model", "tokenizer_config.json")
_FAST = ("config.json", "tokenizer.json", "tokenizer_config.json")
_RUMINATION = PUBLISHED["glm-z1-32b-0414"].spec.replace(num_key_value_heads=8, max_position_embeddings=131_072)
_LLAMA = {
    "llama-3-8b": ("meta-llama/Meta-Llama-3-8B", "Meta Llama 3 Community License"),
    "llama-3.1-8b": ("meta-llama/Llama-3.1-8B", "Llama 3.1 Community License"),
    "llama-3.2-1b": ("meta-llama/Llama-3.2-1B", "Llama 3.2 Community License"),
}


def _glm(name: str, *vocabulary: str) -> Recipe:
    """The GLM-10B line: one learned table of positions a kind, a tied head, float16."""
    files = ("config.json", *vocabulary)
    return Recipe(f"THUDM/{name}", "glm-10b", PUBLISHED[name].spec, files, licence=None, dtype="F16")


def _chatglm_6b(image_rows: int, notes: str, index_bytes: int | None = None) -> Recipe:
    return Recipe(
        "THUDM/chatglm-6b",
        "chatglm-6b",
        PUBLISHED["chatglm-6b"].spec,
        ("config.json", "ice_text.model", "tokenizer_config.json"),
        "The ChatGLM-6B License",
        dtype="F16",
        angles=PUBLISHED["chatglm-6b"].spec.num_hidden_layers,
        image_rows=image_rows,
        float32_norms=True,
        index_bytes=index_bytes,
        notes=notes,
    )


def _chatglm(
    name: str,
    licence: str | None,
    *,
    like: str | None = None,
    dtype: str = "F16",
    generation: Generation | None = None,
    unsettled: tuple[str, ...] = (),
    notes: str = "",
) -> Recipe:
    """ChatGLM2 and what followed with its remote code: one tensor of angles in the files."""
    return Recipe(
        f"THUDM/{name}",
        "chatglm",
        PUBLISHED[like or name].spec,
        _SENTENCE_PIECE,
        licence,
        dtype=dtype,
        generation=generation,
        unsettled=unsettled,
        angles=1,
        notes=notes,
    )


def _glm_4(name: str, *, like: str | None = None, licence: str | None = "glm-4", notes: str = "") -> Recipe:
    return _chatglm(name, licence, like=like, dtype="BF16", notes=notes)


def _in_transformers(
    repo: str, fmt: Format, spec: DecoderSpec, licence: str, notes: str = "", files: tuple[str, ...] = _FAST
) -> Recipe:
    return Recipe(repo, fmt, spec, files, licence, notes=notes)


RECIPES: dict[str, Recipe] = {
    "glm-515m": _glm("glm-515m", "vocab.txt"),
    "glm-large-chinese": _glm("glm-large-chinese", "cog-pretrain.model"),
    "glm-2b": _glm("glm-2b", "vocab.json", "merges.txt"),
    "glm-10b": _glm("glm-10b", "vocab.json", "merges.txt"),
    "glm-10b-chinese": _glm("glm-10b-chinese", "cog-pretrain.model"),
    "glm-130b": Recipe(
        None,
        "glm-130b",
        PUBLISHED["glm-130b"].spec,
        ("latest",),
        "The GLM-130B License",
        dtype="F16",
        notes="60 parts of one archive, on request from its authors, 8 ranks; no config and no tokenizer in it: "
        "the vocabulary is ice_text.model of ChatGLM-6B v1.0, with ids + 20000",
    ),
    "chatglm-6b-v1.0": _chatglm_6b(
        _FIRST_VOCABULARY_ROWS,
        "a commit before 2023-04-06; its 20000 rows of image tokens are left out, and ids become v1.1's: so "
        "must the tokenizer's files",
    ),
    "chatglm-6b-v1.1": _chatglm_6b(
        0, "its index still gives the total_size of v1.0, which is not checked", index_bytes=13_744_473_856
    ),
    "chatglm2-6b": _chatglm("chatglm2-6b", "The ChatGLM2-6B License", generation="chatglm2"),
    "chatglm2-6b-32k": _chatglm(
        "chatglm2-6b-32k",
        "The ChatGLM2-6B License",
        like="chatglm2-6b",
        generation="chatglm2",
        unsettled=("rope_scaling",),
        notes="rope_ratio divides positions (ChatGLM3's multiplies the base); no field says so, the recipe does",
    ),
    "codegeex2-6b": _chatglm("codegeex2-6b", "The CodeGeeX License", dtype="BF16", generation="chatglm2"),
    "chatglm3-6b": _chatglm("chatglm3-6b", "The ChatGLM3-6B License", generation="chatglm3"),
    "chatglm3-6b-base": _chatglm(
        "chatglm3-6b-base",
        "The ChatGLM3-6B License",
        like="chatglm3-6b",
        generation="chatglm3",
    ),
    "chatglm3-6b-32k": _chatglm(
        "chatglm3-6b-32k",
        "The ChatGLM3-6B License",
        generation="chatglm3",
        notes="rope_ratio 50 multiplies the base of the angles (ChatGLM2's divides positions)",
    ),
    "chatglm3-6b-128k": _chatglm(
        "chatglm3-6b-128k",
        "The ChatGLM3-6B License",
        like="chatglm3-6b",
        generation="chatglm3",
        unsettled=("rope_theta",),
        notes="rope_ratio multiplies the base; its value is read from the config",
    ),
    "glm-4-9b": _glm_4("glm-4-9b"),
    "glm-4-9b-chat": _glm_4("glm-4-9b-chat"),
    "glm-4-9b-chat-1m": _glm_4("glm-4-9b-chat-1m", notes="four key-value heads instead of two"),
    "longwriter-glm4-9b": _glm_4(
        "LongWriter-glm4-9b", like="glm-4-9b-chat", licence=None, notes="GLM-4-9B trained on: reads as glm-4-9b-chat"
    ),
    "longcite-glm4-9b": _glm_4(
        "LongCite-glm4-9b", like="glm-4-9b-chat", licence=None, notes="GLM-4-9B trained on: reads as glm-4-9b-chat"
    ),
    "codegeex4-all-9b": _glm_4(
        "codegeex4-all-9b",
        like="glm-4-9b-chat",
        licence="The CodeGeeX4 License",
        notes="GLM-4-9B trained on: reads as glm-4-9b-chat; its prompts are its own",
    ),
    "glm-4-9b-chat-hf": _in_transformers(
        "THUDM/glm-4-9b-chat-hf", "glm", PUBLISHED["glm-4-9b-chat-hf"].spec, "glm-4", "glm-4-9b-chat, already converted"
    ),
    "glm-4-9b-chat-1m-hf": _in_transformers(
        "THUDM/glm-4-9b-chat-1m-hf", "glm", PUBLISHED["glm-4-9b-chat-1m"].spec, "glm-4", "already converted"
    ),
    "glm-edge-1.5b-chat": _in_transformers(
        "THUDM/glm-edge-1.5b-chat",
        "glm",
        PUBLISHED["glm-edge-1.5b"].spec,
        "its MODEL_LICENSE",
        "rotates whole heads, which ChatGLM's layout cannot say",
    ),
    "glm-4-9b-0414": _in_transformers("THUDM/GLM-4-9B-0414", "glm4", PUBLISHED["glm-4-9b-0414"].spec, "MIT"),
    "glm-4-32b-0414": _in_transformers("THUDM/GLM-4-32B-0414", "glm4", PUBLISHED["glm-z1-32b-0414"].spec, "MIT"),
    "glm-z1-9b-0414": _in_transformers("THUDM/GLM-Z1-9B-0414", "glm4", PUBLISHED["glm-4-9b-0414"].spec, "MIT"),
    "glm-z1-32b-0414": _in_transformers("THUDM/GLM-Z1-32B-0414", "glm4", PUBLISHED["glm-z1-32b-0414"].spec, "MIT"),
    "glm-z1-rumination-32b-0414": _in_transformers(
        "THUDM/GLM-Z1-Rumination-32B-0414", "glm4", _RUMINATION, "MIT", "eight key-value heads instead of two"
    ),
    **{
        name: _in_transformers(repo, "llama", PUBLISHED[name].spec, licence) for name, (repo, licence) in _LLAMA.items()
    },
    **{
        f"{name}-meta": Recipe(
            repo,
            "meta",
            PUBLISHED[name].spec,
            ("params.json", "tokenizer.model"),
            licence,
            folder="original",
            notes="Meta's own files of the same model, in a folder of the same repository",
        )
        for name, (repo, licence) in _LLAMA.items()
    },
    "qwen2.5-7b-instruct": _in_transformers(
        "Qwen/Qwen2.5-7B-Instruct", "qwen2", PUBLISHED["qwen2.5-7b"].spec, "Apache-2.0"
    ),
    "qwen2.5-0.5b-instruct": _in_transformers(
        "Qwen/Qwen2.5-0.5B-Instruct", "qwen2", PUBLISHED["qwen2.5-0.5b"].spec, "Apache-2.0"
    ),
}
"""One entry a published checkpoint."""


def recipe_of_repo(repo: str, formats: tuple[Format, ...] = ()) -> str | None:
    """The name of the recipe of a Hub id, of the first of ``formats`` that has one; None: it has no recipe.

    One id may have several (Meta's own files beside transformers'; two versions of ChatGLM-6B, where the later stands).
    """
    wanted = _by_any_owner(repo)
    found = [name for name, recipe in RECIPES.items() if recipe.repo and _by_any_owner(recipe.repo) == wanted]
    found = [name for name in found if not formats or RECIPES[name].format in formats]
    whole = [name for name in found if not RECIPES[name].folder and not RECIPES[name].image_rows]
    return next(iter((*whole, *found)), None)


def _by_any_owner(repo: str) -> str:
    return repo.lower().replace("zai-org/", "thudm/", 1)
