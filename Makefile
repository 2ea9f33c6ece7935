# Everything a newcomer types. Each target sets itself up: Python 3.11+, make and a package index are all it needs.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

.DEFAULT_GOAL := help
.PHONY: help setup demo up test test-heavy check format bench schema lock clean

help: ## Show this list
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-12s %s\n", $$1, $$2}'

$(VENV)/.runtime: requirements.lock pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Bulkhead needs Python 3.11 or newer; run: make PYTHON=/path/to/python3.11")'
	@test -x $(BIN)/pip || $(PYTHON) -m venv --clear $(VENV)
	@echo "installing the locked dependencies into $(VENV) (once, about a minute)"
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes -r requirements.lock
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation -e .
	@touch $@

$(VENV)/.dev: $(VENV)/.runtime requirements-dev.lock
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes -r requirements-dev.lock
	@touch $@

setup: $(VENV)/.runtime ## Make the virtual environment with the run-time dependencies

demo: $(VENV)/.runtime ## Start everything, load three tenants of real law, search, ask, and prove the walls
	@$(BIN)/bulkhead demo

up: $(VENV)/.runtime ## Start everything and leave it running (Ctrl-C stops it)
	@$(BIN)/bulkhead up

test: $(VENV)/.dev ## Run the tests against a real PostgreSQL and real servers
	@$(BIN)/python -m pytest

test-heavy: $(VENV)/.dev ## Run the long tests
	@$(BIN)/python -m pytest -m heavy --timeout 900

check: $(VENV)/.dev ## Lint, types and import rules
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/lint-imports
	@PYRIGHT_PYTHON_IGNORE_WARNINGS=1 $(BIN)/pyright

format: $(VENV)/.dev ## Format the code
	@$(BIN)/ruff check --fix .
	@$(BIN)/ruff format .

bench: $(VENV)/.dev ## Print measurements (never asserted)
	@$(BIN)/python -m pytest -m bench -n 0 -s --timeout 900 tests/bench

schema: $(VENV)/.dev ## Rewrite sql/schema.sql from the migrations
	@$(BIN)/python -m tests.support.schema

lock: $(VENV)/.dev ## Rewrite the locks from pyproject.toml (hashes, no index address)
	@$(BIN)/python -m pip install --quiet uv
	@$(BIN)/uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-emit-index-url --no-header pyproject.toml requirements-build.in -o requirements.lock
	@$(BIN)/uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-emit-index-url --no-header --extra dev pyproject.toml requirements-build.in -c requirements.lock -o requirements-dev.lock

clean: ## Stop and remove the embedded databases, then the virtual environment
	@test ! -e $(VENV)/.runtime || $(BIN)/python -m tests.support.clean .bulkhead .cache/test-cluster
	rm -rf $(VENV) .bulkhead .cache
