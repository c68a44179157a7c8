# Everything a person runs. Each target sets up what it needs: a virtual environment in .venv with the pinned packages.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
DEV := $(VENV)/.dev
PEERS := $(VENV)/.peers
LOCKING := build/lock
FREEZE = $(LOCKING)/bin/pip freeze --exclude-editable | sed 's/+cpu$$//' | LC_ALL=C sort
PIP := pip install --quiet --disable-pip-version-check
SOURCES := schemas pipelines ray_apps ops tests benchmarks
DEMO_ARGS ?=
TEST_ARGS ?=
MINUTES ?= 30
SOAK_ARGS ?=
# Two processes keep two cores busy: a third one would import everything once more and win nothing. A file's tests share its servers, so a file
# stays in one process; files go in their order, the long ones first.
TEST_WORKERS ?= 2
PYTEST := $(BIN)/pytest -n $(TEST_WORKERS) --dist loadfile --no-loadscope-reorder -r fEsx

.DEFAULT_GOAL := help
.PHONY: help setup demo test test-slow test-cluster soak lint format schemas bench lock clean

help: ## Show the targets
	@grep -E '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed 's/:.*## /\t/' | expand -t 14

setup: $(READY) ## Create .venv with the pinned packages and the headrace command

# torch goes first and alone: with it in place, no other package pulls a second build of it.
$(READY): requirements.lock pyproject.toml
	@$(PYTHON) -c 'import sys; v = sys.version_info; sys.exit(0 if v >= (3, 11) else f"Headrace needs Python 3.11 or later, and {sys.executable} is {v.major}.{v.minor}; run make PYTHON=python3.11")'
	@echo "Installing the pinned packages into $(VENV): a few minutes"
	$(PYTHON) -m venv $(VENV)
	$(BIN)/$(PIP) "$$(grep '^torch==' requirements.lock)"
	$(BIN)/$(PIP) -r requirements.lock
	$(BIN)/$(PIP) --no-deps --editable .
	$(BIN)/python -m pipelines.kernels.setup
	@touch $@

# What tests and checks need beside the product.
$(DEV): $(READY) requirements-dev.lock
	$(BIN)/$(PIP) --no-deps -r requirements-dev.lock
	@touch $@

# What tests and benchmarks compare with. One of them compiles from source: where that fails, the tests that need them skip and say so.
$(PEERS): $(DEV) requirements-peers.lock
	@$(BIN)/$(PIP) --no-deps -r requirements-peers.lock || for peer in $$(cat requirements-peers.lock); do \
	  $(BIN)/$(PIP) --no-deps $$peer || echo "$$peer could not be installed: tests and benchmarks that compare with it will skip"; done
	@touch $@

demo: $(READY) ## The whole loop on this machine; DEMO_ARGS=--exit ends it instead of leaving it running
	@$(BIN)/headrace demo $(DEMO_ARGS)

test: $(PEERS) ## All tests but the slow ones
	$(PYTEST) -m "not slow and not cluster" $(TEST_ARGS)

test-slow: $(PEERS) ## The slow tests: full kill tests and soaks
	$(BIN)/pytest -m slow $(TEST_ARGS)

test-cluster: $(PEERS) ## `ray up` on several hosts, made of namespaces: needs root, iproute2, util-linux, openssh-server, rsync
	$(BIN)/python -m tests.cluster.run $(TEST_ARGS) tests/cluster

soak: $(READY) ## Random kills under changing load; MINUTES=30, SOAK_ARGS="--seed N --rate 0.5 --runner ray"
	@$(BIN)/python -m benchmarks.soak --minutes $(MINUTES) $(SOAK_ARGS)

lint: $(PEERS) ## ruff and mypy --strict
	$(BIN)/ruff check $(SOURCES)
	$(BIN)/ruff format --check $(SOURCES)
	$(BIN)/mypy

format: $(DEV) ## Rewrite the sources in the house format
	$(BIN)/ruff check --fix $(SOURCES)
	$(BIN)/ruff format $(SOURCES)

schemas: $(READY) ## Write what is generated from the contracts: schemas/json and headrace.toml
	$(BIN)/python -m schemas.json_schema
	$(BIN)/python -m schemas.settings_file

bench: $(PEERS) ## Benchmarks, side by side with the peers
	@for name in broker fingerprint tokenizer pipeline quality quality_models dedup dedup_index log_open pii charset semantic training serving; do echo "== $$name"; $(BIN)/python -m benchmarks.$$name || exit 1; done

lock: ## Write the three locks and NOTICE from a new environment: what runs, what checks it, what it is compared with
	rm -rf $(LOCKING) && $(PYTHON) -m venv $(LOCKING)
	$(LOCKING)/bin/$(PIP) "$$(grep '^torch==' requirements.lock)"
	$(LOCKING)/bin/$(PIP) --editable .
	$(FREEZE) > requirements.lock
	$(LOCKING)/bin/python -m ops.packaging.notice
	$(LOCKING)/bin/$(PIP) --editable .[dev]
	$(FREEZE) | LC_ALL=C comm -13 requirements.lock - > requirements-dev.lock
	$(LOCKING)/bin/$(PIP) --editable .[dev,peers,semantic]
	$(FREEZE) | LC_ALL=C comm -13 requirements.lock - | LC_ALL=C comm -13 requirements-dev.lock - > requirements-peers.lock

clean: ## Remove the virtual environment, caches and headrace-data/demo; all other data stay
	rm -rf $(VENV) build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis headrace-data/demo
	find $(SOURCES) -name __pycache__ -type d -prune -exec rm -rf {} +
