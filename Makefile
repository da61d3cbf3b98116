# make run: everything from a fresh clone to results. make test: the whole suite, offline, on the CPU.

PYTHON ?= python3
VENV := .venv
# make test CONSTRAINTS=constraints.txt installs exactly what CI tested.
CONSTRAINTS ?=
# make test PYTEST_ARGS="tests/model -x"
PYTEST_ARGS ?=
PIP_INSTALL := $(VENV)/bin/python -m pip install --quiet --disable-pip-version-check $(if $(CONSTRAINTS),-c $(CONSTRAINTS))
# Each takes up to 4 GB; a file's tests stay together, as they share what takes long. make test WORKERS= for one.
WORKERS ?= -n 2 --dist loadfile
# Offline and on the CPU; one thread a process, as some tests start several.
TEST_ENVIRONMENT := CUDA_VISIBLE_DEVICES= HF_HUB_OFFLINE=1 OMP_NUM_THREADS=1

# A file whose recipe failed half-way is removed, or it would block every later make.
.DELETE_ON_ERROR:

.PHONY: run demo test test-fast test-lowest lint gpu-check clean

run: $(VENV)/.installed
	$(VENV)/bin/python scripts/train.py --config configs/padim_resnet18.yaml --fallback configs/demo.yaml

demo: $(VENV)/.installed
	$(VENV)/bin/python scripts/train.py --config configs/demo.yaml

test: $(VENV)/.installed-dev
	$(TEST_ENVIRONMENT) $(VENV)/bin/python -m pytest $(WORKERS) $(PYTEST_ARGS)

# For the inner loop.
test-fast: $(VENV)/.installed-dev
	$(TEST_ENVIRONMENT) $(VENV)/bin/python -m pytest -q -m "not slow and not real_data" $(WORKERS) $(PYTEST_ARGS)

# The same on the lowest versions that pyproject.toml allows, in an environment of its own (9 GB).
test-lowest:
	$(MAKE) test-fast VENV=.venv-lowest CONSTRAINTS=constraints-lowest.txt

lint: $(VENV)/.installed-dev
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/lint-imports
	$(VENV)/bin/mypy

gpu-check: $(VENV)/.installed
	$(VENV)/bin/python benchmarks/gpu_check.py

clean:
	rm -rf $(VENV) .venv-lowest .*_cache .hypothesis .coverage

$(VENV)/bin/python:
	$(PYTHON) -m venv --clear $(VENV)

$(VENV)/.installed: requirements.txt pyproject.toml | $(VENV)/bin/python
	@echo "Installing requirements.txt into $(VENV) (once; a minute or a few) ..."
	$(PIP_INSTALL) -r requirements.txt
	touch $@

$(VENV)/.installed-dev: requirements.txt pyproject.toml | $(VENV)/bin/python
	@echo "Installing this package and what its tests need into $(VENV) (once; a minute or a few) ..."
	$(PIP_INSTALL) -e ".[dev]"
	touch $@ $(VENV)/.installed
