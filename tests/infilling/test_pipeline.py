"""``pipeline("glm-infilling")`` is ``fill``, for a string, a list, a dataset or a generator."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from transformers import pipeline

from blanks import byte_level, infilling_model
from glmlike import ConfigError, GlmLikeError
from glmlike.infilling import BlankInfillingPipeline, fill
from specs import SPECS

TEXTS = ["one [MASK] two [sMASK] three", "[gMASK]", "春眠不[MASK]晓", "x [sMASK]", "[MASK][MASK][MASK]"]
OPTIONS: dict[str, Any] = {"max_new_tokens": 4, "do_sample": False}


@pytest.fixture(scope="module")
def parts(make: Callable[..., Any]) -> tuple[Any, Any]:
    return infilling_model(make, "infilling-recipe"), byte_level()


@pytest.fixture(scope="module")
def filler(parts: tuple[Any, Any]) -> Any:
    model, tokenizer = parts
    made = pipeline("glm-infilling", model=model, tokenizer=tokenizer, device="cpu", **OPTIONS)
    assert isinstance(made, BlankInfillingPipeline)
    return made


def same(found: list[dict[str, Any]], expected: list[Any]) -> None:
    assert [result["filled_text"] for result in found] == [result.filled_text for result in expected]
    for one, other in zip(found, expected, strict=True):
        assert [span["span"] for span in one["spans"]] == [span.span for span in other.spans]
        assert one["log_probability"] == pytest.approx(other.log_probability, abs=1e-4)


@pytest.mark.parametrize("batch_size", [1, 2, 8])
def test_every_kind_of_input_gives_what_fill_gives(batch_size: int, filler: Any, parts: tuple[Any, Any]) -> None:
    expected = fill(*parts, TEXTS, **OPTIONS)

    def generator() -> Iterator[str]:
        yield from TEXTS

    same(filler(TEXTS, batch_size=batch_size), expected)
    same(list(filler(generator(), batch_size=batch_size)), expected)
    same([filler(TEXTS[0])], expected[:1])


def test_a_dataset(filler: Any, parts: tuple[Any, Any]) -> None:
    datasets = pytest.importorskip("datasets")
    from transformers.pipelines.pt_utils import KeyDataset

    data = KeyDataset(datasets.Dataset.from_dict({"text": TEXTS}), "text")
    same(list(filler(data, batch_size=3)), fill(*parts, TEXTS, **OPTIONS))


def test_arguments_of_a_call(filler: Any, parts: tuple[Any, Any]) -> None:
    options = {"order": "independent", "max_new_tokens": 2, "num_beams": 2}
    same([filler(TEXTS[0], **options)], [fill(*parts, TEXTS[0], **options)])
    same([filler("to be", append_gmask=True)], [fill(*parts, "to be", append_gmask=True, **OPTIONS)])


def test_mistakes(filler: Any, make: Callable[..., Any]) -> None:
    with pytest.raises(GlmLikeError, match="no blank in it"):
        filler("to be")
    with pytest.raises(GlmLikeError, match="order='up'"):
        filler("[MASK]", order="up")
    with pytest.raises(GlmLikeError, match="num_return_sequences=3 does not go"):
        filler("[MASK]", num_return_sequences=3)
    with pytest.raises(ConfigError, match="fills no blanks"):
        pipeline("glm-infilling", model=make(SPECS["chatglm2"]), tokenizer=byte_level(), device="cpu")


@pytest.mark.parametrize(
    "imports",
    ["import glmlike\nfrom transformers import pipeline", "from transformers import pipeline\nimport glmlike"],
)
def test_a_folder_needs_no_more_than_importing_glmlike(imports: str, parts: tuple[Any, Any], tmp_path: Path) -> None:
    model, tokenizer = parts
    model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    code = (
        f"{imports}\nfiller = pipeline('glm-infilling', model={str(tmp_path)!r}, device='cpu')\n"
        f"print(ascii(filler({TEXTS[0]!r}, max_new_tokens=4, do_sample=False)['filled_text']))\n"
        f"filler.save_pretrained({str(tmp_path / 'saved')!r})"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.strip() == ascii(fill(*parts, TEXTS[0], **OPTIONS).filled_text)
    assert not list((tmp_path / "saved").glob("*.py"))  # no copy of our code for others to run
