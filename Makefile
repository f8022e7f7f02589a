# The commands of this project. `make help` lists them.
SHELL := bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
TOOLS := $(VENV)/.ready-tools
INSTALL := $(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt
RECIPE ?= quickstart
WORKERS ?= 2

# step(what, command): say what is done, do it, say how long it took
define step
	@started=$$(date +%s); echo "==> $(1)"; $(2) && echo "    ($$(( $$(date +%s) - started )) s)"
endef

.PHONY: help setup demo test test-all lint audit format docs docs-site picture ui up down clean

help:  ## List the commands
	@grep -E '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | awk -F':.*## ' '{printf "  make %-10s %s\n", $$1, $$2}'

setup: $(READY) $(TOOLS)  ## Make .venv with the project and its test tools (once; about 5 minutes)

$(READY): pyproject.toml constraints.txt
	$(call step,Making a virtual environment in $(VENV),$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed; try make PYTHON=python3.11")' && $(PYTHON) -m venv $(VENV))
	$(call step,Installing the project and its dependencies (3 GB; some minutes),$(INSTALL) --editable .)
	@touch $@

$(TOOLS): $(READY)
	$(call step,Installing the tools that tests and checks need,$(INSTALL) --editable '.[dev]')
	@touch $@

demo: $(READY)  ## Distil a real teacher into a small student on this machine's CPU (about 5 minutes)
	$(call step,Distilling: sra run $(RECIPE),$(BIN)/sra run $(RECIPE))
	@echo "Next: \`make ui\` shows the runs in MLflow; README.md tells how to use your own models and data."

test: $(TOOLS)  ## Run the tests (no network beyond set-up; no GPU)
	$(call step,Running the tests,$(BIN)/python -m pytest -q -n $(WORKERS))
	@echo "Next: \`make test-all\` adds the tests that start servers and kill processes; \`make demo\` shows the main job."

test-all: $(TOOLS)  ## Run every test, the slow ones and those with real servers too
	$(call step,Installing the evaluation harness,$(INSTALL) --editable '.[dev,lm-eval]')
	$(call step,Running every test,$(BIN)/python -m pytest -q -n $(WORKERS) -m 'not gpu')

lint: $(TOOLS)  ## Check style and types
	$(call step,Checking style,$(BIN)/ruff check . && $(BIN)/ruff format --check .)
	$(call step,Checking types,$(BIN)/mypy)

audit: $(TOOLS)  ## Look up the dependencies among known vulnerabilities
	$(call step,Auditing the dependencies,$(BIN)/python .ci/audit.py)

format: $(TOOLS)  ## Put the code into the project's format
	$(BIN)/ruff check --fix . && $(BIN)/ruff format .

docs: $(READY)  ## Make the pages that come from the code: every field of the config, every package
	$(BIN)/sra fields --markdown > docs/reference.md
	$(BIN)/python docs/rooms.py

# Not --quiet: it drops the warnings before --strict counts them.
docs-site: $(TOOLS)  ## Build the pages as a site in build/site; a link that leads nowhere fails
	$(call step,Building the site,NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict)
	@echo "Next: open build/site/index.html through a server: $(BIN)/python -m http.server --directory build/site"

picture: $(READY)  ## Draw the picture of the README anew (runs the demo's teacher if there is no cache yet)
	$(BIN)/sra cache quickstart
	$(BIN)/sra audit quickstart --example xmlrpc.client.SafeTransport --figure docs/images/spans.svg

ui: $(READY)  ## Open the MLflow UI on the demo's runs (Ctrl-C ends it)
	@$(BIN)/sra ui $(RECIPE)

up: $(READY)  ## Start Prefect, MLflow and a worker of pool gpu on loopback; apply the deployments
	@$(BIN)/python deploy/services.py up

down: $(READY)  ## Stop what `make up` started; data stays
	@$(BIN)/python deploy/services.py down

clean:  ## Remove the virtual environment, caches and the demo's store
	rm -rf $(VENV) sra-store .pytest_cache .mypy_cache .ruff_cache .hypothesis *.egg-info
