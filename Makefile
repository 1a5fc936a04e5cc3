# Every chore of the project. `make` alone lists them.

PYTHON ?= python3
VENV ?= .venv
ARGS ?=

BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check
STAMP := $(VENV)/.setup-stamp
DEMO_VENV ?= .venv-demo
DEMO_STAMP := $(DEMO_VENV)/.setup-stamp

.DEFAULT_GOAL := help
.PHONY: help setup quickstart test test-slow lint types format bench gpu-check audit docs figures demo test-demo test-peers clean

help:  ## List the chores
	@echo "usage: make CHORE [PYTHON=python3.11] [ARGS='options of the chore']"
	@echo
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  %-12s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

setup: $(STAMP)  ## Create .venv and install the package with its pinned dependencies (redone when these change)

$(STAMP): pyproject.toml constraints.txt
	@test -x $(BIN)/python || $(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || { \
	  echo "make setup: Python 3.10 or newer is needed, but '$(PYTHON)' is $$($(PYTHON) --version 2>&1)." >&2; \
	  echo "Name another interpreter, for example: make setup PYTHON=python3.11" >&2; \
	  exit 1; }
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(PIP) install -c constraints.txt torch
	$(PIP) install -c constraints.txt -e '.[dev,docs]'
	@touch $@

quickstart: setup  ## Train a small model on the embedded corpus: no download, no GPU
	$(BIN)/accelerate launch --num_processes 1 --num_machines 1 --mixed_precision no --dynamo_backend no \
	  recipes/train_ptb.py --config recipes/configs/quickstart.yaml $(ARGS)

test: lint types  ## Lint, check types and run the fast tests: what CI runs
	HF_HUB_OFFLINE=1 $(BIN)/python -m pytest --numprocesses auto $(ARGS)

test-slow: setup  ## Run the slow tests (those on real corpora need LATENT_EBM_DATA)
	HF_HUB_OFFLINE=1 $(BIN)/python -m pytest -m slow --numprocesses auto $(ARGS)

lint: setup  ## Check style, formatting and the import rules; change nothing
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports

types: setup  ## Check types
	$(BIN)/mypy

format: setup  ## Fix style and formatting in place
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: setup  ## Run the benchmarks (ARGS=--write keeps their tables in benchmarks/RESULTS.md)
	@$(BIN)/python -c 'import torchebm' 2>/dev/null || $(PIP) install -c constraints.txt -e '.[bench]' || \
	  echo "make bench: torchebm could not be installed; the comparison with it is left out" >&2
	$(BIN)/python benchmarks/run.py $(ARGS)

gpu-check: setup  ## Check a GPU and measure it, in at most 8 minutes (ARGS='--ptb FOLDER --output benchmarks/GPU.md')
	@$(BIN)/python -c 'import torchebm' 2>/dev/null || $(PIP) install -c constraints.txt -e '.[bench]' || \
	  echo "make gpu-check: torchebm could not be installed; the comparison with it is left out" >&2
	$(BIN)/python benchmarks/gpu_check.py $(ARGS)

audit: setup  ## Look up known vulnerabilities of the pinned dependencies (needs PyPI)
	@$(BIN)/python -c 'import pip_audit' 2>/dev/null || $(PIP) install pip-audit
	$(BIN)/python -m pip_audit --strict --disable-pip --no-deps -r constraints.txt $(ARGS)

docs: setup  ## Build the documentation site into build/site, without a warning, and check every link
	$(BIN)/python docs/check_links.py
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

figures: setup  ## Draw the figures of the documentation (ARGS='--model FOLDER' for that of a model, too)
	$(BIN)/python docs/figures.py $(ARGS)

$(DEMO_STAMP): pyproject.toml constraints.txt
	test -x $(DEMO_VENV)/bin/python || $(PYTHON) -m venv $(DEMO_VENV)
	grep -iv '^pillow==' constraints.txt > $(DEMO_VENV)/constraints.txt
	$(DEMO_VENV)/bin/python -m pip install -c $(DEMO_VENV)/constraints.txt torch
	$(DEMO_VENV)/bin/python -m pip install -c $(DEMO_VENV)/constraints.txt -e '.[dev,demo,image]' playwright
	@touch $@

demo: $(DEMO_STAMP)  ## Show a model in a browser (ARGS='--model FOLDER'; default: that of the quick start)
	$(DEMO_VENV)/bin/python examples/demo/app.py $(ARGS)

test-demo: $(DEMO_STAMP)  ## Test the demo in headless Chromium, which must be installed
	HF_HUB_OFFLINE=1 $(DEMO_VENV)/bin/python -m pytest -m 'slow or not slow' tests/test_demo.py $(ARGS)

test-peers: setup  ## Run the common tests of transformers and pyod on our models and detectors (needs a package index)
	@$(BIN)/python -c 'import parameterized, pyod' 2>/dev/null || $(PIP) install -c constraints.txt parameterized pyod
	HF_HUB_OFFLINE=1 $(BIN)/python tests/peers/run.py $(ARGS)

clean:  ## Remove caches and build products; the environment and your runs stay
	rm -rf build dist *.egg-info .mypy_cache .pytest_cache .ruff_cache .coverage
	find . -path ./$(VENV) -prune -o -name __pycache__ -type d -prune -exec rm -rf {} +
