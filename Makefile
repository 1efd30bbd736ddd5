# setup       .venv with everything installed
# quickstart  searches, retrains and reports in a few minutes on a CPU
# test        every test
# lint        style, types and import contracts
# bench       side-by-side measurements against the reference
.PHONY: setup quickstart test lint bench
.DEFAULT_GOAL := setup

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
PYTEST_ARGS ?=

setup: $(STAMP)

# The version is checked before anything is made, so that a wrong Python leaves nothing behind.
$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' || { \
	  echo "Python 3.11, 3.12 or 3.13 is needed; $(PYTHON) is $$($(PYTHON) --version 2>&1)." >&2; \
	  echo "Name another one: make PYTHON=python3.12 $(or $(MAKECMDGOALS),setup)" >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)

# The stamp is newer than pyproject.toml exactly when the installation is current.
$(STAMP): pyproject.toml | $(BIN)/python
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[dev]'
	@touch $@

# An existing quickstart study is continued: a second call ends what the first began.
quickstart: $(STAMP)
	@if [ -f "$${NAS_ROOT:-studies}/quickstart/study.json" ]; then \
	  $(BIN)/nas resume quickstart; \
	else \
	  $(BIN)/nas run experiments/quickstart.yaml; \
	fi

# One worker a core; the tests of a file share its studies, so they run on one worker.
test: $(STAMP)
	$(BIN)/python -m pytest -n auto --maxprocesses 4 --dist loadfile $(PYTEST_ARGS)

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

bench: $(STAMP)
	$(BIN)/nas bench step --space all --method all
	$(BIN)/nas bench pipeline
