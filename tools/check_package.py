"""Build the sdist and the wheel, check what is in them, install the wheel into a clean environment and run it.

usage: check_package.py FOLDER [--dependencies FOLDER]

The environment is new and has nothing but the wheel in it; the packages that glmlike depends on are read from
``--dependencies`` (default: the site-packages of the running Python), so that nothing is downloaded a second time.
An editable install there stays invisible: Python obeys .pth files of an environment's own site-packages only.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import zipfile
from email import message_from_bytes
from pathlib import Path

ROOT = Path(__file__).parents[1]
LARGEST = 10_000_000
"""Bytes of a wheel or an sdist."""


def build(source: Path, folder: Path, target: str) -> Path:
    """The one file that hatchling writes to the new ``folder``, for ``target`` ("wheel" or "sdist")."""
    command = [sys.executable, "-m", "hatchling", "build", "-t", target, "-d", str(folder)]
    subprocess.run(command, cwd=source, check=True, capture_output=True)
    (built,) = folder.iterdir()
    return built


def unpacked(sdist: Path, folder: Path) -> Path:
    """The source tree in an sdist, unpacked below ``folder``."""
    with tarfile.open(sdist) as archive:
        archive.extractall(folder, filter="data")
    (tree,) = folder.iterdir()
    return tree


def files_of(path: Path) -> dict[str, int]:
    """Every file in a wheel or an sdist and its size; an sdist's without the folder that all are in."""
    if path.suffix == ".whl":
        with zipfile.ZipFile(path) as wheel:
            return {entry.filename: entry.file_size for entry in wheel.infolist()}
    with tarfile.open(path) as archive:
        return {member.name.partition("/")[2]: member.size for member in archive if member.isfile()}


def version_of(wheel: Path) -> str:
    """The version that the wheel's metadata says."""
    with zipfile.ZipFile(wheel) as archive:
        (name,) = (name for name in archive.namelist() if name.endswith(".dist-info/METADATA"))
        return str(message_from_bytes(archive.read(name))["Version"])


def install(wheel: Path, environment: Path, dependencies: Path) -> Path:
    """A new environment with the wheel, which sees ``dependencies``; its Python."""
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(environment)], check=True)
    python = environment / ("Scripts" if os.name == "nt" else "bin") / "python"
    pip = [sys.executable, "-m", "pip", "--python", str(python), "install", "--quiet", "--no-deps", "--no-index"]
    subprocess.run([*pip, str(wheel)], check=True)
    command = [str(python), "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"]
    found = subprocess.run(command, check=True, capture_output=True, text=True)
    Path(found.stdout.strip(), "dependencies.pth").write_text(f"{dependencies}\n", encoding="utf8")
    return python


def run(python: Path, *arguments: str, cwd: Path) -> str:
    """What a command of an environment prints, run outside the repository and without PYTHONPATH."""
    variables = {key: value for key, value in os.environ.items() if key not in ("PYTHONPATH", "PYTHONHOME")}
    variables |= {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
    done = subprocess.run(arguments, cwd=cwd, env=variables, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{' '.join(arguments)}: exit code {done.returncode}\n{done.stdout}{done.stderr}")
    return done.stdout


_FILL = """
from glmlike.data import TINY
from transformers import pipeline
print(pipeline("glm-infilling", model=str(TINY), dtype="float32")("the [MASK] and the earth")["filled_text"])
"""


def try_out(python: Path, cwd: Path) -> dict[str, str]:
    """What the installed package says of itself: where it is, its version three ways, and a blank it filled."""
    script = python.parent / ("glmlike.exe" if os.name == "nt" else "glmlike")
    return {
        "file": run(python, str(python), "-c", "import glmlike; print(glmlike.__file__)", cwd=cwd).strip(),
        "script": run(python, str(script), "--version", cwd=cwd).strip(),
        "module": run(python, str(python), "-m", "glmlike", "--version", cwd=cwd).strip(),
        "filled": run(python, str(python), "-c", _FILL, cwd=cwd).strip(),
    }


def build_all(folder: Path) -> tuple[Path, Path]:
    """The sdist and the wheel of this tree, in the new ``folder``; the sdist makes the same wheel, and both are small.

    Raises:
        SystemExit: a check failed; the sentence says which.
    """
    folder = folder.resolve()  # builds run in folders of their own
    if folder.exists():
        raise SystemExit(f"{folder} exists: pass a folder that does not.")
    sdist, wheel = build(ROOT, folder / "sdist", "sdist"), build(ROOT, folder / "wheel", "wheel")
    again = build(unpacked(sdist, folder / "source"), folder / "again", "wheel")
    for built in (sdist, wheel):
        require_small(built)
    if (again.name, files_of(again)) != (wheel.name, files_of(wheel)):
        different = sorted(files_of(again).items() ^ files_of(wheel).items())
        raise SystemExit(f"the wheel made from the sdist is another than the tree's: {different[:5]}.")
    return sdist, wheel


def require_small(built: Path) -> None:
    """Raise SystemExit for a file of more than :data:`LARGEST` bytes, naming what makes it large."""
    if built.stat().st_size > LARGEST:
        largest = sorted(files_of(built).items(), key=lambda entry: -entry[1])[:3]
        raise SystemExit(f"{built}: expected at most {LARGEST:,} bytes; the largest files: {largest}.")


def require_runs(wheel: Path, folder: Path, dependencies: Path) -> dict[str, str]:
    """What :func:`try_out` finds of the wheel, installed into a new environment in ``folder``.

    Raises:
        SystemExit: a command failed, said another version, or ran other code than the wheel's.
    """
    folder = folder.resolve()
    found = try_out(install(wheel, folder / "environment", dependencies), folder)
    expected = f"glmlike {version_of(wheel)}"
    if (found["script"], found["module"]) != (expected, expected):
        raise SystemExit(f"expected {expected!r} from the installed commands, found {found}.")
    if not Path(found["file"]).is_relative_to(folder / "environment"):
        raise SystemExit(f"the wheel was not what ran: glmlike was imported from {found['file']}.")
    return found


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="a folder to make; it keeps sdist/ and wheel/")
    parser.add_argument("--dependencies", type=Path, default=Path(sysconfig.get_path("purelib")))
    chosen = parser.parse_args(arguments)
    sdist, wheel = build_all(chosen.folder)
    for built in (sdist, wheel):
        print(f"{built.name}: {len(files_of(built))} files, {built.stat().st_size:,} bytes")
    for name, value in require_runs(wheel, chosen.folder, chosen.dependencies).items():
        print(f"{name}: {value}")
    for scrap in ("source", "again", "environment"):
        shutil.rmtree(chosen.folder / scrap)


if __name__ == "__main__":
    main()
