# Everything sets itself up: `make demo` and `make test` work on a fresh machine with Python 3.10+ and a package index.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# Some machines forbid Python to write bytecode; each of the tests' many processes would then compile all of torch.
unexport PYTHONDONTWRITEBYTECODE

# uv takes a torch and a torchvision that fit each other; plain pip may not. It lives in a folder of its own.
UV := .uv/bin/uv

.PHONY: env demo docs dist test unit test-faults lint check lock bench bench-scaling coverage-table clean

env: $(VENV)/.ready

$(UV):
	$(PYTHON) -m venv .uv
	.uv/bin/python -m pip install --quiet --disable-pip-version-check uv

$(VENV)/.ready: $(UV) requirements.lock pyproject.toml
	$(UV) venv --quiet --clear --python $(PYTHON) $(VENV)
	$(UV) pip install --quiet --compile-bytecode --python $(VENV) --require-hashes -r requirements.lock
	$(UV) pip install --quiet --python $(VENV) --no-deps --editable .
	touch $@

demo: env
	$(BIN)/sidebranch demo

# One thread a worker; memory that a test frees is kept for the next one.
TESTING := OMP_NUM_THREADS=1 MALLOC_TRIM_THRESHOLD_=1000000000 MALLOC_MMAP_THRESHOLD_=1000000000

# ruff and basedpyright while pytest runs.
test: env
	$(MAKE) --no-print-directory -j2 lint unit

unit: env
	$(TESTING) $(BIN)/pytest -q -n auto

# The site, in docs/_build/index.html; it needs no network to be read.
docs: env
	$(BIN)/sphinx-build -q -W --keep-going docs docs/_build

# Wheel and sdist, tried where this repository is not at hand: the library with what it asks for alone, then the command.
# RESOLUTION=lowest-direct takes the oldest versions that pyproject.toml allows.
RESOLUTION ?= highest
dist: $(UV)
	rm -rf dist
	$(UV) build --quiet --out-dir dist
	benchmarks/try_wheel.sh $(UV) $(PYTHON) $(RESOLUTION)

# All fault injections; what came out goes to results/faults.json and docs/results.md.
test-faults: env
	$(BIN)/pytest -q tests/faults -m "" --record results/faults.json
	$(BIN)/python benchmarks/tables.py

lint: env
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/basedpyright

bench: env
	$(BIN)/python benchmarks/bench.py

# docs/scaling.md's numbers: processes on this machine, and what a checkpoint costs.
bench-scaling: env
	$(BIN)/python benchmarks/scaling.py
	$(BIN)/python benchmarks/checkpoint_cost.py

# docs/coverage.md: side branches grown on one member of every family of timm and torchvision; about half an hour.
coverage-table: env
	rm -f results/coverage.json
	$(BIN)/python benchmarks/coverage.py

# After a change of dependencies in pyproject.toml.
lock: $(UV)
	$(UV) pip compile --quiet --universal --generate-hashes --no-emit-index-url --no-emit-find-links --no-header \
		--extra dev --extra train pyproject.toml --output-file requirements.lock

clean:
	rm -rf $(VENV) .uv .pytest_cache .ruff_cache .hypothesis
