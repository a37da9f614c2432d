"""Run transformers' own test-suite on our classes: ``python tests/conformance/run.py [--write]``.

The suite is not in the wheel and is never committed here. It is taken from the folder that ``TRANSFORMERS_TESTS`` names
(``tests`` of a clone at the installed version: everything runs), or else from the installed version's source package on
the package index, which holds the common tests but not those of ``generate`` and of exporting; four modules that it
imports and lacks are stood in for.

``--write`` puts the outcome in README.md; any other argument goes to pytest.
"""

from __future__ import annotations

import argparse
import collections
import os
import re
import subprocess
import sys
import tarfile
import xml.etree.ElementTree as ElementTree
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path

HERE = Path(__file__).parent
CACHE = HERE.parents[1] / ".cache" / "transformers-suite"
# Modules the source package's tests import and do not bring; the tests of generate and of exporting are not in it.
STANDINS = {
    "exporters/test_export.py": "class ExportTesterMixin: pass\n",
    "generation/test_utils.py": "class GenerationTesterMixin: pass\n",
    "utils/test_configuration_utils.py": (
        "config_common_kwargs = {'output_hidden_states': True, 'chunk_size_feed_forward': 3, 'dtype': 'float16',\n"
        "    'problem_type': 'regression', 'id2label': {0: 'yes', 1: 'no'}, 'label2id': {'yes': 0, 'no': 1}}\n"
    ),
    "distributed_testing_utils.py": "def __getattr__(name): raise ImportError(name)\n",
}
MARKERS = ("generate", "flash_attn_test", "flash_attn_3_test", "flash_attn_4_test", "all_flash_attn_test")
MARKERS += ("torch_compile_test", "torch_export_test", "is_training_test", "accelerate_tests", "bitsandbytes")


def suite() -> Path:
    """A folder with the suite as the package ``tests``, and ``src/transformers`` beside it as the tests expect."""
    given = os.environ.get("TRANSFORMERS_TESTS")
    if given:
        if not (Path(given) / "test_modeling_common.py").exists():
            raise SystemExit(
                f"TRANSFORMERS_TESTS={given}: no test_modeling_common.py there; name a clone's tests folder."
            )
        return Path(given).resolve().parent
    root = CACHE / version("transformers")
    if not (root / "src").exists():
        _unpack(root)
    return root


def _unpack(root: Path) -> None:
    root.mkdir(parents=True, exist_ok=True)
    pinned = f"transformers=={version('transformers')}"
    pip = [sys.executable, "-m", "pip", "download", "--quiet", "--no-binary", ":all:", "--no-deps", "--dest", str(root)]
    if subprocess.run([*pip, pinned], check=False).returncode:
        raise SystemExit(
            f"{pinned}: its source package could not be downloaded; set TRANSFORMERS_TESTS to a clone's tests."
        )
    (archive,) = root.glob("*.tar.gz")
    with tarfile.open(archive) as file:
        for member in file.getmembers():
            inside = re.fullmatch(r"[^/]+/(tests/test_\w+\.py)", member.name)
            if inside and member.isfile():
                content = file.extractfile(member)
                assert content is not None
                _write(root / inside[1], content.read().decode())
    archive.unlink()
    for name, text in STANDINS.items():
        if not (root / "tests" / name).exists():
            _write(root / "tests" / name, text)
    for folder in [root / "tests", *(path.parent for path in (root / "tests").rglob("*.py"))]:
        (folder / "__init__.py").touch()
    import transformers

    (root / "src").mkdir()
    (root / "src" / "transformers").symlink_to(Path(transformers.__file__).parent)


def _write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf8")


def run(extra: Sequence[str]) -> tuple[int, Path]:
    """pytest's exit code and its report."""
    root = suite()
    report = CACHE / "report.xml"
    report.parent.mkdir(parents=True, exist_ok=True)
    configuration = CACHE / "pytest.ini"
    configuration.write_text("[pytest]\nmarkers =\n" + "".join(f"    {marker}: of the suite\n" for marker in MARKERS))
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-c", str(configuration)]
    command += ["-n", "auto", "--maxprocesses", "4"]  # a process a core, each of one thread
    command += ["--rootdir", str(HERE), "--junitxml", str(report), str(HERE / "suite_on_our_classes.py"), *extra]
    environment = {**os.environ, "PYTHONPATH": str(root), "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
    environment["OMP_NUM_THREADS"] = "1"
    return subprocess.run(command, env=environment, cwd=root, check=False).returncode, report


def outcome(report: Path) -> str:
    """Counts, and every reason for a skip with the number of tests it stopped, as Markdown."""
    cases = list(ElementTree.parse(report).getroot().iter("testcase"))
    reasons: collections.Counter[str] = collections.Counter()
    failed = 0
    for case in cases:
        failed += case.find("failure") is not None or case.find("error") is not None
        skipped = case.find("skipped")
        if skipped is not None:
            reasons[re.sub(r"\s+", " ", skipped.get("message") or "").strip()] += 1
    passed = len(cases) - failed - reasons.total()
    lines = [
        f"transformers {version('transformers')}: {passed} passed, {failed} failed, {reasons.total()} skipped.",
        "",
    ]
    lines += ["| skipped | reason the suite or our tester gives |", "|---|---|"]
    lines += [f"| {count} | {reason.replace('|', '/')} |" for reason, count in reasons.most_common()]
    return "\n".join(lines)


def main() -> int:
    """Run, and with ``--write`` record the outcome between the marks in README.md."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write", action="store_true", help="write the outcome to README.md")
    options, extra = parser.parse_known_args()
    code, report = run(extra)
    if options.write and report.exists():
        readme = HERE / "README.md"
        block = f"<!-- outcome -->\n{outcome(report)}\n<!-- /outcome -->"
        text = re.sub(
            r"<!-- outcome -->.*<!-- /outcome -->", lambda _: block, readme.read_text("utf8"), flags=re.DOTALL
        )
        readme.write_text(text, encoding="utf8")
    return code


if __name__ == "__main__":
    sys.exit(main())
