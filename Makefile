# Every target sets itself up: on a fresh machine `make demo` or `make test` is all there is to type.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# Two workers and one thread each: parallel tests must not fight over the cores.
THREADS := OMP_NUM_THREADS=1 MKL_NUM_THREADS=1
WORKERS ?= 2

.PHONY: install demo test test-all lint types bench gpu-check clean

install: $(VENV)/.installed

# Some machines offer pip a CPU-only torch wheel (a `+cpu` build) that PyPI's torchvision cannot be imported
# with, so wheels lying on the machine are left aside.
$(VENV)/.installed: pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	PIP_FIND_LINKS= $(BIN)/python -m pip install --disable-pip-version-check --quiet --editable '.[dev]'
	$(BIN)/python -c "import torchvision, ultralytics"
	touch $@

demo: install
	$(BIN)/lit-prune demo --out demo

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: install
	$(BIN)/mypy

test: install
	$(THREADS) $(BIN)/pytest -n $(WORKERS) -m "not slow and not gpu"

test-all: install
	$(THREADS) $(BIN)/pytest -n $(WORKERS) -m "not gpu"

gpu-check: install
	$(BIN)/pytest -m gpu

bench: install
	for script in benchmarks/*.py; do echo "== $$script"; $(BIN)/python -m benchmarks.$$(basename $$script .py) || exit 1; done

clean:
	rm -rf $(VENV) demo .pytest_cache .mypy_cache .ruff_cache
