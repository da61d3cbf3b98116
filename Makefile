# make run: everything from a fresh clone to results. make test: the whole suite, offline, on the CPU.

PYTHON ?= python3
VENV := .venv
# make test CONSTRAINTS=constraints.txt installs exactly what CI tested.
CONSTRAINTS ?=
PIP_INSTALL := $(VENV)/bin/python -m pip install --quiet --disable-pip-version-check $(if $(CONSTRAINTS),-c $(CONSTRAINTS))

.PHONY: run demo test lint clean

run: $(VENV)/.installed
	$(VENV)/bin/python scripts/train.py --config configs/padim_resnet18.yaml --fallback configs/demo.yaml

demo: $(VENV)/.installed
	$(VENV)/bin/python scripts/train.py --config configs/demo.yaml

test: $(VENV)/.installed-dev
	CUDA_VISIBLE_DEVICES= HF_HUB_OFFLINE=1 OMP_NUM_THREADS=1 $(VENV)/bin/python -m pytest

lint: $(VENV)/.installed-dev
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .

clean:
	rm -rf $(VENV) .pytest_cache .ruff_cache .hypothesis

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
