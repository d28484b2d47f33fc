# One line of help per target: the text after "##".
PYTHON ?= python3
UV_VERSION := 0.13.9
VENV := .venv
BIN := $(VENV)/bin
RUNS ?= runs

help: ## Show this list
	@grep -hE '^[a-z-]+:.*##' Makefile | sed -E 's/:.*## /\t/' | expand -t 14

# The stamp is newer than the lock, so a second call does no set-up again.
setup: $(VENV)/ready ## Create .venv from the lock, with hashes
$(VENV)/ready: requirements.lock pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info[:2] < (3, 11) or sys.version_info[:2] > (3, 13))' || \
	  { echo "finepruning needs Python 3.11, 3.12 or 3.13: make setup PYTHON=python3.12"; exit 1; }
	test -x $(BIN)/uv || { $(PYTHON) -m venv $(VENV) && $(BIN)/pip install --quiet --disable-pip-version-check uv==$(UV_VERSION); }
	VIRTUAL_ENV=$(VENV) $(BIN)/uv pip install --quiet --require-hashes -r requirements.lock
	VIRTUAL_ENV=$(VENV) $(BIN)/uv pip install --quiet --no-deps --no-build-isolation -e .
	@touch $@

demo: setup ## Run the main job: one backdoored digit network, five defenses, one table
	$(BIN)/python run.py -m attack=badnet defense=none,prune,finetune,fineprune,auto

dashboard: setup ## Build RUNS/dashboard.html from the records in RUNS
	$(BIN)/python -m finepruning.dashboard $(RUNS)

test: setup ## Run the tests
	$(BIN)/pytest -m "not slow" -n auto --dist worksteal

test-all: setup ## Run all tests, the slow ones too
	$(BIN)/pytest

check: setup ## Lint, format and types
	$(BIN)/ruff check . && $(BIN)/ruff format --check . && $(BIN)/mypy

bench: setup ## Print one line per figure; ONLY=prefix runs a part
	@$(BIN)/python -m tests.bench $(ONLY)

experiments: setup ## Run the commands of all pages in experiments/; days, and a second call goes on
	awk '/^```sh$$/ {on = 1; next} /^```$$/ {on = 0} on' experiments/*.md | PATH="$(CURDIR)/$(BIN):$$PATH" sh -ex

figures: setup ## Draw the figures and tables of the runs in RUNS (default: runs) into figures/
	$(BIN)/python -m finepruning.dashboard.figures $(RUNS)

lock: ## Resolve the dependencies anew
	$(BIN)/uv pip compile pyproject.toml --extra dev --universal --generate-hashes --no-emit-index-url --custom-compile-command "make lock" -q -o requirements.lock

clean: ## Remove the environment and caches; runs and store stay
	rm -rf $(VENV) .pytest_cache .mypy_cache .ruff_cache .hypothesis

.PHONY: help setup demo dashboard test test-all check bench figures experiments lock clean
