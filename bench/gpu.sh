#!/usr/bin/env bash
# What one GPU does, in stages of at most five minutes together:
#   bench/gpu.sh NAME [--wheels DIR] [options of python -m bench.gpu]
# → bench/results/gpu-NAME-DATE/: a JSON file of each stage, written as it goes, and table.md. Stages: facts, kernels,
# network, engine, export; --only STAGE,… runs some, --seconds S gives them more or less time. A stage that fails does
# not stop the next. Gigabytes of scenes lie in its folder scratch/ while it runs. --device cpu among the options tries
# the stages out where there is no GPU.
# Needs a Python ≥ 3.11 with torch, Triton and NumPy. --wheels: a folder of wheels that are put beside the view of the
# sources below, not into the Python; docs/bench.md lists those without which the engine's stage and export are left out.
# PYTHON: the interpreter (python3). OUT: the folder of the results (bench/results). Exit 1: a stage failed; 2: nothing
# to measure on, or wrong options. What is left out for want of packages or time is named, and changes no status.
set -euo pipefail
caller=$PWD
cd "$(dirname "$0")/.."
# a folder as the caller names it, who need not be at the root
of_caller() { case $1 in /*) echo "$1" ;; *) echo "$caller/$1" ;; esac; }
refused() {
    echo "gpu.sh: $1" >&2
    exit 2
}
[ $# -gt 0 ] || refused "give a name for the results: bench/gpu.sh NAME [--wheels DIR] [options of python -m bench.gpu]"
name=$1
shift
wheels=
if [ "${1:-}" = --wheels ]; then
    wheels=${2:-}
    [ -n "$wheels" ] || refused "--wheels needs a folder that holds *.whl files"
    wheels=$(of_caller "$wheels")
    shift 2
fi
python=${PYTHON:-python3}
case $python in */*) python=$(of_caller "$python") ;; esac
out=bench/results
[ -z "${OUT:-}" ] || out=$(of_caller "$OUT")

"$python" - "$name" "$wheels" "$@" <<'CHECK' || exit 2
import re
import sys
from importlib.util import find_spec
from pathlib import Path

name, wheels, *options = sys.argv[1:]
if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", name):
    sys.exit(f"gpu.sh: {name!r} is not a plain name: use letters, digits, dots, hyphens and underscores")
if wheels and not list(Path(wheels).glob("*.whl")):
    sys.exit(f"gpu.sh: --wheels {wheels} has no *.whl files: give the folder that holds them")
on_cpu = "cpu" in options or "--device=cpu" in options
needed = ("torch", "numpy") if on_cpu else ("torch", "triton", "numpy")
missing = [name for name in needed if find_spec(name) is None]
if missing:
    sys.exit(f"gpu.sh: {sys.executable} has no {', '.join(missing)}; set PYTHON to one that has")
import torch

if not on_cpu and not torch.cuda.is_available():
    sys.exit(f"gpu.sh: PyTorch {torch.__version__} finds no CUDA GPU on this machine, so there is nothing to measure")
CHECK

# the folders as the package deeplight, before whatever is installed; the engine is a copy, for its native module
view=$(mktemp -d)
trap 'rm -rf "$view"' EXIT
mkdir "$view/deeplight"
for part in kernels train export; do ln -s "$PWD/$part" "$view/deeplight/$part"; done
cp -r engine "$view/deeplight/engine"
for part in "$PWD"/deeplight/*; do ln -s "$part" "$view/deeplight/"; done
export PYTHONPATH="$view:$view/wheels:$PWD"
# or `python -m` would put this folder first, whose deeplight/ is not the whole package
export PYTHONSAFEPATH=1
unset TRITON_INTERPRET
if [ -n "$wheels" ]; then
    "$python" -m pip --quiet install --no-index --no-deps --target "$view/wheels" "$wheels"/*.whl ||
        echo "gpu.sh: the wheels do not fit this Python; what needs them is left out"
fi
if ! { cmake -S . -B "$view/build" -DPython_EXECUTABLE="$(command -v "$python")" >"$view/build.log" 2>&1 &&
    cmake --build "$view/build" -j >>"$view/build.log" 2>&1 &&
    cp "$view"/build/_native*.so "$view/deeplight/engine/raster/" 2>>"$view/build.log"; }; then
    echo "gpu.sh: the native module was not built (it needs CMake, a C++ compiler, Python's headers and nanobind);" \
        "NumPy reads instead"
fi

"$python" -m bench.gpu --out "$out/gpu-$name-$(date -u +%Y%m%d)" "$@"
