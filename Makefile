# Every target sets up .venv when it is missing or older than the files that it is made from.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
INSTALL := $(BIN)/pip install --quiet --disable-pip-version-check
# The two locks are complete, so pip need not resolve them; Python compiles a module when it is first imported.
INSTALL_LOCK := $(INSTALL) --no-deps --no-compile -r
STAMP := $(VENV)/.installed
DEV_STAMP := $(VENV)/.installed-dev
BENCH_STAMP := $(VENV)/.installed-bench
CONFIG ?= configs/demo.py
RUN ?= runs/demo

# Folders of the real CTs with masks that `make model-check` also scores
REAL ?=
MODEL := runs/model
# The C library keeps the memory of large arrays instead of returning it after every operation, which saves a sixth of a
# training step on a CPU. It changes no result; other C libraries ignore it.
ALLOCATOR := GLIBC_TUNABLES=glibc.malloc.arena_max=2:glibc.malloc.hugetlb=1:glibc.malloc.trim_threshold=4294967296:glibc.malloc.mmap_threshold=4294967296

# Where this is set, each of the many processes would compile all modules of Python anew, for some seconds.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: help demo model model-check test lint docs bench clean
.DELETE_ON_ERROR:

help:
	@echo "make demo   phantoms -> train -> evaluate -> report, about 12 minutes on two idle cores;"
	@echo "            CONFIG=configs/opconvnet_demo.py RUN=runs/opconvnet_demo for patches"
	@echo "make model  trains the packaged model anew, from seeds alone, in $(MODEL): about three hours on two"
	@echo "            cores; continues where it was interrupted"
	@echo "make model-check   scores the packaged model on phantoms, and on the real CTs in REAL='DIR DIR'; writes its card"
	@echo "make test   the whole test suite, 15 to 20 minutes on two idle cores"
	@echo "make lint   ruff and mypy"
	@echo "make docs   the documentation, as HTML in site/"
	@echo "make bench  one table of times and memory beside PyTorch and MONAI, which it installs, and what changed"
	@echo "            since the last one; NAMES='networks scan' for a part"
	@echo "make clean  removes .venv"

$(STAMP): requirements.lock pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "spinejax needs Python 3.11 or newer; set PYTHON=/path/to/python3"; exit 1; }
	$(PYTHON) -m venv --clear $(VENV)
	$(INSTALL_LOCK) requirements.lock
	$(INSTALL) --no-deps -e .
	@touch $@

$(DEV_STAMP): $(STAMP) requirements-dev.lock
	$(INSTALL_LOCK) requirements-dev.lock
	@touch $@

$(BENCH_STAMP): $(STAMP) requirements-bench.lock
	$(INSTALL) -r requirements-bench.lock
	@touch $@

demo: $(STAMP)
	$(ALLOCATOR) $(BIN)/spinejax train --config=$(CONFIG) --workdir=$(RUN)
	$(BIN)/spinejax evaluate --workdir=$(RUN)
	$(BIN)/spinejax report --workdir=$(RUN)

# Scans that calibrate the probabilities of names: the region that they show, and the seed
CALIBRATION := any-101 any-201 cervical-102 cervical-202 thoracic-103 thoracic-203 lumbar-104 lumbar-204
model: $(STAMP)
	for stage in sagittal vertebrae; do \
	  $(ALLOCATOR) $(BIN)/spinejax train --config=configs/release.py:stage=$$stage --workdir=$(MODEL)/$$stage || exit; \
	done
	for set in $(CALIBRATION); do \
	  case $$set in any-*) tall=700;; *) tall=300;; esac; \
	  $(BIN)/spinejax phantom --out=$(MODEL)/phantoms/$$set --cases=15 --region=$${set%-*} --seed=$${set#*-} --label_cut \
	    --min_spacing_mm=1.5 --max_spacing_mm=4 --max_extent_mm=$$tall --max_voxels=1000000 \
	    --rates=t13=0.1,l6=0.2,no_t12=0.1 || exit; \
	done
	$(BIN)/spinejax export --workdir=$(MODEL)/sagittal --vertebrae=$(MODEL)/vertebrae \
	  --half=vertebrae --output=$(MODEL)/networks.safetensors
	$(BIN)/spinejax calibrate --model=$(MODEL)/networks.safetensors \
	  $(addprefix --data=$(MODEL)/phantoms/,$(CALIBRATION)) --output=$(MODEL)/calibration
	$(BIN)/spinejax export --workdir=$(MODEL)/networks.safetensors --half=vertebrae \
	  --calibration=$(MODEL)/calibration/calibration.json --output=$(MODEL)/phantom.safetensors

model-check: $(STAMP)
	$(BIN)/python -m tests.benchmarks.check_model --out=$(MODEL)-check $(REAL)

# The files run in this order: the longest begin first, so that none of them runs alone at the end.
LONG := tests/launch/ tests/training/ tests/test_examples.py tests/test_prototyping.py tests/test_predictor.py
test: $(DEV_STAMP)
	$(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder \
	  $(LONG) $(filter-out $(LONG),$(wildcard tests/*/ tests/test_*.py))

lint: $(DEV_STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

docs: $(DEV_STAMP)
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

bench: $(BENCH_STAMP)
	$(ALLOCATOR) $(BIN)/python -m tests.benchmarks $(NAMES)

clean:
	rm -rf $(VENV)
