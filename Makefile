# Everything happens in $(VENV), which these targets create. Python ≥ 3.11 is all they need; without a C++ compiler
# resampling runs on NumPy, slower, and the set-up says so.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check --quiet
# On Linux, PyPI's torch is the CUDA build (gigabytes). TORCH_INDEX=https://download.pytorch.org/whl/cpu gets the CPU one.
TORCH_INDEX ?=
DEMO ?= demo
DEMO_SIZE ?= 192
BUILD_FILES := pyproject.toml constraints.txt CMakeLists.txt $(wildcard engine/raster/native/*)

SAY_WHETHER_NATIVE := $(BIN)/python -c 'from deeplight.engine.raster import accel; line = accel.missing_module(); \
	line and print("warning:", line)'

.PHONY: demo docs test test-slow wheel check format bench bench-readme bench-gate bench-peers-env clean help

help:
	@echo "make demo    synthetic scene -> deeplight-infer -> $(DEMO)/ (no GPU, no torch)"
	@echo "make test    all default tests      make test-slow  the minutes-long ones      make check   ruff and mypy"
	@echo "make wheel   dist/deeplight-….whl, native module included, for machines without a C++ compiler"
	@echo "make format  apply ruff's format    make bench   all benchmarks, report in bench/out (docs/bench.md)"
	@echo "make docs    the pages of docs/ and of the Python API in build/site"
	@echo "make bench-gate  have stages become slower?    make bench-peers-env  the tools to compare with"

$(BIN)/python:
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed: make PYTHON=python3.12 …")'
	$(PYTHON) -m venv $(VENV)

$(VENV)/.core: $(BIN)/python $(BUILD_FILES)
	$(PIP) install -c constraints.txt -e .
	@$(SAY_WHETHER_NATIVE)
	touch $@

$(VENV)/.test: $(BIN)/python $(BUILD_FILES)
	@echo "installing what the tests need: about 3.1 GB on disk with the CPU build of PyTorch; on Linux PyPI's is the"
	@echo "CUDA build, gigabytes more: TORCH_INDEX=https://download.pytorch.org/whl/cpu takes the other one;"
	@echo "on x86-64 Linux it includes TensorRT for RTX (96 MB to download, NVIDIA's licence), which needs no GPU to build"
	$(if $(TORCH_INDEX),$(PIP) install -c constraints.txt torch --index-url $(TORCH_INDEX))
	$(PIP) install -c constraints.txt -e '.[test]'
	@$(SAY_WHETHER_NATIVE)
	touch $@ $(VENV)/.core

# What the minutes-long tests need beside: Ray, 77 MB to download.
$(VENV)/.slow: $(VENV)/.test
	$(PIP) install -c constraints.txt -e '.[ray]'
	touch $@

# Pages from docs/ and the docstrings, in build/site; a broken link fails.
docs: $(VENV)/.docs .typing/deeplight/api/__init__.py
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

$(VENV)/.docs: $(BIN)/python $(BUILD_FILES)
	$(PIP) install -c constraints.txt -e '.[docs]'
	touch $@

.typing/deeplight/api/__init__.py:
	mkdir -p .typing/deeplight
	for p in kernels engine train export; do ln -sfn ../../$$p .typing/deeplight/$$p; done
	ln -sfn ../../deeplight/api .typing/deeplight/api
	ln -sf ../../deeplight/__init__.py ../../deeplight/py.typed .typing/deeplight/

# 1.2 is the blur that the synthetic sensor has; without --psf it would be taken for VIIRS', which is wider.
demo: $(VENV)/.core
	$(BIN)/deeplight-data synth --out $(DEMO)/scene --lr-size $(DEMO_SIZE) --seed 7 --overwrite
	$(BIN)/deeplight-infer --ntl $(DEMO)/scene/ntl.tif --dmo $(DEMO)/scene/dmo.tif --dem $(DEMO)/scene/dem.tif --psf 1.2 \
		--out $(DEMO)/ntl_hr.tif --tiles 64 --quicklook $(DEMO)/quicklook.png --page $(DEMO)/page.html \
		--report $(DEMO)/run.json --overwrite

wheel: $(BIN)/python
	$(PIP) wheel --no-deps -w dist .
	@ls dist/*.whl

# Each of the JOBS processes computes with one thread.
JOBS ?= 2
test: $(VENV)/.test
	$(BIN)/python -m pytest -n $(JOBS) --dist loadgroup

# The minutes-long tests, which CI runs after the others.
test-slow: $(VENV)/.slow
	$(BIN)/python -m pytest -m 'slow and not soak and not gpu' -o timeout=2400

check: $(VENV)/.test .typing/deeplight/api/__init__.py
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy -p deeplight

format: $(VENV)/.test
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# Results are kept in bench/out: the report shows how rates changed. LAPS=1 is quick and rough.
LAPS ?= 3
bench: $(VENV)/.test
	mkdir -p bench/out
	DEEPLIGHT_BENCH_LAPS=$(LAPS) $(BIN)/python -m pytest bench -o python_files='bench_*.py' -o timeout=1200 --benchmark-only \
		--benchmark-columns=median,iqr,rounds --benchmark-json=bench/out/unfinished.json
	mv bench/out/unfinished.json bench/out/bench-$$(date -u +%Y%m%dT%H%M%S).json
	$(BIN)/python -m bench.report

bench-readme: $(VENV)/.test
	$(BIN)/python -m bench.report --readme README.md

bench-gate: $(VENV)/.test
	$(BIN)/python -m bench.gate

# The tools that DeepLight is compared with, in an environment of their own.
bench-peers-env:
	$(PYTHON) -m venv .venv-peers
	$(if $(TORCH_INDEX),.venv-peers/bin/python -m pip --quiet install -c constraints.txt torch --index-url $(TORCH_INDEX))
	.venv-peers/bin/python -m pip --quiet install -c constraints.txt -r bench/peers/requirements.txt

clean:
	rm -rf $(VENV) build dist $(DEMO) .typing .pytest_cache .mypy_cache .ruff_cache
