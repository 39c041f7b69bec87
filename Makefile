# Two commands: `make demo` runs the first experiment to its report, `make test` checks everything a CPU can.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
SOURCES := focus_lab service tests csrc setup.py
OP := focus_lab/ops/focus_lab_ops.so
CSRC := $(shell find csrc -type f -not -name '*.pyc')
# Two processes already halve the time; more only load torch more often.
SIDE_BY_SIDE := --numprocesses 2

.DEFAULT_GOAL := help
.PHONY: help install op demo test test-fast test-cluster chaos gpu lint format reference

help:
	@echo "make demo       install, then run experiments/keep_ratio.yaml to its report (about 7 minutes)"
	@echo "make test       install, then lint, types, layers and all tests (about 25 minutes)"
	@echo "make test-fast  the tests that start neither Ray nor MLflow (about 3 minutes)"
	@echo "make test-cluster  several machines, and the compose file's services (about 6 minutes, root)"
	@echo "make chaos      30 sweeps in which anything is killed at any moment (about 50 minutes)"
	@echo "make gpu        on a machine with a GPU: its tests, measurements and experiments [DATA=FOLDER of Aquarium]"
	@echo "make op         build the compiled operators anew"
	@echo "make lint       ruff, mypy, import contract, spelling"
	@echo "make format     ruff's formatter and safe fixes"
	@echo "make reference  write the field reference into experiments/README.md"

install: $(INSTALLED) $(OP)

# uv installs; where there is none, the venv gets its own.
$(INSTALLED): pyproject.toml constraints.txt setup.py
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	command -v uv >/dev/null || test -x $(BIN)/uv || $(BIN)/python -m pip install --quiet uv
	PATH="$$PATH:$(abspath $(BIN))" uv pip install --quiet --python $(BIN)/python \
		--constraint constraints.txt --group dev --all-extras -r pyproject.toml
	PATH="$$PATH:$(abspath $(BIN))" FOCUS_LAB_OPS=off uv pip install --quiet --python $(BIN)/python \
		--no-deps --no-build-isolation --editable .
	touch $@

# The install above could build it as well; a rule of its own builds it anew when a source changes.
$(OP): $(INSTALLED) $(CSRC)
	$(BIN)/python csrc/build.py
	test ! -e $@ || touch $@

op: $(OP)

demo: install
	$(BIN)/focus-lab sweep experiments/keep_ratio.yaml

test: lint
	$(BIN)/python -m pytest -m "not slow" $(SIDE_BY_SIDE)
	$(BIN)/python -m pytest -m "slow and not alone and not cluster" $(SIDE_BY_SIDE) --dist loadfile
	$(BIN)/python -m pytest -m "alone"

test-fast: install
	$(BIN)/python -m pytest -m "not slow and not gpu" $(SIDE_BY_SIDE)

# Several machines, and every service of the compose file, in network namespaces; needs root.
test-cluster: install
	$(BIN)/python -m pytest -m cluster

# 30 sweeps in which anything is killed at any moment; about 50 minutes.
chaos: install
	FOCUS_LAB_CHAOS_RUNS=30 $(BIN)/python -m pytest tests/e2e/test_chaos.py

# All that needs a GPU; what it measures is in runs/gpu. DATA names the Aquarium data set in COCO format.
gpu: install
	mkdir -p runs/gpu
	FOCUS_LAB_CUDA=on $(BIN)/python csrc/build.py
	$(BIN)/python -m pytest -m gpu
	$(BIN)/focus-lab bench ops --device cuda --json > runs/gpu/ops.json
	$(BIN)/focus-lab bench train experiments/shapes_r50.yaml --set training.precision=bf16 --json > runs/gpu/train.json
	$(BIN)/focus-lab sweep experiments/keep_ratio_large.yaml
	$(if $(DATA),$(BIN)/focus-lab sweep experiments/aquarium_keep_ratio.yaml --set data.root=$(DATA))

lint: install
	$(BIN)/ruff check $(SOURCES)
	$(BIN)/ruff format --check $(SOURCES)
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/codespell $(SOURCES) README.md CHANGELOG.md experiments

format: install
	$(BIN)/ruff format $(SOURCES)
	$(BIN)/ruff check --fix $(SOURCES)

reference: install
	$(BIN)/python -m focus_lab.specs.reference experiments/README.md
