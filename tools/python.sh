#!/usr/bin/env bash
# Prints a Python with torch and transformers, for the tests of the Python package: $MOEC_PYTHON, or python3 where it has them, or else a
# virtual environment in the build folder, made at the first time (torch is gigabytes; MOEC_NO_TORCH=1 does without). Where none
# can be had it prints python3, and the tests that miss something are skipped by name.
set -euo pipefail
cd "$(dirname "$0")/.."

has() { "$1" -c 'import torch, transformers' >/dev/null 2>&1; }

plain=${MOEC_PYTHON:-$(command -v python3)}
folder=$(realpath -m "${MOEC_BUILD:-build}/python")
if has "$plain" || [ -n "${MOEC_PYTHON:-}${MOEC_NO_TORCH:-}" ]; then
    echo "$plain"
    exit 0
fi
if ! has "$folder/bin/python"; then
    echo "python.sh: installing torch and transformers into $folder" >&2
    if ! { "$plain" -m venv "$folder" && timeout 300 "$folder/bin/python" -m pip install --quiet torch transformers; } >&2; then
        echo "python.sh: that did not work within 5 minutes; tests that need them are skipped" >&2
        echo "$plain"
        exit 0
    fi
fi
echo "$folder/bin/python"
