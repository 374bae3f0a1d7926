# `make demo` and `make test` work on a fresh machine with Python 3.11 or newer, pip and make.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/pip --disable-pip-version-check

.PHONY: demo test check emulated format docs clean

## Draw scenes, train a captioner on them, caption new ones.
demo: $(VENV)/.demo
	$(BIN)/regard demo --out demo

## Every check and test.
test: $(VENV)/.dev
	$(MAKE) check
	$(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder

## Format, lint and types, as the pre-commit configuration has them.
check: $(VENV)/.dev
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

## The tests of the bf16 kernels for processors without bf16, with plain loops for its instructions.
emulated: $(VENV)/.dev
	for unit in "" 1; do \
	    HOME=$$(mktemp -d) MATRIX_UNIT=$$unit REGARD_COMPILER=$(CURDIR)/tests/emulation/c++ \
	    $(BIN)/python -m pytest -n 2 tests/test_native.py tests/test_fast.py tests/test_decoders.py \
	        tests/test_heads.py || exit 1; \
	done

format: $(VENV)/.dev
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

## The documentation, as pages in site/.
docs: $(VENV)/.dev
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

clean:
	rm -rf $(VENV) demo site build dist .mypy_cache .ruff_cache .pytest_cache

$(BIN)/python:
	$(PYTHON) -m venv $(VENV)

# torch first and alone, from the constraints: unpinned, it brings gigabytes that are not used here.
$(VENV)/.torch: constraints.txt | $(BIN)/python
	$(PIP) install -q -c constraints.txt torch
	touch $@

$(VENV)/.demo: pyproject.toml constraints.txt $(VENV)/.torch
	$(PIP) install -q -c constraints.txt -e ".[train,report]"
	touch $@

$(VENV)/.dev: pyproject.toml constraints.txt $(VENV)/.torch
	$(PIP) install -q -c constraints.txt -e ".[dev]"
	touch $@
