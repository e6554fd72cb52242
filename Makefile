# Every target makes the environment it needs, once: a fresh clone needs only make and Python 3.11 or newer.
#
#   TORCH_INDEX   where pip looks for torch. Empty (the default): pip's own configuration. On a machine whose pip would
#                 fetch the CUDA build (several GB) and that has no GPU:
#                   make test TORCH_INDEX=https://download.pytorch.org/whl/cpu
#   PYTEST_ARGS   more arguments for pytest, for example PYTEST_ARGS='-k noise -x'
#   TEST_WORKERS  processes that `make test` deals the test files to; 0 runs all in one, as a debugger wants it
SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help

PYTHON ?= python3
VENV ?= .venv
TORCH_VERSION ?= 2.13.0
TORCH_INDEX ?=
PYTEST_ARGS ?=
TEST_WORKERS ?= 2
BENCH_ARGS ?=
DEMO_ARGS ?=

PY := $(VENV)/bin/python
PIP := $(PY) -m pip
STAMP := $(VENV)/.made

.PHONY: help env test test-slow test-containers lint format protos demo compose-sample bench wheel clean

help:  ## this list
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "make %-16s %s\n", $$1, $$2}'

env: $(STAMP)  ## make the environment in .venv (the other targets do it by themselves)

# torch goes first and alone: asked for through a range, pip would pick the newest build with all of CUDA.
# The demo's model and sentences go last without their dependencies, which are many and not used here.
$(STAMP): pyproject.toml
	@test -x $(PY) || $(PYTHON) -m venv $(VENV)
	@$(PY) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
		|| { echo "PrivTune needs Python 3.11 or newer: make PYTHON=/path/to/python3.11 $(MAKECMDGOALS)" >&2; exit 1; }
	$(PIP) install --quiet $(if $(TORCH_INDEX),--index-url $(TORCH_INDEX)) torch==$(TORCH_VERSION)
	$(PIP) install --quiet -e '.[all,dev]'
	$(PIP) install --quiet --no-deps $$($(PY) scripts/requirements.py demo)
	@touch $@

test: $(STAMP)  ## unit, integration, e2e and wire tests; no real model over a minute, no containers
	$(PY) -m pytest -m 'not slow and not container' -n $(TEST_WORKERS) --dist loadfile $(PYTEST_ARGS)

test-slow: $(STAMP)  ## the tests that take minutes or need a real pre-trained model
	$(PY) -m pytest -m 'slow and not container' $(PYTEST_ARGS)

test-containers: $(STAMP)  ## build both images, bring the compose file up and train through it (root, podman)
	$(PY) -m pytest -m container $(PYTEST_ARGS) tests/containers

lint: $(STAMP)  ## ruff, mypy --strict, import contracts, fresh protobuf stubs
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy
	$(VENV)/bin/lint-imports
	PATH="$(CURDIR)/$(VENV)/bin:$$PATH" scripts/check_protos.sh

format: $(STAMP)  ## let ruff rewrite what it can
	$(VENV)/bin/ruff check --fix .
	$(VENV)/bin/ruff format .

protos: $(STAMP)  ## regenerate the committed protobuf stubs
	PATH="$(CURDIR)/$(VENV)/bin:$$PATH" scripts/gen_protos.sh

demo: $(STAMP)  ## fine-tune a real model on real sentences through a cloud on loopback; writes demo-out/
	$(PY) scripts/demo.py --out demo-out $(DEMO_ARGS)

compose-sample: $(STAMP)  ## a real model, real sentences and a key where docker-compose.yml looks for them
	$(PY) scripts/compose_sample.py

bench: $(STAMP)  ## speed of the split against an ordinary training loop
	$(PY) -m tests.benchmarks $(BENCH_ARGS)

wheel: $(STAMP)  ## build the wheel into dist/
	$(PY) -m build --wheel

clean:  ## remove what was built and written, but not the environment
	rm -rf dist build demo-out bench-out .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache *.egg-info
	find device cloud shared protos research tests scripts -name __pycache__ -type d -prune -exec rm -rf {} +
