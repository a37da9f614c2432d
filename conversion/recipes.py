"""The published checkpoints: where each is, what its files hold, what must come along, where it can go.

Names, shapes and sizes are not written down here: they follow from the decoder (:mod:`glmlike.published`) and from the
table of its format. The tests compare them with the indices that were published. ``revision`` is a commit whose list
of files was seen, or None: pin one yourself then; the scripts print the commit that they read. dtypes are those seen in
the files, else either of 16 bits, since a config's ``torch_dtype`` does not say it: ChatGLM2's says float16 and its
files are bfloat16, GLM-2B's says float32 and they are float16.

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
_HALF = ("F16", "BF16")


@dataclass(frozen=True)
class Recipe:
    """One published checkpoint.

    ``repo`` is its id on the Hub (None: it is not there), ``folder`` where in it the weights are. ``spec`` is what its
    config says. ``files`` are patterns that the weights are of no use without. ``licence`` is the name of the weights'
    terms (None: not known here). ``angles`` tensors of rotary angles are in the files, though no format needs them;
    ``image_rows`` are what v1.0's tables begin with. Norms are float32 where ``float32_norms``, all else is of one of
    ``dtypes``, which have one size. ``index_bytes`` is what the published index says where it is wrong.
    """

    repo: str | None
    format: Format
    spec: DecoderSpec
    files: tuple[str, ...]
    licence: str | None
    dtypes: tuple[str, ...] = _HALF
    revision: str | None = None
    folder: str = ""
    generation: Generation | None = None
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
        numbers = sum(math.prod(shape) * DTYPE_SIZES[self.dtypes_of(name)[0]] for name, shape in self.shapes.items())
        return numbers + self.angles * self.spec.head_dim // 4 * DTYPE_SIZES[self.dtypes[0]]

    @property
    def converts_to(self) -> list[Format]:
        """The other formats that can say this decoder; the own one as well where conversion drops rows."""
        able = [fmt for fmt in FORMATS if not cannot_express(self.spec, fmt)]
        return [fmt for fmt in able if fmt != self.format or self.image_rows]

    def dtypes_of(self, name: str) -> tuple[str, ...]:
        """What a tensor may be published as, in safetensors' names."""
        return ("F32",) if self.float32_norms and "layernorm." in name else self.dtypes


_SENTENCE_PIECE = ("config.json", "tokenizer.model", "tokenizer_config.json")
_FAST = ("config.json", "tokenizer.json", "tokenizer_config.json")
_CHATGLM2, _GLM_4_CHAT = PUBLISHED["chatglm2-6b"].spec, PUBLISHED["glm-4-9b-chat"].spec
_RUMINATION = PUBLISHED["glm-z1-32b-0414"].spec.replace(num_key_value_heads=8, max_position_embeddings=131_072)
_LLAMA = {
    "llama-3-8b": ("meta-llama/Meta-Llama-3-8B", "Meta Llama 3 Community License"),
    "llama-3.1-8b": ("meta-llama/Llama-3.1-8B", "Llama 3.1 Community License"),
    "llama-3.2-1b": ("meta-llama/Llama-3.2-1B", "Llama 3.2 Community License"),
}


def _glm(name: str, revision: str, *vocabulary: str, notes: str = "") -> Recipe:
    """The GLM-10B line: one learned table of positions a kind, a tied head, one file, no licence beside it."""
    files = ("config.json", *vocabulary, "added_tokens.json", "tokenizer_config.json")
    spec = PUBLISHED[name].spec
    return Recipe(
        f"THUDM/{name}", "glm-10b", spec, files, licence=None, dtypes=("F16",), revision=revision, notes=notes
    )


def _chatglm_6b(image_rows: int, notes: str, index_bytes: int | None = None) -> Recipe:
    return Recipe(
        "THUDM/chatglm-6b",
        "chatglm-6b",
        PUBLISHED["chatglm-6b"].spec,
        ("config.json", "ice_text.model", "tokenizer_config.json"),
        "The ChatGLM-6B License",
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
    spec: DecoderSpec | None = None,
    revision: str | None = None,
    dtypes: tuple[str, ...] = _HALF,
    generation: Generation | None = None,
    notes: str = "",
) -> Recipe:
    """ChatGLM2 and what followed with its remote code: one tensor of angles in the files."""
    return Recipe(
        f"THUDM/{name}",
        "chatglm",
        spec or PUBLISHED[name].spec,
        _SENTENCE_PIECE,
        licence,
        dtypes=dtypes,
        revision=revision,
        generation=generation,
        angles=1,
        notes=notes,
    )


def _in_transformers(
    repo: str, fmt: Format, spec: DecoderSpec, licence: str, notes: str = "", files: tuple[str, ...] = _FAST
) -> Recipe:
    return Recipe(repo, fmt, spec, files, licence, notes=notes)


RECIPES: dict[str, Recipe] = {
    "glm-515m": Recipe(
        None,
        "glm-10b",
        PUBLISHED["glm-515m"].spec,
        ("config.json", "vocab.txt"),
        licence=None,
        notes="its id on the Hub, if it has one, is not known here",
    ),
    "glm-large-chinese": _glm("glm-large-chinese", "22edd208593e536c5487d03d3a64bd7dfea99dcf", "cog-pretrain.model"),
    "glm-2b": _glm(
        "glm-2b",
        "6ed40fbd8e1f7333dd9e40102ac30a7a42665de7",
        "vocab.json",
        "merges.txt",
        notes="its file is listed with 3.85 GB, 5 to 15 MB more than these tensors: what else is in it is open",
    ),
    "glm-10b": _glm("glm-10b", "ff8a42afcfe32304a7baffdf6ab06b089d38d9e0", "vocab.json", "merges.txt"),
    "glm-10b-chinese": _glm("glm-10b-chinese", "ee948f6302e8651f7386a9730194dad103a839d5", "cog-pretrain.model"),
    "glm-130b": Recipe(
        None,
        "glm-130b",
        PUBLISHED["glm-130b"].spec,
        ("latest",),
        "The GLM-130B License",
        notes="60 parts of one archive, on request from its authors, 8 ranks; no config and no tokenizer in it: "
        "the vocabulary is ice_text.model of ChatGLM-6B v1.0, with ids + 20000",
    ),
    "chatglm-6b-v1.0": _chatglm_6b(
        _FIRST_VOCABULARY_ROWS,
        "a commit before 72985e8 of 2023-04-06; its 20000 rows of image tokens are left out, and ids become v1.1's: "
        "so must the tokenizer's files",
    ),
    "chatglm-6b-v1.1": _chatglm_6b(
        0, "its index still gives the total_size of v1.0, which is not checked", index_bytes=13_744_473_856
    ),
    "chatglm2-6b": _chatglm(
        "chatglm2-6b",
        "The ChatGLM2-6B License",
        revision="96ff87ff887241ddb55bdf723b58cfc72068adc9",
        dtypes=("BF16",),
        generation="chatglm2",
    ),
    "chatglm2-6b-32k": _chatglm(
        "chatglm2-6b-32k",
        "The ChatGLM2-6B License",
        spec=_CHATGLM2.replace(rope_scaling={"rope_type": "linear", "factor": 16.0}),
        generation="chatglm2",
        notes="rope_ratio 16 divides positions (ChatGLM3's multiplies the base); no field says so, the recipe does",
    ),
    "codegeex2-6b": _chatglm("codegeex2-6b", "The CodeGeeX License", generation="chatglm2"),
    "chatglm3-6b": _chatglm(
        "chatglm3-6b",
        "The ChatGLM3-6B License",
        revision="67d005d386a01d4825649743f41e90f83edd6094",
        generation="chatglm3",
    ),
    "chatglm3-6b-base": _chatglm(
        "chatglm3-6b-base",
        "The ChatGLM3-6B License",
        spec=PUBLISHED["chatglm3-6b"].spec,
        revision="2bb5a6c3d7a7a826fe784ead4e512f965610b26e",
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
        spec=PUBLISHED["chatglm3-6b"].spec.replace(rope_theta=5_000_000.0, max_position_embeddings=131_072),
        generation="chatglm3",
        notes="rope_ratio 500 multiplies the base of the angles",
    ),
    "glm-4-9b": _chatglm("glm-4-9b", "glm-4", revision="bb3417f78a374d68fa18fade6844541ff42ce00b"),
    "glm-4-9b-chat": _chatglm("glm-4-9b-chat", "glm-4", revision="d493e515718e4e724ed7eddc75c26c284f1fda8a"),
    "glm-4-9b-chat-1m": _chatglm(
        "glm-4-9b-chat-1m",
        "glm-4",
        revision="b36cb68a0667be7d2b7b6bbd9587b34c13aaf37e",
        notes="four key-value heads instead of two",
    ),
    **{
        name.lower(): _chatglm(name, None, spec=_GLM_4_CHAT, notes="GLM-4-9B trained on: reads as glm-4-9b-chat")
        for name in ("LongWriter-glm4-9b", "LongCite-glm4-9b")
    },
    "codegeex4-all-9b": _chatglm(
        "codegeex4-all-9b",
        "The CodeGeeX4 License",
        spec=_GLM_4_CHAT,
        notes="GLM-4-9B trained on: reads as glm-4-9b-chat; its prompts are its own",
    ),
    "glm-4-9b-hf": _in_transformers(
        "THUDM/glm-4-9b-hf", "glm", PUBLISHED["glm-4-9b"].spec, "glm-4", "glm-4-9b, already converted"
    ),
    "glm-4-9b-chat-hf": _in_transformers(
        "THUDM/glm-4-9b-chat-hf", "glm", PUBLISHED["glm-4-9b-chat-hf"].spec, "glm-4", "glm-4-9b-chat, already converted"
    ),
    "glm-4-9b-chat-1m-hf": _in_transformers(
        "THUDM/glm-4-9b-chat-1m-hf",
        "glm",
        PUBLISHED["glm-4-9b-chat-1m"].spec,
        "glm-4",
        "glm-4-9b-chat-1m, already converted",
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
