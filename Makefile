# Two commands on a machine that has Python and make: `make train` and `make test`.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
ARGS ?= +quant=int8_mixed
WORKERS ?= 2

.PHONY: help install train test lint format tables clean
.DEFAULT_GOAL := help

help:  ## Show these lines
	@grep -hE '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*##/\t/' | expand -t 12

install: $(VENV)/installed  ## Make the environment in .venv

# torch first and pinned: whatever depends on it then finds it there
$(VENV)/installed: setup.py pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check "$$(grep '^torch==' constraints.txt)"
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[onnx,recipes,test]'
	touch $@

train: install  ## Train, calibrate, train quantized, export, compare (ARGS='recipe=mackey_glass +quant=int8')
	$(BIN)/python train.py $(ARGS)

test: install lint  ## Run all tests
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(WORKERS) --dist loadfile -q --durations=10

lint: install  ## Check style
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

format: install  ## Apply style
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

tables: install  ## Rebuild the READMEs' tables from benchmarks/results
	$(BIN)/python -m benchmarks.tables

clean:  ## Remove the environment and what runs wrote
	rm -rf $(VENV) outputs multirun *.egg-info
