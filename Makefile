# What a person needs is in README.md and HACKING.md; `make help` lists the targets.
#
# Everything a clone makes lies inside it: .venv (Python), .artifacts (a BANGER_HOME with kernels, images
# and tools, shared by `make run` and the tests, so that nothing is built twice). `make clean` removes both.

SHELL := /bin/sh
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.NOTPARALLEL:

BIN := .venv/bin
SUDO := $(shell [ "$$(id -u)" = 0 ] || echo sudo)
ARTIFACTS ?= $(CURDIR)/.artifacts
AS_ROOT := $(SUDO) env BANGER_HOME=$(ARTIFACTS)
PYTEST := $(SUDO) env BANGER_TEST_ARTIFACTS=$(ARTIFACTS) $(if $(CI),CI=$(CI)) $(if $(BANGER_TEST_FIRECRACKER),BANGER_TEST_FIRECRACKER=$(abspath $(BANGER_TEST_FIRECRACKER))) $(BIN)/python -m pytest

# how long to fuzz
SECONDS ?= 600
# so many test files at a time; guests wait more than they compute
WORKERS ?= 2
# extra words for pytest, as in: make test ARGS="-x -k names"
ARGS ?=

.PHONY: help run test setup setup-test lint unit test-lab fuzz bench clean

help: ## this list
	@sed -n 's/^\([a-z-]*\):.*## /\1\t/p' $(MAKEFILE_LIST) | expand -t 14

run: setup ## set up what is missing, boot a guest and let it say who it is
	@$(AS_ROOT) tools/run.sh

test: setup-test ## set up what is missing and run the whole suite: style, unit, host, guest, lab
	@$(SUDO) env BANGER_TEST_ARTIFACTS=$(ARTIFACTS) $(BIN)/python -m tests.artifacts
	@$(PYTEST) -n $(WORKERS) --dist loadfile --no-loadscope-reorder $(ARGS)

setup: ## host packages, .venv and the guest agent: what running needs
	@tools/setup.sh run

setup-test: ## … and what the tests need
	@tools/setup.sh test

lint: setup-test ## ruff, mypy, pyright and the house rules
	@$(PYTEST) tests/style $(ARGS)

unit: setup-test ## the tests that need no root and no guest
	@$(BIN)/python -m pytest tests/unit $(ARGS)

test-lab: setup-test ## only the tests that need device-mapper or KVM, inside the lab host (a guest)
	@$(PYTEST) tests/lab $(ARGS)

fuzz: setup-test ## the agent's and the image room's readers against any bytes, for SECONDS=600 in all
	@$(BIN)/python -m tests.fuzz --seconds $(SECONDS) $(ARGS)

bench: setup-test ## the figures of bench/, each beside its baseline
	@$(SUDO) env BANGER_TEST_ARTIFACTS=$(ARTIFACTS) $(BIN)/python -m bench $(ARGS)

clean: ## stop this clone's daemon and remove all that make has made here
	@if [ -x $(BIN)/banger ] && [ -d $(ARTIFACTS) ]; then $(AS_ROOT) $(BIN)/banger daemon stop; fi
	@$(SUDO) rm -rf .venv $(ARTIFACTS) .mypy_cache .ruff_cache .pytest_cache .hypothesis src/banger/agent_bin agent/build
