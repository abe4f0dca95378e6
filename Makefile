# Two commands: make demo, make test.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

.PHONY: demo test test-long lint bench install clean

demo: install  ## Train a tiny pair, extrapolate, serve, score, choose alpha, report
	$(BIN)/expo-ray run pipelines/recipes/quickstart.yaml

test: install lint  ## Everything but the slow faults
	$(BIN)/python -m pytest -m "not slow and not gpu"

test-long: install  ## The slow faults too
	$(BIN)/python -m pytest -m "not gpu" --timeout 1800

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

bench: install
	$(BIN)/python benchmarks/extrapolation.py

install: $(VENV)/.installed

$(VENV)/.installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[lab,dev]'
	touch $@

clean:
	rm -rf $(VENV) runs
