# Every target makes .venv from a bare clone and needs nothing installed by hand but Python >= 3.11.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
SHELL := /bin/bash
# Files in the order of their names: small ones come last (tests/unit), and no processor waits long for the other.
BY_FILE := --dist loadfile --no-loadscope-reorder
.DEFAULT_GOAL := help
.PHONY: help venv demo test test-cassettes fast long test-nasty lint fmt cover bench scale record docs clean

help: ## what there is to run
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## /  make \1\t/' | expand -t 24

venv: $(STAMP) ## make .venv with vrepl and everything that its tests need

# Go and a C compiler build the lab; a machine that has none gets both from PyPI (extra `lab`).
$(STAMP): pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "vrepl needs Python 3.11 or newer; say which with: make PYTHON=/path/to/python3.11 ..." >&2; exit 2; }
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@extras=dev; command -v go >/dev/null && command -v cc >/dev/null || extras=dev,lab; \
	  echo "installing vrepl[$$extras] into $(VENV) ..."; \
	  $(BIN)/python -m pip install --quiet --disable-pip-version-check --editable ".[$$extras]"
	@touch $@

demo: $(STAMP) ## the main job on the lab: two vCenters, three VMs cross, verified
	$(BIN)/vrepl lab demo

lint: $(STAMP) ## ruff, mypy --strict, the import rules
	$(BIN)/ruff check src tests benchmarks
	$(BIN)/ruff format --check --quiet src tests benchmarks
	$(BIN)/mypy
	$(BIN)/lint-imports

fmt: $(STAMP) ## put the code into its form
	$(BIN)/ruff check --fix src tests benchmarks
	$(BIN)/ruff format src tests benchmarks

fast: $(STAMP) ## unit tests without the slow ones
	$(BIN)/python -m pytest -n 2 --dist worksteal --hypothesis-profile fast -m 'not slow and not long and not lab' tests/unit

test: lint ## lint and the whole test suite (lab tests are skipped where the lab cannot be built)
	$(BIN)/python -m pytest -n 2 $(BY_FILE)

long: $(STAMP) ## storms, fuzzing, soak: what takes too long for `make test`
	$(BIN)/python -m pytest -n 2 $(BY_FILE) -m long

cover: $(STAMP) ## which lines the unit and contract tests reach
	$(BIN)/python -m pytest -n 2 $(BY_FILE) --cov=vrepl --cov-report=term-missing:skip-covered tests/unit tests/contract

test-nasty: $(STAMP) ## tests on the lab with every nasty setting on (docs/lab.md)
	VREPL_LAB_NASTY=1 $(BIN)/python -m pytest -n 2 $(BY_FILE) tests/live

test-cassettes: $(STAMP) ## what passes without a network and without a lab
	VREPL_NO_LAB=1 $(BIN)/python -m pytest -n 2 $(BY_FILE)

bench: $(STAMP) ## benchmarks, as ratios in one run
	$(BIN)/python -m benchmarks

scale: $(STAMP) ## 5,000 VMs on the lab: calls, and time beside govc's own listing
	$(BIN)/python -m benchmarks scale

record: $(STAMP) ## record the API cassettes anew from the lab
	$(BIN)/python -m tests.record

docs: $(STAMP) ## write what is made from the source: docs/troubleshooting.md
	$(BIN)/python -m tests.support.troubleshooting

clean: ## remove .venv and caches of this checkout
	rm -rf $(VENV) .pytest_cache .mypy_cache .ruff_cache .hypothesis
