# `make` lists what can be made. Everything runs in .venv, which the first target makes.

PYTHON ?= python3
VENV ?= .venv
SKY_VENV ?= .venv-sky
# Processes that run the tests and lessons; a file's tests stay in one, for what they share.
JOBS ?= 2
BIN := $(VENV)/bin
LESSONS_INSTALLED := $(VENV)/.installed-lessons
INSTALLED := $(VENV)/.installed

LESSONS := $(wildcard notebooks/*.ipynb)
LIBRARY := $(shell find longclip_lab data -type f -not -path '*/__pycache__/*')
RUN := book/_executed
EXECUTED := $(RUN)/.done

.PHONY: help quickstart lab test faults fuzz book bench cloud-check cloud-dry-run clean
.DEFAULT_GOAL := help

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "make %-14s %s\n", $$1, $$2}' Makefile

quickstart: $(LESSONS_INSTALLED) ## install, then the first lesson in five minutes, with a report to open
	$(BIN)/longclip-lab quickstart

lab: $(LESSONS_INSTALLED) ## JupyterLab on the first lesson
	$(BIN)/jupyter lab notebooks/00-start-here.ipynb

test faults fuzz book: export HF_HUB_OFFLINE = 1

test: $(INSTALLED) ## style, unit tests, doctests, every lesson executed once, the book
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/nbstripout --verify $(LESSONS)
	$(BIN)/pytest --quiet --durations=5 --numprocesses $(JOBS) --dist loadfile
	$(execute-lessons)
	$(build-book)

faults: $(INSTALLED) ## training runs under many kills, a quarter of an hour; one line of JSON for each
	@$(BIN)/pytest --quiet --capture=no --timeout=0 tests/training/faults_long.py

fuzz: $(INSTALLED) ## ten minutes of damaged and odd files, folders and command lines
	@$(BIN)/python tests/fuzz --seconds 600 --keep runs/fuzz

book: $(EXECUTED) ## the Jupyter Book, in book/_build/html
	$(build-book)

bench: $(INSTALLED) ## speed and memory against the peers, as JSON
	@$(BIN)/python -m pip install --quiet --no-deps clip-benchmark  # without its captioning metrics
	@for script in benchmarks/[a-z]*.py; do $(BIN)/python $$script || exit 1; done

cloud-check: ## have SkyPilot's own loader read the tasks in cloud/, in an environment of its own
	test -d $(SKY_VENV) || $(PYTHON) -m venv $(SKY_VENV)
	$(SKY_VENV)/bin/python -m pip install --quiet 'skypilot>=0.14.1,<0.15'
	$(SKY_VENV)/bin/python cloud/check.py

cloud-dry-run: $(INSTALLED) ## what the cloud tasks do, on made-up data in two processes of this machine
	PATH="$(abspath $(BIN)):$$PATH" cloud/dry-run.sh runs/cloud-dry-run

clean: ## remove what was built; .venv and runs/ stay
	rm -rf book/_build $(RUN) dist .pytest_cache .ruff_cache .hypothesis
	find . -name __pycache__ -not -path './$(VENV)/*' -prune -exec rm -rf {} +

$(LESSONS_INSTALLED): pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 10) <= sys.version_info[:2] < (3, 14))' || { \
	  echo "longclip_lab needs Python 3.10 to 3.13; $(PYTHON) is $$($(PYTHON) --version 2>&1)." \
	    "Name another: make PYTHON=python3.12" >&2; exit 1; }
	@echo "Installing the library and JupyterLab into $(VENV): two to ten minutes, once."
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[notebooks]'
	@touch $@

$(INSTALLED): $(LESSONS_INSTALLED)
	@echo "Installing what tests and the book need besides: a minute or two, once."
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[dev]'
	@touch $@

# Lessons are executed in copies, which leave their outputs in the book's cache: the book is built
# from what was tested. A changed library makes the outputs stale, which the cache cannot see.
$(EXECUTED): $(INSTALLED) $(LESSONS) $(LIBRARY)
	$(execute-lessons)

define execute-lessons
rm -rf $(RUN)
mkdir -p $(RUN)
cp $(LESSONS) $(RUN)
$(BIN)/pytest --quiet --numprocesses $(JOBS) --nbmake --overwrite --nbmake-timeout=1800 --timeout=0 \
  --durations=0 $(RUN)
$(BIN)/python book/cache_lessons.py $(RUN)/*.ipynb
touch $(EXECUTED)
endef

define build-book
$(BIN)/jupyter-book build --all -W --keep-going book
@! grep -rnE '<(script|link)[^>]+(src|href)="(https?:)?//' book/_build/html --include='*.html'
endef
