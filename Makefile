# make run: everything from a fresh clone to results. make test: the whole suite, offline, on the CPU.

PYTHON ?= python3
VENV := .venv
# make test CONSTRAINTS=constraints.txt installs exactly what CI tested.
CONSTRAINTS ?=
# make test PYTEST_ARGS="tests/test_model.py -x"
PYTEST_ARGS ?=
PIP_INSTALL := $(VENV)/bin/python -m pip install --quiet --disable-pip-version-check $(if $(CONSTRAINTS),-c $(CONSTRAINTS))
# Offline and on the CPU; one thread a process, as some tests start several.
TEST_ENVIRONMENT := CUDA_VISIBLE_DEVICES= HF_HUB_OFFLINE=1 OMP_NUM_THREADS=1

.PHONY: run demo test test-fast lint mutation audit gpu-check clean

run: $(VENV)/.installed
	$(VENV)/bin/python scripts/train.py --config configs/padim_resnet18.yaml --fallback configs/demo.yaml

demo: $(VENV)/.installed
	$(VENV)/bin/python scripts/train.py --config configs/demo.yaml

test: $(VENV)/.installed-dev
	$(TEST_ENVIRONMENT) $(VENV)/bin/python -m pytest $(PYTEST_ARGS)

# For the inner loop.
test-fast: $(VENV)/.installed-dev
	$(TEST_ENVIRONMENT) $(VENV)/bin/python -m pytest -q -m "not slow and not real_data" $(PYTEST_ARGS)

lint: $(VENV)/.installed-dev
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .

# Changes the code in small ways and names the changes that no test notices; takes its time.
mutation: $(VENV)/.installed-dev
	$(TEST_ENVIRONMENT) $(VENV)/bin/mutmut run
	$(VENV)/bin/mutmut results

# Known vulnerabilities of what is installed; asks an online database.
audit: $(VENV)/.installed-dev
	$(VENV)/bin/pip-audit --skip-editable

gpu-check: $(VENV)/.installed
	$(VENV)/bin/python benchmarks/gpu_check.py

clean:
	rm -rf $(VENV) .pytest_cache .ruff_cache .hypothesis mutants .coverage

$(VENV)/bin/python:
	$(PYTHON) -m venv $(VENV)

$(VENV)/.installed: requirements.txt pyproject.toml | $(VENV)/bin/python
	@echo "Installing requirements.txt into $(VENV) (once; a minute or a few) ..."
	$(PIP_INSTALL) -r requirements.txt
	touch $@

$(VENV)/.installed-dev: requirements-dev.txt requirements.txt pyproject.toml | $(VENV)/bin/python
	@echo "Installing requirements-dev.txt into $(VENV) (once; a minute or a few) ..."
	$(PIP_INSTALL) -r requirements-dev.txt
	touch $@ $(VENV)/.installed
