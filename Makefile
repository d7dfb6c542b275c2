# Every target sets up .venv itself when it is missing, or older than what it was made from.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
BENCH_STAMP := $(VENV)/.installed-bench
CONFIG ?= configs/demo.py
RUN ?= runs/demo

# Tests compile far more than they run: with little optimisation and without fusion emitters XLA
# compiles in half the time.
COMPILE_FASTER := --xla_cpu_use_fusion_emitters=false --xla_backend_optimization_level=1

.PHONY: help demo test lint bench clean
.DELETE_ON_ERROR:

help:
	@echo "make demo   phantoms -> train -> evaluate -> report, about 13 minutes on two idle cores;"
	@echo "            CONFIG=configs/opconvnet_demo.py RUN=runs/opconvnet_demo for patches"
	@echo "make test   the whole test suite"
	@echo "make lint   ruff and mypy"
	@echo "make bench  throughput, memory, and ratios to PyTorch (installs the bench extra)"

$(STAMP): requirements.lock pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "spinejax needs Python 3.11 or newer; set PYTHON=/path/to/python3"; exit 1; }
	$(PYTHON) -m venv --clear $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check -r requirements.lock
	$(BIN)/pip install --quiet --disable-pip-version-check --no-deps -e .
	@touch $@

$(BENCH_STAMP): $(STAMP) requirements-bench.lock
	$(BIN)/pip install --quiet --disable-pip-version-check -r requirements-bench.lock
	@touch $@

demo: $(STAMP)
	$(BIN)/spinejax train --config=$(CONFIG) --workdir=$(RUN)
	$(BIN)/spinejax evaluate --workdir=$(RUN)
	$(BIN)/spinejax report --workdir=$(RUN)

# Files in their order: else those of a single test, among them the longest, come last and alone.
test: $(STAMP)
	XLA_FLAGS="$(XLA_FLAGS) $(COMPILE_FASTER)" $(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

bench: $(BENCH_STAMP)
	$(BIN)/python -m tests.benchmarks

clean:
	rm -rf $(VENV)
