"""A family's card: numbers from the specs, formats from the code, prompts from the templates."""

from __future__ import annotations

from typing import Any

from huggingface_hub import ModelCardData
from transformers.utils.chat_template_utils import render_jinja_template

from families.family import Family
from glmlike.cards.parts import architecture, formats, table
from glmlike.published import PUBLISHED, Published
from glmlike.tokenization.templates import chat_template

_FIRST = [{"role": "user", "content": "你好"}]
_LATER = [*_FIRST, {"role": "assistant", "content": "你好！"}, {"role": "user", "content": "What is GLM?"}]
OWN_CLASSES = {
    "glm": "GlmForCausalLM",
    "glm4": "Glm4ForCausalLM",
    "llama": "LlamaForCausalLM",
    "qwen2": "Qwen2ForCausalLM",
}
"""Layouts that transformers' Auto classes load as a class of transformers' own, with or without glmlike."""


def render(family: Family) -> str:
    """The whole text of a family's card."""
    decoders = {checkpoint.decoder: PUBLISHED[checkpoint.decoder] for checkpoint in family.checkpoints}
    specs = {name: published.spec for name, published in decoders.items()}
    sections = {
        "Checkpoints": _checkpoints(family),
        "Use": _use(family, decoders[family.checkpoints[0].decoder]),
        "Architecture": architecture(specs),
        "Formats": _formats(decoders),
        "Prompt": _prompt(family),
        "Limits": "\n".join(f"* {limit}" for limit in (*_classes(decoders), *family.limits)),
        "Licence and provenance": _provenance(family),
    }
    body = "\n\n".join(f"## {name}\n\n{text}" for name, text in sections.items())
    return f"---\n{_front_matter(family)}\n---\n\n# {family.title}\n\n{family.intro}\n\n{body}\n"


def _front_matter(family: Family) -> str:
    data = ModelCardData(
        license=family.license,
        license_name=family.license_name,
        license_link=family.license_link,
        language=list(family.language),
        library_name="transformers",
        pipeline_tag="text-generation",
        base_model=family.base_model,
        base_model_relation="finetune" if family.base_model else None,
        tags=list(dict.fromkeys(("glm", "glmlike", *family.tags))),
    )
    return str(data.to_yaml())


def _checkpoints(family: Family) -> str:
    rows = []
    for checkpoint in family.checkpoints:
        published = PUBLISHED[checkpoint.decoder]
        count = published.spec.num_parameters
        rows.append(
            [
                checkpoint.repository,
                f"`{published.format}`",
                f"{count / 1e9:.2f} B",
                f"{2 * count / 1e9:.1f} GB",
                checkpoint.licence,
            ]
        )
    return table(["repository", "layout of its files", "parameters", "in 16 bits", "licence"], rows)


def _classes(decoders: dict[str, Published]) -> list[str]:
    """Which class an Auto class gives, where it is not this package's."""
    layouts = dict.fromkeys(published.format for published in decoders.values())
    return [
        f"`AutoModelForCausalLM` loads files of the layout `{fmt}` as transformers' own `{OWN_CLASSES[fmt]}`; "
        "`glmlike.GlmLikeForCausalLM` is this package's decoder on the same files."
        for fmt in layouts
        if fmt in OWN_CLASSES
    ]


def _use(family: Family, published: Published) -> str:
    loader = "AutoModelForCausalLM"
    source = family.folder
    if published.format in OWN_CLASSES or published.format == "glm-130b":
        loader = "glmlike.GlmLikeForCausalLM"
    imports = ["import glmlike"]
    if family.fills and not family.generations:
        imports.append("from glmlike.infilling import fill")
    names = [name for name in ("AutoModelForCausalLM", "AutoTokenizer") if _needs(name, loader, published)]
    if names:
        imports.append(f"from transformers import {', '.join(names)}")
    lines = [*imports, ""]
    if "AutoTokenizer" in names:
        lines.append(f'tokenizer = AutoTokenizer.from_pretrained("{source}")')
    lines.append(f'model = {loader}.from_pretrained("{source}", dtype="bfloat16")')
    blocks = [lines + _generation(family)]
    if family.fills and family.generations:
        filled = f'print(fill(model, tokenizer, "{family.fills}", max_new_tokens=16).filled_text)'
        blocks.append(["from glmlike.infilling import fill", "", filled])
    target = "glm" if "glm" in published.converts_to and published.format != "glm" else "glmlike"
    copy = f"{source.removesuffix('-sat')}-{target}"
    blocks.append([f'glmlike.convert("{source}", "{copy}", to="{target}")', f'glmlike.verify("{source}", "{copy}")'])
    said = [
        "A folder or a Hub id; no code of the repository is executed:",
        *(["Fill a blank:"] if len(blocks) == 3 else []),
        "Convert it once, every number kept bit for bit, and compare:",
    ]
    fenced = ["```python\n" + "\n".join(block) + "\n```" for block in blocks]
    return "\n\n".join(part for pair in zip(said, fenced, strict=True) for part in pair)


def _needs(name: str, loader: str, published: Published) -> bool:
    return published.format != "glm-130b" if name == "AutoTokenizer" else loader == name


def _generation(family: Family) -> list[str]:
    """The lines that let the model write."""
    if family.generations:
        return [
            'messages = [{"role": "user", "content": "你好"}]',
            "inputs = tokenizer.apply_chat_template("
            'messages, add_generation_prompt=True, return_tensors="pt", return_dict=True)',
            "output = model.generate(**inputs, max_new_tokens=64)",
            'print(tokenizer.decode(output[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True))',
        ]
    if family.completes:
        return [
            f'inputs = tokenizer({family.completes!r}, return_tensors="pt")'.replace("'", '"'),
            "output = model.generate(**inputs, max_new_tokens=64)",
            "print(tokenizer.decode(output[0], skip_special_tokens=True))",
        ]
    return [f'print(fill(model, tokenizer, "{family.fills}", max_new_tokens=16).filled_text)'] if family.fills else []


def _formats(decoders: dict[str, Published]) -> str:
    text = formats(
        {name: published.spec for name, published in decoders.items()},
        {name: published.format for name, published in decoders.items()},
    )
    return f"`glmlike convert SRC DST --to LAYOUT` writes any of these as any other, exactly:\n\n{text}"


def _prompt(family: Family) -> str:
    parts = [family.prompt] if family.prompt else []
    for generation in family.generations:
        named = f" (`{generation}`)" if len(family.generations) > 1 else ""
        parts.append(f"The first turn, and the second after a reply, as the template makes them{named}:")
        parts += [f"```text\n{prompt_of(generation, messages)}\n```" for messages in (_FIRST, _LATER)]
    if family.completes:
        parts.append(f"```text\n{family.completes}```")
    return "\n\n".join(parts)


def prompt_of(generation: str, messages: list[dict[str, Any]]) -> str:
    """The text of a conversation up to where the model goes on."""
    rendered, _ = render_jinja_template(
        conversations=[messages], chat_template=chat_template(generation), add_generation_prompt=True
    )
    return str(rendered[0])


def _provenance(family: Family) -> str:
    papers = ", ".join(f"arXiv {paper}" for paper in family.papers)
    origin = (
        "These weights are their authors'; this package holds none of them, and its own licence (Apache-2.0) "
        "does not "
        "cover them. The terms of a converted copy are those of the original: put its licence file beside it."
    )
    return "\n\n".join([family.terms, origin, *([f"Papers: {papers}."] if papers else [])])
