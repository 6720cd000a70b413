# make demo       from a fresh clone to a result, offline once the packages are there
# make test       the fast tests; `make test-slow` the others that need no GPU, network or further data
# make bench      all benchmarks on two idle cores, in 10 minutes (a few more without AVX-512): docs/performance.md
# make quality    what CI checks besides; `make style` mends it
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
# two test processes with a thread each are faster than one with two, for models this small
TEST_PROCESSES ?= 2

.PHONY: demo test test-slow bench quality style install

demo: install
	$(BIN)/magnet demo

test: install
	OMP_NUM_THREADS=1 TOKENIZERS_PARALLELISM=false $(BIN)/python -m pytest -n $(TEST_PROCESSES) --dist loadfile

test-slow: install
	OMP_NUM_THREADS=1 TOKENIZERS_PARALLELISM=false $(BIN)/python -m pytest -n $(TEST_PROCESSES) --dist loadfile \
		-m "slow and not shared and not gpu and not hub"

bench: install
	TOKENIZERS_PARALLELISM=false $(BIN)/python benchmarks/run.py
	$(BIN)/python docs/make_tables.py

quality: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

style: install
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

install: $(VENV)/installed

# torch first and by its exact version, so that no later step can choose another build of it
$(VENV)/installed: setup.py pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install -q --disable-pip-version-check torch==2.13.0
	$(BIN)/python -m pip install -q --disable-pip-version-check -c constraints.txt -e ".[dev]"
	touch $@
