# What people and CI call. Every target works on a fresh machine: it makes .venv first.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready


.PHONY: help install demo test test-slow test-all bench-prepare lint format type clean

help:  ## list the targets
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:[^#]*##/ -/'

install: $(READY)  ## make .venv and install the project with what its developers need

$(READY): pyproject.toml
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "itr needs Python 3.11 or newer; try: make PYTHON=python3.12")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --editable '.[dev]'
	touch $@

demo: $(READY)  ## a data set, a trained model and its recalls in a few minutes
	$(BIN)/itr demo

test: $(READY)  ## the fast tests
	$(BIN)/python -m pytest -n 2 --dist loadfile -m "not slow"

test-slow: $(READY)  ## the slow tests
	$(BIN)/python -m pytest -n 2 --dist loadfile -m slow

test-all: test test-slow  ## all tests

bench-prepare: $(READY)  ## images a second of `itr prepare`, beside cp and a bare loop of Pillow
	$(BIN)/python benchmarks/prepare.py

lint: $(READY)  ## style
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

format: $(READY)  ## put style right
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

type: $(READY)  ## types of src
	$(BIN)/mypy

clean:  ## remove .venv and caches, but no runs
	rm -rf $(VENV) .pytest_cache .mypy_cache .ruff_cache
