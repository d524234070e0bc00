# make demo    generated interactions -> train -> export -> score -> recommendations to look at, in demo/
# make test    format, lint, types, imports, tests: what CI runs
#
# PYTHON=python3.12   the interpreter, 3.11 or newer, that makes the virtual environment
# VENV=.venv          where the virtual environment lies

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
PIP := $(BIN)/python -m pip --quiet --disable-pip-version-check --no-input

.PHONY: install demo test check lint types imports tests slow gpu bench

install: $(INSTALLED)

$(INSTALLED): pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(PIP) install --progress-bar off --editable '.[dev]'
	touch $@

demo: install
	$(BIN)/pipeline demo --workspace demo

test: check

check: lint types imports tests

lint: install
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .

types: install
	$(BIN)/mypy

imports: install
	$(BIN)/lint-imports

# Processes share the cores better than torch's threads do.
tests: install
	OMP_NUM_THREADS=1 POLARS_MAX_THREADS=2 $(BIN)/pytest -n auto --maxprocesses 4 --dist worksteal

slow: install
	$(BIN)/pytest -m slow

gpu: install
	$(BIN)/pytest -m gpu

bench: install
	set -e; for script in $(sort $(wildcard benchmarks/*.py)); do echo "== $$script"; $(BIN)/python $$script; done
