# Every target first makes the environment that it needs, once: a fresh clone needs only make and Python 3.11 or newer.
#
#   TORCH_INDEX   index that pip takes torch from. auto (the default): that of the CPU build where there is no NVIDIA GPU, else
#                 pip's own configuration (scripts/install_torch.sh); empty: always pip's own configuration
#   PYTEST_ARGS   further arguments for pytest, for example PYTEST_ARGS='-k noise -x'
#   TEST_WORKERS  number of processes for `make test`; 0 runs everything in one, as a debugger needs
SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help

PYTHON ?= python3
VENV ?= .venv
READERS ?= .venv-readers
TORCH_VERSION ?= 2.13.0
TORCH_INDEX ?= auto
PYTEST_ARGS ?=
TEST_WORKERS ?= 2
BENCH_ARGS ?=
# A tool of its own, in an environment of its own: --from NAME@VERSION COMMAND.
TOOL = $(VENV)/bin/uv tool run --from
TORTURE_S ?= 1800
TORTURE_ARGS ?=
SOAK_S ?= 1200
SOAK_ARGS ?=
FUZZ_EXAMPLES ?= 300
FUZZ_S ?= 3600
FUZZ_SEED ?= $(shell date +%s)
DEMO_ARGS ?=
SCREENSHOTS ?=

PY := $(VENV)/bin/python
PIP := $(PY) -m pip
TORCH := TORCH_VERSION=$(TORCH_VERSION) TORCH_INDEX=$(TORCH_INDEX) scripts/install_torch.sh
STAMP := $(VENV)/.made

# Resolves without torch, for every platform and Python; hashes are those of PyPI, whatever index pip uses here.
LOCK := $(VENV)/bin/uv pip compile --quiet --universal --python-version 3.11 --fork-strategy fewest --generate-hashes \
	--excludes requirements/excluded.txt --custom-compile-command 'make lock' --no-config \
	--default-index https://pypi.org/simple
# Installs exactly a lock file: nothing without a hash, nothing that it does not list.
SYNC := $(PIP) install --quiet --no-compile --require-hashes --no-deps -r

# Where it is set, every process that a test starts compiles all of our modules again.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: help env lock test test-browser test-slow test-readers test-containers fuzz torture soak lint format protos demo \
	compose-sample bench docs wheel sbom vulnerabilities schemas clean

help:  ## show this list
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "make %-16s %s\n", $$1, $$2}'

env: $(STAMP)  ## make the environment in .venv (every other target does so when needed)

# torch comes after the lock: its own requirements are installed by then, so pip adds only what its build brings along.
# The demo's model and sentences come without their dependencies, which are many and not used here.
# pip would compile 300 MB of modules in one process; compileall uses every core, and passes over what is no Python 3.
$(STAMP): pyproject.toml requirements/lock.txt requirements/lock-demo.txt
	@test -x $(PY) || $(PYTHON) -m venv $(VENV)
	@$(PY) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
		|| { echo "PrivTune needs Python 3.11 or newer: make PYTHON=/path/to/python3.11 $(MAKECMDGOALS)" >&2; exit 1; }
	$(SYNC) requirements/lock.txt
	$(SYNC) requirements/lock-demo.txt
	$(TORCH) $(PY) --quiet --no-compile
	$(PIP) install --quiet --no-deps -e .
	@$(PY) -m compileall -qq -j 0 $(VENV)/lib || true
	@touch $@

lock: $(STAMP)  ## pin the newest versions that pyproject.toml allows, with hashes, in requirements/
	$(LOCK) --upgrade -o requirements/lock.txt --extra all --extra dev pyproject.toml requirements/torch.in
	$(LOCK) --upgrade -o requirements/lock-demo.txt --no-deps requirements/demo.in
	for extras in cloud,postgres,s3,traces device,surrogates,traces; do $(LOCK) --upgrade -o requirements/lock-$${extras%%,*}.txt \
		-c requirements/lock.txt --extra $${extras//,/ --extra } --extra gguf pyproject.toml requirements/torch.in; done

test: $(STAMP)  ## run all tests but the slow and the container ones
	@scripts/install_test_services.sh
	$(PY) -m pytest -m 'not slow and not container' -n $(TEST_WORKERS) --dist loadfile --no-loadscope-reorder $(PYTEST_ARGS)

test-browser: $(STAMP)  ## the dashboard in Chromium; SCREENSHOTS=FOLDER leaves a picture of each page, light, dark and on a phone
	@scripts/install_test_services.sh
	PRIVTUNE_EVERY_LOOK=1 PRIVTUNE_SCREENSHOTS=$(SCREENSHOTS) $(PY) -m pytest tests/browser $(PYTEST_ARGS)

test-slow: $(STAMP)  ## run the tests that take minutes or need a real pre-trained model
	$(PY) -m pytest -m 'slow and not container' $(PYTEST_ARGS)

test-readers: $(STAMP) $(READERS)/.made  ## load exports in transformers 4 with peft, and in llama.cpp
	PRIVTUNE_TEST_READERS=$(abspath $(READERS))/bin/python $(PY) -m pytest -m slow $(PYTEST_ARGS) \
		tests/integration/test_export_elsewhere.py

$(READERS)/.made: requirements/readers.txt
	@test -x $(READERS)/bin/python || $(PYTHON) -m venv $(READERS)
	$(TORCH) $(READERS)/bin/python --quiet
	$(READERS)/bin/pip install --quiet -r requirements/readers.txt
	@touch $@

test-containers: $(STAMP)  ## build both images, start the compose file and train through it (root, podman)
	$(PY) -m pytest -m container $(PYTEST_ARGS) tests/containers

fuzz: $(STAMP)  ## twist frames for FUZZ_S seconds (3600), then let schemathesis try the control plane, FUZZ_EXAMPLES requests per operation (300); another FUZZ_SEED each time
	$(PY) -m tests.fuzz --seconds $(FUZZ_S) --seed $(FUZZ_SEED)
	PRIVTUNE_FUZZ_EXAMPLES=$(FUZZ_EXAMPLES) PRIVTUNE_FUZZ_SEED=$(FUZZ_SEED) \
		$(PY) -m pytest tests/integration/test_fuzzed_api.py $(PYTEST_ARGS)

torture: $(STAMP)  ## jobs through every fault at every state of the protocol, for TORTURE_S seconds (1800); then stores; then losses of power
	$(PY) -m tests.torture --seconds $(TORTURE_S) $(TORTURE_ARGS)
	PRIVTUNE_TORTURE_S=300 $(PY) -m pytest tests/integration/test_stores_survive.py $(PYTEST_ARGS)
	PRIVTUNE_TORTURE_S=240 $(PY) -m pytest tests/torture/test_power_loss.py $(PYTEST_ARGS)

soak: $(STAMP)  ## 64 devices on one cloud for SOAK_S seconds (1200), their connections cut now and then; writes docs/results/soak
	$(PY) -m tests.soak --seconds $(SOAK_S) --out docs/results/soak $(SOAK_ARGS)

lint: $(STAMP)  ## run ruff, mypy --strict, the import contracts, and check the protobuf stubs
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy
	$(VENV)/bin/lint-imports
	PATH="$(abspath $(VENV))/bin:$$PATH" scripts/check_protos.sh

format: $(STAMP)  ## let ruff fix and format the code
	$(VENV)/bin/ruff check --fix .
	$(VENV)/bin/ruff format .

protos: $(STAMP)  ## regenerate the committed protobuf stubs
	PATH="$(abspath $(VENV))/bin:$$PATH" scripts/gen_protos.sh

demo: $(STAMP)  ## fine-tune a real model on real sentences through a cloud on loopback; writes demo-out/
	$(PY) scripts/demo.py --out demo-out $(DEMO_ARGS)

compose-sample: $(STAMP)  ## put a real model, real sentences and a key where docker-compose.yml expects them
	$(PY) scripts/compose_sample.py

bench: $(STAMP)  ## measure the speed of the split against an ordinary training loop
	$(PY) -m tests.benchmarks $(BENCH_ARGS)

docs: $(STAMP)  ## build the documentation's site into build/site; a link that leads nowhere fails
	$(PY) scripts/build_site.py

wheel: $(STAMP)  ## build the wheel into dist/
	$(PY) -m build --wheel

sbom: $(STAMP)  ## write a bill of materials (CycloneDX) for each lock file into dist/
	@mkdir -p dist
	for lock in lock lock-cloud lock-device; do $(TOOL) cyclonedx-bom@7.4.0 cyclonedx-py requirements \
		--output-reproducible --output-file dist/sbom-$$lock.json requirements/$$lock.txt; done

vulnerabilities: $(STAMP)  ## ask PyPI's advisories about everything that is locked (needs pypi.org)
	for lock in lock lock-cloud lock-device lock-demo; do $(TOOL) pip-audit@2.10.1 pip-audit --strict --disable-pip \
		--require-hashes -r requirements/$$lock.txt || exit 1; done

schemas: $(STAMP)  ## check the workflows and the compose files against their schemas
	$(TOOL) check-jsonschema@0.39.0 check-jsonschema --builtin-schema vendor.github-workflows .github/workflows/*.yml
	$(TOOL) check-jsonschema@0.39.0 check-jsonschema --builtin-schema vendor.compose-spec docker-compose*.yml

clean:  ## remove build products and caches, but not the environment
	rm -rf dist build demo-out bench-out fuzz-out .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache *.egg-info
	find device cloud shared protos research tests scripts -name __pycache__ -type d -prune -exec rm -rf {} +
