# `make demo` and `make test` need nothing but Python >= 3.11; each makes its own virtual environment.
PYTHON ?= python3
VENV ?= .venv
WORKDIR ?= runs/ml100k
CONFIG ?= configs/ml100k.py
# Test files at once; compiling, which takes most of the time, uses one core.
WORKERS ?= 2
BIN := $(VENV)/bin

.PHONY: demo test lint clean

demo: $(VENV)/.installed
	$(BIN)/python -m experiments.train --config=$(CONFIG) --workdir=$(WORKDIR)
	$(BIN)/python -m experiments.evaluate --workdir=$(WORKDIR) --split=test

test: $(VENV)/.installed-test lint
	$(BIN)/python -m pytest -q -n $(WORKERS) --dist loadfile

lint: $(VENV)/.installed-test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

$(VENV)/bin/python:
	$(PYTHON) -c 'import sys; sys.exit(0 if sys.version_info >= (3, 11) else "gr needs Python 3.11 or newer; name one: make PYTHON=python3.12 ...")'
	$(PYTHON) -m venv $(VENV)

$(VENV)/.installed: setup.py | $(VENV)/bin/python
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e .
	touch $@

$(VENV)/.installed-test: setup.py | $(VENV)/bin/python
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[test]'
	touch $@ $(VENV)/.installed

clean:
	rm -rf $(VENV) runs build *.egg-info .pytest_cache .ruff_cache
