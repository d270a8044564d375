# Everything runs in ./.venv; `make demo` and `make test` set it up on first use.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

.PHONY: help setup demo test lint types docs clean

help:
	@echo "make demo   train, convert without training and compare on bundled digits (about two minutes on 2 cores)"
	@echo "make test   run the tests"
	@echo "make lint   ruff check and format check"
	@echo "make types  mypy"
	@echo "make docs   the pages of docs/ and results/ as a site, in site/"

$(VENV)/.setup-done: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev]'
	touch $@

setup: $(VENV)/.setup-done

demo: setup
	$(BIN)/python scripts/demo.py

test: setup
	HF_HUB_OFFLINE=1 WANDB_MODE=offline OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: setup
	$(BIN)/mypy

$(VENV)/.docs-done: $(VENV)/.setup-done
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[docs]'
	touch $@

docs: $(VENV)/.docs-done
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --quiet --strict

clean:
	rm -rf $(VENV) build dist *.egg-info outputs multirun site
