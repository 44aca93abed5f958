# Two commands do everything on a fresh machine: `make demo` and `make test`. Both rest on `make setup`.
PYTHON ?= python3
BIN := .venv/bin
STAMP := .venv/.installed
PYTEST := $(BIN)/python -m pytest -q -n auto --maxprocesses=4 --dist=loadfile

.DEFAULT_GOAL := help
.PHONY: help setup demo test pytest lint docs nightly clean

help: ## Show this list
	@grep -E '^[a-z]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z]+):.*## (.*)/  make \1\t\2/' | expand -t 16

setup: $(STAMP) ## Make .venv with an editable install and all that the demo and the tests need (once)

$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo 'Topiarist needs Python 3.11 or newer: run "make PYTHON=/path/to/python3.11 setup".' >&2; exit 1; }
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev,vision]'
	@touch $(STAMP)

demo: $(STAMP) ## Train, prune and compare on scikit-learn's digits; writes runs/demo/report.html
	$(BIN)/topiarist demo

lint: $(STAMP) ## Style and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

test: $(STAMP) ## Style, types and tests, side by side
	@$(MAKE) --no-print-directory --jobs=2 --keep-going pytest lint

pytest: $(STAMP)
	$(PYTEST)

nightly: $(STAMP) ## All tests, those too slow for the day as well, with many more random networks
	-$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt datasets
	HYPOTHESIS_PROFILE=nightly $(PYTEST)

docs: $(STAMP) ## Build the documentation into site/
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

clean: ## Remove .venv and all that was built; runs/ stays
	rm -rf .venv site build dist .mypy_cache .ruff_cache .pytest_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
