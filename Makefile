# Every target does all its own set-up: a virtual environment in .venv with pinned packages.

PYTHON ?= python3
BIN := .venv/bin
INSTALLED := .venv/.installed
LLAMA_STEPS ?= 100
DEMO_STEPS ?= 200

export PIP_DISABLE_PIP_VERSION_CHECK := 1

.PHONY: demo test lint bench gpu site release-check coverage clean

demo: $(INSTALLED)
	$(BIN)/unitscale compare --steps $(DEMO_STEPS) --width 64 --depth 2 --out demo --resume
	$(BIN)/unitscale compare --model llama --width 64 --depth 2 --steps $(LLAMA_STEPS) \
	  --recipes fp32,fp8-none,fp8 --out demo/llama --resume

test: $(INSTALLED)
	$(BIN)/python -m pytest -q -n auto --maxprocesses 8 --dist worksteal

lint: $(INSTALLED)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

bench: $(INSTALLED)
	$(BIN)/python benchmarks/exhaustive_float32.py --small
	$(BIN)/python benchmarks/op_scales.py
	$(BIN)/python benchmarks/suite.py

# Tests marked gpu, a linear layer and a Llama in BF16 and FP8, in one table. Without a GPU:
# make gpu GPU="--device cpu --quick"
gpu: $(INSTALLED)
	$(BIN)/python benchmarks/gpu_table.py $(GPU)

# The documentation, in build/site; it is read from the disk, and nothing is fetched.
site: $(INSTALLED)
	$(BIN)/pip install -q -c constraints.txt -e '.[docs]'
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

# The wheel and the sdist, built and installed in clean environments, without extras and with each.
release-check: $(INSTALLED)
	$(BIN)/pip install -q -c constraints.txt -e '.[release]'
	$(BIN)/python .ci/release.py

# Which lines no test runs. Compiled code is not seen, and it takes about twice the time.
coverage: $(INSTALLED)
	$(BIN)/pip install -q -c constraints.txt -e '.[measure]'
	$(BIN)/python -m pytest -q -n auto --maxprocesses 8 --cov --cov-report=term

clean:
	rm -rf .venv build dist demo .mypy_cache .pytest_cache .ruff_cache

# torch first and alone: with torch present, no later step can pull another build of it.
$(INSTALLED): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; v = sys.version.split()[0]; sys.version_info >= (3, 11) or \
	  sys.exit(f"unitscale: {sys.executable} is Python {v}, but 3.11 or newer is needed; run: make PYTHON=/path/to/python3.11")'
	$(PYTHON) -m venv .venv
	$(BIN)/pip install -q -c constraints.txt torch
	$(BIN)/pip install -q -c constraints.txt -e '.[dev,all]'
	@touch $@
