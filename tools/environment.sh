#!/bin/sh
# Make a Python environment that holds what Pipfile.lock says, in the versions and with the hashes it says.
#
#   tools/environment.sh FOLDER CATEGORY...      for example: .venv packages learner
#
# PYTHON names the interpreter (default python3.11). pipenv lives in an environment of its own inside FOLDER, so that
# its needs and ours never meet.
set -eu

PYTHON=${PYTHON:-python3.11}
PIPENV_VERSION=2026.10.3
TORCH_CPU_INDEX=https://download.pytorch.org/whl/cpu

folder=$1
shift
categories=$*

"$PYTHON" -c 'import sys; sys.exit(sys.version_info[:2] != (3, 11))' 2>/dev/null || {
    echo "Pigeonhole needs Python 3.11, and '$PYTHON' is not that; name one with PYTHON=..." >&2
    exit 1
}
echo "Setting up $folder for: $categories. This happens once and takes a minute or more."
[ -x "$folder/bin/pip" ] || "$PYTHON" -m venv "$folder"
[ -x "$folder/pipenv/bin/pipenv" ] || {
    "$folder/bin/python" -m venv "$folder/pipenv"
    "$folder/pipenv/bin/pip" install --quiet --disable-pip-version-check "pipenv==$PIPENV_VERSION"
}

# torch first, from its CPU wheels: without it, whatever depends on torch brings gigabytes of CUDA along. Where plain
# pip does not know the CPU build, PyTorch's own index is asked, for this one package only.
case " $categories " in *" learner "*)
    torch=$("$folder/bin/python" -c 'import json; print("torch" + json.load(open("Pipfile.lock"))["learner"]["torch"]["version"])')
    "$folder/bin/python" -c "import importlib.metadata as m, sys; sys.exit('torch==' + m.version('torch') != '$torch')" 2>/dev/null ||
        "$folder/bin/pip" install --quiet --disable-pip-version-check --no-deps "$torch" 2>/dev/null ||
        "$folder/bin/pip" install --disable-pip-version-check --no-deps --extra-index-url "$TORCH_CPU_INDEX" "$torch"
esac

VIRTUAL_ENV=$(cd "$folder" && pwd) PIPENV_VERBOSITY=-1 PIPENV_NOSPIN=1 \
    "$folder/pipenv/bin/pipenv" sync --categories "$categories"
