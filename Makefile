# Everything runs in a virtual environment of its own, .venv; the only thing needed beforehand is Python 3.11 or newer.
#
#   make demo    render a clip, restore it, compare                make check   lint, format, types
#   make test    unit and integration tests                        make soak    the tests that take long
#   make bench   measure speed and quality on this machine         make clean   remove what the others left
#
# PYTHON=python3.12 chooses the interpreter, TORCH='torch==2.11.0' the torch that is installed first.

SHELL := /bin/bash
VENV  := .venv
BIN   := $(VENV)/bin
STAMP := $(VENV)/.installed
# One exact release: a range would admit the newest, which on a machine without a GPU means gigabytes of CUDA packages.
TORCH ?= torch==2.13.0
NEW_ENOUGH := -c 'import sys; sys.exit(sys.version_info < (3, 11))'
PYTHON ?= $(shell for p in python3.11 python3.12 python3.13 python3; do \
	$$p $(NEW_ENOUGH) 2>/dev/null && echo $$p && break; done)

.PHONY: demo test check soak bench setup clean distclean
.DEFAULT_GOAL := test

setup: $(STAMP)

$(STAMP): pyproject.toml
	@command -v "$(firstword $(PYTHON))" >/dev/null && $(PYTHON) $(NEW_ENOUGH) 2>/dev/null \
		|| { echo "streamdeblur needs Python 3.11 or newer; $(or $(PYTHON),python3) is not: name one with make PYTHON=..." >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet $(TORCH)
	$(BIN)/python -m pip install --quiet -e '.[dev]'
	@touch $@

demo: $(STAMP)
	$(BIN)/streamdeblur demo -o demo

# Four at a time: many of them wait for processes of their own. Files stay whole, because they share clusters and caches;
# the long ones come first, so that the short ones fill up the end.
test: $(STAMP)
	$(BIN)/python -m pytest -q -n 4 --dist loadfile --no-loadscope-reorder tests/integration tests/unit

check: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

soak: $(STAMP)
	$(BIN)/python -m pytest -q -m slow --timeout=3600

bench: $(STAMP)
	$(BIN)/python benchmarks/run.py

clean:
	rm -rf demo build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find . -path ./$(VENV) -prune -o -name __pycache__ -type d -print0 | xargs -0 rm -rf

distclean: clean
	rm -rf $(VENV)
