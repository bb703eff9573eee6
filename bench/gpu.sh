#!/usr/bin/env bash
# Checks the kernels on a GPU, then measures them: bench/gpu.sh NAME → bench/results/gpu-NAME-DATE.json and a table.
# Needs python3 with torch, Triton and pytest; neither rasterio nor the native module; installs nothing.
set -euo pipefail
cd "$(dirname "$0")/.."
name=${1:?usage: bench/gpu.sh NAME}
python=${PYTHON:-python3}
out=${OUT:-bench/results}

# the folders as the package deeplight, before whatever is installed
view=$(mktemp -d)
trap 'rm -rf "$view"' EXIT
mkdir "$view/deeplight"
for folder in kernels engine train export; do ln -s "$PWD/$folder" "$view/deeplight/$folder"; done
export PYTHONPATH="$view:$PWD"
unset TRITON_INTERPRET

# no speed without a green gate; test_align compares with the engine and needs rasterio
files=(tests/kernels/test_fuse.py tests/kernels/test_upsample.py tests/kernels/test_refine.py)
if "$python" -c 'import rasterio' 2>/dev/null; then files+=(tests/kernels/test_align.py tests/kernels/test_library.py); fi
"$python" -m pytest -m gpu -q -p no:cacheprovider -o addopts=--import-mode=importlib -o timeout= "${files[@]}"

mkdir -p "$out"
"$python" -m bench.gpu_measure --out "$out/gpu-$name-$(date -u +%Y%m%d).json"
