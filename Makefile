# Two commands: `make demo` runs the first experiment to its report, `make test` checks everything a CPU can.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
SOURCES := focus_lab tests

.DEFAULT_GOAL := help
.PHONY: help install demo test test-fast lint format reference

help:
	@echo "make demo       install, then run experiments/keep_ratio.yaml to its report (about 10 minutes)"
	@echo "make test       install, then lint, types, layers and all tests (about 10 minutes)"
	@echo "make test-fast  the tests that start neither Ray nor MLflow (about 3 minutes)"
	@echo "make lint       ruff, mypy, import contract, spelling"
	@echo "make format     ruff's formatter and safe fixes"
	@echo "make reference  write the field reference into experiments/README.md"

install: $(INSTALLED)

# uv installs; where there is none, the venv gets its own.
$(INSTALLED): pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	command -v uv >/dev/null || test -x $(BIN)/uv || $(BIN)/python -m pip install --quiet uv
	PATH="$$PATH:$(abspath $(BIN))" uv pip install --quiet --python $(BIN)/python \
		--constraint constraints.txt --group dev --editable .
	touch $@

demo: $(INSTALLED)
	$(BIN)/focus-lab sweep experiments/keep_ratio.yaml

test: lint
	$(BIN)/python -m pytest

test-fast: $(INSTALLED)
	$(BIN)/python -m pytest -m "not slow and not gpu"

lint: $(INSTALLED)
	$(BIN)/ruff check $(SOURCES)
	$(BIN)/ruff format --check $(SOURCES)
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/codespell $(SOURCES) README.md CHANGELOG.md experiments

format: $(INSTALLED)
	$(BIN)/ruff format $(SOURCES)
	$(BIN)/ruff check --fix $(SOURCES)

reference: $(INSTALLED)
	$(BIN)/python -m focus_lab.specs.reference experiments/README.md
