"""Loading a fused ChatGLM-layout checkpoint on the fly, against transformers' own class on its own layout.

Both files hold the same random weights (a GLM-4 decoder of about 0.57 B parameters, bfloat16). ``load`` is
from_pretrained alone (weights stay lazy views of the file); ``load and use`` also runs one forward pass.
"""

from __future__ import annotations

import tempfile
from functools import partial
from pathlib import Path

from common import child, interleaved, median, report

SPEC = {
    "vocab_size": 151_552,
    "hidden_size": 1024,
    "intermediate_size": 2816,
    "num_hidden_layers": 24,
    "num_attention_heads": 16,
    "num_key_value_heads": 2,
    "head_dim": 64,
}
MAKE = """
import torch, glmlike
from glmlike.spec import DecoderSpec
config = glmlike.GlmLikeConfig.from_spec(DecoderSpec(**argument["spec"]))
torch.manual_seed(0)
model = glmlike.GlmLikeForCausalLM._from_config(config, dtype=torch.bfloat16)
model.save_pretrained(argument["folder"] + "/glmlike")
for fmt in ("chatglm", "glm"):
    glmlike.convert(argument["folder"] + "/glmlike", argument["folder"] + "/" + fmt, to=fmt)
"""
SETUP = """
import glmlike, torch
from transformers import AutoModelForCausalLM, GlmForCausalLM
from glmlike import GlmLikeForCausalLM
"""
LOAD = "model = AutoModelForCausalLM.from_pretrained(argument['folder'], dtype=argument['dtype'])"
USE = LOAD + "\nwith torch.no_grad(): result = float(model(torch.arange(16)[None]).logits.float().abs().max())"


def main(repeats: int = 5) -> None:
    """Measure and write results/load.json."""
    with tempfile.TemporaryDirectory() as folder:
        child(MAKE, argument={"folder": folder, "spec": SPEC})
        rows = []
        for dtype in ("bfloat16", "float32"):
            for what, work in (("load", LOAD), ("load and use", USE)):
                runs = {
                    fmt: partial(child, work, setup=SETUP, argument={"folder": str(Path(folder) / fmt), "dtype": dtype})
                    for fmt in ("glm", "chatglm")
                }
                measured = interleaved(runs, repeats)
                if what == "load and use":
                    values = {row["extra"] for runs_of in measured.values() for row in runs_of}
                    if len(values) != 1:
                        raise RuntimeError(f"the two classes disagree: {values}")
                row = {"dtype": dtype, "what": what}
                for fmt, name in (("glm", "transformers Glm"), ("chatglm", "glmlike, fused file")):
                    row[f"{name}, s"] = median(measured[fmt], "seconds")
                    row[f"{name}, peak MiB"] = median(measured[fmt], "peak_mib")
                row["time ratio"] = row["glmlike, fused file, s"] / row["transformers Glm, s"]
                row["memory ratio"] = row["glmlike, fused file, peak MiB"] / row["transformers Glm, peak MiB"]
                rows.append(row)
    note = f"Median of {repeats} new processes each, interleaved, warm page cache; peak RSS includes mapped file pages."
    report("load", rows, note)


if __name__ == "__main__":
    main()
