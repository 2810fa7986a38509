# `make demo` and `make test` need nothing but Python >= 3.11; each makes its own virtual environment.
PYTHON ?= python3
VENV ?= .venv
WORKDIR ?= runs/ml100k
CONFIG ?= configs/ml100k.py
# Tests at once; compiling, which takes most of the time, uses one core.
WORKERS ?= 2
# What `make test-oldest` runs: a part of each room, and whole runs by the commands.
OLDEST_TESTS ?= tests/test_wheel.py tests/trie/test_files.py tests/trie/test_index.py tests/losses/test_token.py \
	tests/losses/test_prefix.py tests/models/test_layers.py tests/decoding/test_configured.py \
	tests/training/test_checkpoints.py tests/training/test_train_step.py tests/experiments/test_mains.py
# A file stays with one worker, and files begin in the order of tests/conftest.py.
PARALLEL := -n $(WORKERS) --dist loadfile --no-loadscope-reorder
BIN := $(VENV)/bin
PIP := -m pip install --quiet --disable-pip-version-check

.PHONY: demo test test-long test-oldest lint docs clean

demo: $(VENV)/.installed
	$(BIN)/python -m experiments.train --config=$(CONFIG) --workdir=$(WORKDIR)
	$(BIN)/python -m experiments.evaluate --workdir=$(WORKDIR) --split=test

# With `lint`, which tests/test_lint.py runs.
test: $(VENV)/.installed-test
	$(BIN)/python -m pytest -q $(PARALLEL) -m "not long"

# The rest: further cases of what `make test` tests in one, each of which compiles for a minute or more.
test-long: $(VENV)/.installed-test
	$(BIN)/python -m pytest -q $(PARALLEL) -m long

# The oldest release of each dependency that setup.py allows, in an environment of its own.
test-oldest: $(VENV)-oldest/.installed
	$(VENV)-oldest/bin/python -m pytest -q $(PARALLEL) $(OLDEST_TESTS)

lint: $(VENV)/.installed-test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

docs: $(VENV)/.installed-docs
	$(BIN)/mkdocs build --strict

$(VENV)/bin/python $(VENV)-oldest/bin/python:
	$(PYTHON) -c 'import sys; sys.exit(0 if sys.version_info >= (3, 11) else "gr needs Python 3.11 or newer; name one: make PYTHON=python3.12 ...")'
	$(PYTHON) -m venv $(@:/bin/python=)

$(VENV)/.installed: setup.py | $(VENV)/bin/python
	$(BIN)/python $(PIP) -e .
	touch $@

$(VENV)/.installed-test: setup.py | $(VENV)/bin/python
	$(BIN)/python $(PIP) -e '.[test]'
	touch $@ $(VENV)/.installed

$(VENV)/.installed-docs: setup.py | $(VENV)/bin/python
	$(BIN)/python $(PIP) -e '.[docs]'
	touch $@ $(VENV)/.installed

$(VENV)-oldest/.installed: setup.py | $(VENV)-oldest/bin/python
	sed -nE '/install_requires/,/\]/s/^ *"([A-Za-z0-9_-]+)>=([0-9.]+).*/\1==\2/p' setup.py > $(VENV)-oldest/oldest.txt
	$(VENV)-oldest/bin/python $(PIP) -e '.[test]' --constraint $(VENV)-oldest/oldest.txt
	touch $@

clean:
	rm -rf $(VENV) $(VENV)-oldest runs build site *.egg-info .pytest_cache .ruff_cache .mypy_cache
