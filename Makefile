# make demo and make test do all of their own set-up; the rest builds on them. `make help` lists everything.
SHELL := /bin/sh
.DEFAULT_GOAL := help

VENV := .venv
VENV_COMPAT := .venv-compat
VENV_CLIENT := .venv-client
VENV_PEER := .venv-peer
VENV_SERVE := .venv-serve
PY := $(VENV)/bin/python
PY_COMPAT := $(VENV_COMPAT)/bin/python
PY_CLIENT := $(VENV_CLIENT)/bin/python

QUICKSTART := conf/fedmkt/quickstart
DEMO_ROOT := runs/quickstart
DEMO = PATH="$(CURDIR)/$(VENV)/bin:$$PATH" sh $(QUICKSTART)/prepare.sh $(DEMO_ROOT) && \
       $(VENV)/bin/fate-llm-ext run $(QUICKSTART)/dag.yaml --sites $(QUICKSTART)/sites.yaml --root $(DEMO_ROOT)

QUICK := not slow and not flow and not gpu and not serve

# Models and data come from the machine: nothing is fetched at run time.
export HF_HUB_OFFLINE := 1
export TRANSFORMERS_OFFLINE := 1
export HF_DATASETS_OFFLINE := 1
export TOKENIZERS_PARALLELISM := false

.PHONY: help venv venv-compat venv-client venv-serve peer demo test test-all test-compat test-client test-serve test-flow packages lint format check-confs docs clean

help: ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  %-14s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

venv: ## .venv: the modern set (PYTHON=... names a Python 3.11)
	@PYTHON="$(PYTHON)" sh tools/venv.sh modern $(VENV)

venv-compat: ## .venv-compat: the set that FATE 2.2 pins
	@PYTHON="$(PYTHON)" sh tools/venv.sh compat $(VENV_COMPAT)

venv-client: ## .venv-client: FATE's client without torch
	@PYTHON="$(PYTHON)" sh tools/venv.sh client $(VENV_CLIENT)

venv-serve: ## .venv-serve: transformers serve, which the HTTP engine is tested against
	@PYTHON="$(PYTHON)" sh tools/venv.sh serve $(VENV_SERVE)

peer: ## .venv-peer: fate-llm 2.2, which benchmarks measure against
	@PYTHON="$(PYTHON)" sh tools/venv.sh peer $(VENV_PEER)

demo: venv ## run the FedMKT quickstart: four parties on this machine
	@$(DEMO)

test: venv ## unit, contract, invariant and integration tests
	$(PY) -m pytest -q tests -m "$(QUICK)"

test-all: venv venv-serve packages ## every test; those that miss a GPU skip themselves
	$(PY) -m pytest -q tests

test-compat: venv-compat ## unit and contract tests and one federation in the compat set
	$(PY_COMPAT) -m pytest -q $(wildcard tests/unit tests/contract) -m "$(QUICK)"
	$(PY_COMPAT) -m pytest -q tests/integration -m smoke

test-client: venv-client ## a job written with FATE's Pipeline SDK, without torch
	$(PY_CLIENT) -m pytest -q tests/unit/test_client.py

test-serve: venv venv-serve ## the HTTP engine against a real server
	$(PY) -m pytest -q tests/contract/test_engines.py -m serve

packages: ## what sites of FATE Flow need of Debian: RabbitMQ, nginx (root or sudo)
	@deploy/packages.sh

test-flow: venv packages ## jobs between three servers of FATE Flow on this machine
	$(PY) -m pytest -q tests/flow -m "not slow" --durations=10

lint: venv ## ruff, formatting, mypy
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .
	$(PY) -m mypy

format: venv ## format the code and sort imports
	$(PY) -m ruff check --fix-only --select I .
	$(PY) -m ruff format .

check-confs: venv ## check every job that is shipped
	@for dag in conf/*/dag.yaml conf/*/*/dag.yaml; do \
	  echo "check $$dag"; \
	  $(VENV)/bin/fate-llm-ext check "$$dag" --sites "$${dag%dag.yaml}sites.yaml" || exit 1; \
	done

docs: venv ## regenerate docs/errors.md from the catalogue
	$(PY) tools/error_docs.py docs/errors.md

clean: ## remove caches and build products; environments and runs/ stay
	rm -rf build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find . -path './.venv*' -prune -o -type d -name __pycache__ -exec rm -rf {} +
