# `make` lists the targets. All set-up goes into ./.venv; nothing is installed outside this folder,
# but for `make system-setup` (also behind `system` and `alerts-check`), `make contract-rgw`,
# `make image-check` and `make bench`, which may need packages of Debian's.

SHELL := /bin/bash
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:

VENV := .venv
BIN  := $(VENV)/bin
PIP  := $(BIN)/python -m pip --disable-pip-version-check
# The variables of a person's shell must not send the demo or the tests to a real bucket.
# One that forbids compiled files would have each process of the tests compile all of them again.
CLEAN_ENV := env -u AWS_PROFILE -u AWS_ENDPOINT_URL -u AWS_ENDPOINT_URL_S3 -u PYTHONDONTWRITEBYTECODE

# Makes ./.venv with the first python that is new enough: a name on the PATH may be a dead shim.
define make_venv
	@set -e; test -x $(BIN)/python || { \
	  for p in python3 python3.13 python3.12 python3.11 python3.14; do \
	    if "$$p" -c 'import sys; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1; then \
	      echo "$$p -m venv $(VENV)"; rm -rf $(VENV); "$$p" -m venv $(VENV) && exit 0; \
	      rm -rf $(VENV); \
	      echo "error: $$p cannot make a venv: install its venv package (Debian: python3-venv)" >&2; \
	      exit 1; \
	    fi; \
	  done; \
	  echo "error: no python >= 3.11 on the PATH (looked for python3, python3.11 to python3.14)" >&2; \
	  exit 1; }
endef

# $(1): a locked requirements file. The package itself goes in editable, built by the locked backend.
define install
	$(make_venv)
	$(PIP) install --quiet --require-hashes -r $(1)
	$(PIP) install --quiet --no-deps --no-build-isolation --editable .
	@touch $@
endef

.PHONY: help
help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  %-13s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

$(VENV)/.demo-installed: requirements/demo.txt pyproject.toml
	$(call install,$<)

$(VENV)/.dev-installed: requirements/dev.txt pyproject.toml
	$(call install,$<)

.PHONY: venv
venv: $(VENV)/.dev-installed ## everything a developer needs, in ./.venv

.PHONY: demo
demo: $(VENV)/.demo-installed ## the main job on embedded parts; ARGS="--calls 200 --keep" passes options
	@$(CLEAN_ENV) $(BIN)/archiver demo $(ARGS)

.PHONY: test
test: $(VENV)/.dev-installed ## all tests but tests/system; ARGS="-k window" passes options
	$(CLEAN_ENV) $(BIN)/python -m pytest --ignore=tests/system -n 4 --dist worksteal $(ARGS)

.PHONY: transports
transports: $(VENV)/.dev-installed ## transfer, hostile, faults and contract over httpx; contract by boto3 alone
	HTTP_TRANSPORT=standard $(CLEAN_ENV) $(BIN)/python -m pytest -n 3 --dist worksteal \
	  tests/unit/test_transfer.py tests/hostile tests/faults tests/contract $(ARGS)
	S3_REQUESTS=boto3 $(CLEAN_ENV) $(BIN)/python -m pytest tests/contract -n 3 --dist worksteal $(ARGS)

.PHONY: permanent
permanent: $(VENV)/.dev-installed ## all places where one thing may be bad for ever; make test has a third
	PERMANENT=all $(CLEAN_ENV) $(BIN)/python -m pytest tests/permanent -n 3 --dist worksteal $(ARGS)

REPLAYED := $(SEED)
EXAMPLES ?= 2000
SEED ?= 1

.PHONY: properties
properties: $(VENV)/.dev-installed ## tests/model at length; EXAMPLES=20000 tries more, SEED=2 others
	PYTHONHASHSEED=0 PROPERTIES_EXAMPLES=$(EXAMPLES) PROPERTIES_SEED=$(SEED) \
	  $(CLEAN_ENV) $(BIN)/python -m pytest tests/model -n auto --dist worksteal $(ARGS)

.PHONY: mutants
mutants: $(VENV)/.dev-installed ## plant bugs in a copy, one at a time: some test must catch each
	$(CLEAN_ENV) $(BIN)/python -m tests.mutants $(ARGS)

SEEDS ?= 5000
FIRST ?= 1
SIMULATION = PYTHONHASHSEED=0 $(CLEAN_ENV) $(BIN)/python -m tests.simulation

.PHONY: simulate
simulate: $(VENV)/.dev-installed ## SEEDS=5000 histories full of faults; SEED=7 replays one
	$(SIMULATION) $(if $(REPLAYED),--seed $(REPLAYED),--seeds $(SEEDS) --first $(FIRST))

.PHONY: crash-points
crash-points: $(VENV)/.dev-installed ## a mishap at each request in turn; POINT=loop/after/7 replays one
	$(SIMULATION).points $(if $(POINT),--point "$(POINT)")

.PHONY: lint
lint: $(VENV)/.dev-installed ## ruff: rules and format; shellcheck
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/shellcheck .ci/run $$(find . \( -name .venv -o -name .cache \) -prune -o -name '*.sh' -print)

.PHONY: types
types: $(VENV)/.dev-installed ## mypy --strict on archiver/ and bench/
	$(BIN)/mypy --strict archiver bench

.PHONY: imports
imports: $(VENV)/.dev-installed ## the direction of imports (import-linter)
	$(BIN)/lint-imports

.PHONY: docs
docs: $(VENV)/.dev-installed ## write the generated pages anew
	$(BIN)/python tools/docs.py

.PHONY: docs-check
docs-check: $(VENV)/.dev-installed ## fail where a generated page has drifted
	$(BIN)/python tools/docs.py --check

.PHONY: system-setup
system-setup: ## what tests/system needs: azurite, promtool, jq, openssl, nginx, gcc (may apt-get)
	tests/system/setup.sh

.PHONY: system
system: $(VENV)/.dev-installed system-setup ## the system tests: the installed command and real servers
	PATH="$(CURDIR)/.cache/bin:$(CURDIR)/$(BIN):$$PATH" \
	  $(CLEAN_ENV) $(BIN)/python -m pytest tests/system -n 2 --dist loadfile $(ARGS)

.PHONY: large-window
large-window: $(VENV)/.dev-installed system-setup ## a window of 100,000 calls: how much memory it takes
	PATH="$(CURDIR)/.cache/bin:$(CURDIR)/$(BIN):$$PATH" LARGE_WINDOW_CALLS=100000 \
	  $(CLEAN_ENV) $(BIN)/python -m pytest -s tests/system/test_large_window.py $(ARGS)

KILLS ?= 200
MINUTES ?= 30

.PHONY: kills
kills: $(VENV)/.dev-installed system-setup ## SIGKILL backfills at random, KILLS=200 times; KILLS_SEED=… repeats
	PATH="$(CURDIR)/.cache/bin:$(CURDIR)/$(BIN):$$PATH" KILLS=$(KILLS) \
	  $(CLEAN_ENV) $(BIN)/python -m pytest -s tests/system/test_kills.py $(ARGS)

.PHONY: soak
soak: $(VENV)/.dev-installed system-setup ## all faults at once, MINUTES=30, and what is left of it
	PATH="$(CURDIR)/.cache/bin:$(CURDIR)/$(BIN):$$PATH" SOAK_MINUTES=$(MINUTES) \
	  $(CLEAN_ENV) $(BIN)/python -m pytest -s tests/system/soak/soak.py $(ARGS)

.PHONY: bench
bench: $(VENV)/.dev-installed ## the speed comparison of bench/README.md; ARGS="--quick": three minutes (may apt-get)
	bench/setup.sh
	$(CLEAN_ENV) $(BIN)/python -m bench $(if $(ARGS),$(ARGS),--write)

.PHONY: bench-ledger
bench-ledger: $(VENV)/.dev-installed ## what reading the ledger costs; needs gcc
	bench/build.sh
	$(CLEAN_ENV) $(BIN)/python -m bench.ledger $(if $(ARGS),$(ARGS),--write)

.PHONY: contract-rgw
contract-rgw: $(VENV)/.dev-installed ## the store's contract, and locks, on Ceph RGW (may apt-get)
	tests/system/ceph-setup.sh
	PATH="$(CURDIR)/$(BIN):$$PATH" CONTRACT_STORES=rgw $(CLEAN_ENV) \
	  $(BIN)/python -m pytest tests/contract tests/system/test_worm.py $(ARGS)

.PHONY: deploy-check
deploy-check: $(VENV)/.dev-installed ## the Dockerfile (hadolint) and the Kubernetes files (schemas)
	$(BIN)/hadolint Dockerfile
	deploy/kubernetes/check.sh

.PHONY: alerts-check
alerts-check: system-setup ## the alerts of deploy/prometheus and their tests (promtool; may apt-get)
	deploy/prometheus/check.sh

.PHONY: image-check
image-check: ## build the image with podman and look inside (needs root; may apt-get)
	deploy/check-image.sh

.PHONY: ci
ci: ## what CI runs
	bash .ci/run

LOCK = cd requirements && ../$(BIN)/uv pip compile --quiet --no-config --universal \
	--python-version 3.11 --generate-hashes --no-emit-index-url --no-emit-find-links \
	--custom-compile-command "make lock" $(UPGRADE)

.PHONY: lock
lock: $(VENV)/.dev-installed ## compile requirements/*.txt; UPGRADE=--upgrade takes newer versions
	$(LOCK) ../pyproject.toml --extra demo build.in dev.in -o dev.txt
	$(LOCK) ../pyproject.toml --extra demo build.in -c dev.txt -o demo.txt
	$(LOCK) ../pyproject.toml -c dev.txt -o runtime.txt
	$(LOCK) build.in -c dev.txt -o build.txt

.PHONY: clean
clean: ## remove the environment, caches and build output
	rm -rf $(VENV) .cache build dist .mypy_cache .pytest_cache .ruff_cache .hypothesis
	rm -rf .import_linter_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
