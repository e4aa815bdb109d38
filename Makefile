# Every target sets itself up: on a fresh machine `make demo` or `make test` is all there is to type.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# Two workers and one thread each: parallel tests must not fight over the cores.
THREADS := OMP_NUM_THREADS=1 MKL_NUM_THREADS=1
WORKERS ?= 2
QUICK := -m "not slow and not gpu"

.PHONY: install demo test test-all test-oldest lint types bench gpu-check clean

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
	$(THREADS) $(BIN)/pytest -n $(WORKERS) $(QUICK)

test-all: install
	$(THREADS) $(BIN)/pytest -n $(WORKERS) -m "not gpu"

# The same tests with the oldest releases that pyproject.toml admits: first the core alone, as `pip install lit-prune`
# brings it; then everything, with the releases that the core asks for; then with those that the extras ask for instead,
# which concern fewer tests.
OLDEST := .venv-oldest

test-oldest: $(OLDEST)/.extras
	$(OLDEST_PIP) --no-deps --requirement $(OLDEST)/core.txt
	$(THREADS) $(OLDEST)/bin/pytest -n $(WORKERS) $(QUICK) tests --ignore tests/yolo
	$(OLDEST_PIP) --no-deps --requirement $(OLDEST)/extras.txt
	$(THREADS) $(OLDEST)/bin/pytest -n $(WORKERS) $(QUICK) tests/yolo tests/training/test_trainings.py lit_prune

OLDEST_PIP := PIP_FIND_LINKS= $(OLDEST)/bin/python -m pip install --disable-pip-version-check --quiet
# The oldest Python that is at hand; pyenv hides those that it is not told to show.
OLDEST_PYTHON = $(shell for minor in 10 11 12; do \
	PYENV_VERSION=3.$$minor python3.$$minor -c 'import sys; print(sys.executable)' 2>/dev/null && exit; done; echo $(PYTHON))

$(OLDEST)/.extras: $(OLDEST)/.core
	$(OLDEST_PIP) --constraint $(OLDEST)/extras.txt --editable '.[test]'
	touch $@

$(OLDEST)/.core: pyproject.toml tests/oldest.py
	rm -rf $(OLDEST)
	$(OLDEST_PYTHON) -m venv $(OLDEST)
	$(OLDEST_PIP) packaging tomli
	$(OLDEST)/bin/python -m tests.oldest > $(OLDEST)/core.txt
	$(OLDEST)/bin/python -m tests.oldest test > $(OLDEST)/extras.txt
	$(OLDEST_PIP) --constraint $(OLDEST)/core.txt --editable . pytest
	$(THREADS) $(OLDEST)/bin/pytest tests/test_core.py
	touch $@

gpu-check: install
	$(BIN)/pytest -m gpu

bench: install
	for script in benchmarks/*.py benchmarks/*/__main__.py; do \
		name=$$(echo $$script | sed 's|/__main__||; s|\.py$$||; s|/|.|g'); \
		echo "== $$name"; $(BIN)/python -m $$name || exit 1; done

clean:
	rm -rf $(VENV) $(OLDEST) demo .pytest_cache .mypy_cache .ruff_cache
