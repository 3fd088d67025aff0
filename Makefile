# The platform's commands. `make help` lists them.
PYTHON ?= python3
VENV   ?= .venv
BIN    := $(VENV)/bin
# One more than the cores of a small machine: many tests wait for a server or another process.
TEST_PROCESSES ?= 3
# A machine with an NVIDIA driver gets faiss-gpu (and pip's CUDA build of torch), any other faiss-cpu.
EXTRA  := $(shell command -v nvidia-smi >/dev/null 2>&1 && nvidia-smi -L >/dev/null 2>&1 && echo gpu || echo cpu)
# The venv's tools come first, for DVC's stages and Prefect's workers too; no tool phones home.
export PATH := $(CURDIR)/$(BIN):$(PATH)
include infra/local/telemetry-off.env
export

.PHONY: help install demo test check lint types pytest perf docs audit sbom platform down clean
help:      ## list the commands
	@grep -hE '^[a-z]+: .*##|^[a-z]+: +##' $(MAKEFILE_LIST) | sed -E 's/:[^#]*##/\t/' | expand -t 12

# What the lock files name, each file with its SHA-256, and nothing else. Built without isolation: build.lock came first.
PIP    := python -m pip install --quiet
LOCKED := $(PIP) --require-hashes --no-deps --no-build-isolation
export DS_BUILD_OPS := 0

install: $(VENV)/.installed-$(EXTRA)  ## make the virtual environment from the lock

$(VENV)/.installed-$(EXTRA): pyproject.toml requirements.lock $(wildcard requirements/*)
	@# what does not fit is said first, by the Python that would be used
	@if test -x $(BIN)/python; then $(BIN)/python infra/local/interpreter.py; else $(PYTHON) infra/local/interpreter.py; fi
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/$(LOCKED) -r requirements/build.lock
	$(BIN)/$(LOCKED) -r requirements.lock -r requirements/$(EXTRA).lock -r requirements/dev.lock
	@# torch has no hash: its build, and what that brings, differ by machine
	$(BIN)/$(PIP) -r requirements/torch.txt
	$(BIN)/$(PIP) --no-deps --no-build-isolation -e .
	touch $@

demo: install  ## the main job end to end: a web site to compared checkpoints
	$(BIN)/python -m infra.local.demo

check: lint types  ## lint, types, walls

lint: install
	$(BIN)/ruff check . && $(BIN)/ruff format --check .
	$(BIN)/lint-imports --no-cache

types: install
	$(BIN)/mypy

pytest: install
	$(BIN)/python -m pytest -n $(TEST_PROCESSES) --dist loadfile --no-loadscope-reorder

test: lint  ## every check and test, in TEST_PROCESSES processes; mypy beside them
	@$(MAKE) --no-print-directory -j 2 types pytest

perf: install  ## ratios measured on this machine, printed and written to perf/results/
	$(BIN)/python -m perf

docs: install  ## the documents as a site in site/, every link checked
	$(BIN)/$(LOCKED) -r requirements/docs.lock
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict

# In an environment of their own: what they install slows every import of jsonschema by two seconds (rfc3987-syntax).
SECURITY_BIN := .venv-security/bin

$(SECURITY_BIN)/bandit: requirements/security.lock
	$(BIN)/python -m venv .venv-security
	$(SECURITY_BIN)/$(LOCKED) -r requirements/security.lock
	touch $@

audit: $(SECURITY_BIN)/bandit  ## known weaknesses: of the code (bandit), of the packages in the lock (pip-audit, asks the network)
	$(SECURITY_BIN)/python -m bandit -q -ll -c pyproject.toml -r components flows infra
	$(SECURITY_BIN)/python -m pip_audit $(patsubst %,--requirement %,requirements.lock $(wildcard requirements/*.lock)) --no-deps --disable-pip

sbom: install $(SECURITY_BIN)/bandit  ## every package with version and licence, as CycloneDX: reports/sbom.json
	mkdir -p reports
	$(SECURITY_BIN)/python -m cyclonedx_py environment --pyproject pyproject.toml --of JSON -o reports/sbom.json $(BIN)/python

platform: install  ## start Prefect server, worker and MLflow as local processes, and deploy
	$(BIN)/python -m infra.local.stack up

down:      ## end what 'make platform' started
	$(BIN)/python -m infra.local.stack down
