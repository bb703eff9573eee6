#!/usr/bin/env bash
# Checks the kernels on a GPU, then measures them: bench/gpu.sh NAME → bench/results/gpu-NAME-DATE.json and .md.
# Needs a Python ≥ 3.11 with torch, Triton and pytest; neither rasterio nor the native module; installs nothing.
# PYTHON: the interpreter (python3). OUT: the folder of the results (bench/results). Exit 2: nothing to measure on.
set -euo pipefail
cd "$(dirname "$0")/.."
name=${1:?usage: bench/gpu.sh NAME}
python=${PYTHON:-python3}
out=${OUT:-bench/results}

"$python" - <<'CHECK' || exit 2
import sys
from importlib.util import find_spec

missing = [name for name in ("torch", "triton", "numpy", "pytest") if find_spec(name) is None]
if missing:
    sys.exit(f"gpu.sh: {sys.executable} has no {', '.join(missing)}; set PYTHON to one that has")
import torch

if not torch.cuda.is_available():
    sys.exit(f"gpu.sh: PyTorch {torch.__version__} finds no CUDA GPU on this machine, so there is nothing to measure")
CHECK

# the folders as the package deeplight, before whatever is installed
view=$(mktemp -d)
trap 'rm -rf "$view"' EXIT
mkdir "$view/deeplight"
for part in kernels engine train export; do ln -s "$PWD/$part" "$view/deeplight/$part"; done
ln -s "$PWD/deeplight/__init__.py" "$view/deeplight/"
export PYTHONPATH="$view:$PWD"
unset TRITON_INTERPRET

# no speed without a green gate
"$python" -m pytest tests/kernels -m gpu -q -p no:cacheprovider -o addopts=--import-mode=importlib -o timeout=

mkdir -p "$out"
"$python" -m bench.gpu_measure --out "$out/gpu-$name-$(date -u +%Y%m%d).json"
