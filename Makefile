# Every target first sets up what it needs (deploy/setup.sh; a no-op when nothing has changed). The environment is
# .venv, so `.venv/bin/nimbus` works after any of them. `make help` lists what there is.
SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
MAKEFLAGS += --no-print-directory
# sbin holds nft, mke2fs and sysctl; an ordinary user's PATH may lack it.
export PATH := $(PATH):/usr/sbin:/sbin

BIN := .venv/bin
PYTHON ?=
export PYTHON
ARGS ?=
WORKFLOW ?=
ROUNDS ?=
AT_ONCE ?=
LINTED := nimbus tests bench native docs

.PHONY: help setup setup-run build check format test test-pythons test-controllers test-storms test-control-storm fuzz-api demo up run soak-run soak-logs faults model storm storm-qemu lock clean

help: ## show this list
	@echo "Nimbus: self-hosted CI, one throw-away microVM per job"
	@echo
	@awk -F ':.*## ' '/^[a-z-]+%?:.*## / {printf "  make %-16s %s\n", $$1, $$2}' Makefile
	@echo
	@echo "  make demo WORKFLOW=my.yml      the same with a workflow of yours"
	@echo "  make run ARGS='-- uname -r'    one command in a fresh microVM"
	@echo "  make test ARGS='-k lease'      some of the tests"
	@echo "  make PYTHON=/path/to/python3.13 setup    another interpreter (3.11 to 3.13)"

setup: ## Debian packages, .venv, Nimbus with its native code
	@deploy/setup.sh dev

setup-run:
	@deploy/setup.sh run

build: setup-run ## the native parts (keeper, nimbus-init, cffi library) and the guest's kernel and disks
	@$(BIN)/nimbus assets build

check: setup ## lint, format, types, import rules, house rules, clang-tidy
	@echo "== ruff"; $(BIN)/ruff check $(LINTED); $(BIN)/ruff format --check $(LINTED)
	@echo "== flake8-async"; $(BIN)/flake8 $(LINTED)
	@echo "== mypy"; $(BIN)/mypy
	@echo "== import rules"; $(BIN)/lint-imports
	@echo "== house rules"; $(BIN)/pytest -q -p no:cacheprovider tests/unit/test_house.py
	@echo "== clang-tidy"; $(MAKE) -C native tidy
	@echo "check: all good"

format: setup ## let ruff format and sort what it can
	@$(BIN)/ruff format $(LINTED); $(BIN)/ruff check --fix-only $(LINTED)

test: setup ## all tests; guests really boot
	@$(BIN)/nimbus assets build
	@$(BIN)/pytest $(ARGS)

test-pythons: setup ## the unit tests on every newer Python that is installed here
	@deploy/test-pythons.sh

test-controllers: ## the host's tests as root in a Debian guest that has every cgroup controller (some ten minutes)
	@deploy/setup.sh controllers
	@$(BIN)/python -m tests.controllers.run $(ARGS)

test-storms: build ## 500 jobs of three organisations through each of GitHub's four bad days (some ten minutes)
	@NIMBUS_TEST_STORM_JOBS=500 $(BIN)/pytest tests/acceptance/test_github_storm.py -rP $(ARGS)

test-control-storm: build ## 500 jobs while control planes and Redis are killed; 5,000 of one org beside another's one
	@$(BIN)/pytest tests/acceptance/test_control_storm.py tests/acceptance/test_flood.py -rP $(ARGS)

fuzz-api: setup ## call all that the API's document describes, rightly and wrongly (FUZZ_SECONDS=600 is the default)
	@$(BIN)/python -m tests.acceptance.apifuzz --seconds $(or $(FUZZ_SECONDS),600) $(ARGS)

demo: setup-run ## from nothing to a GitHub-style job in a microVM, with a fake GitHub (WORKFLOW=file takes yours)
	@$(BIN)/nimbus demo $(if $(WORKFLOW),--workflow '$(WORKFLOW)') $(ARGS)

up: setup-run ## the whole stack with the fake GitHub; Ctrl-C stops it
	@$(BIN)/nimbus assets build
	@exec $(BIN)/nimbus up --sim $(ARGS)

run: setup-run ## one command in a fresh microVM: make run ARGS='-- uname -r'
	@$(BIN)/nimbus assets build
	@$(BIN)/nimbus run $(ARGS)

soak-run: setup ## 8 runs at once, 20 rounds, and big outputs (ROUNDS=5 AT_ONCE=4 changes that)
	@$(BIN)/nimbus assets build
	@$(BIN)/python -m bench.soak $(if $(ROUNDS),--rounds $(ROUNDS)) $(if $(AT_ONCE),--at-once $(AT_ONCE)) $(ARGS)

soak-logs: setup ## 2,000,000 lines of 50 jobs while pipeline, engine, agents and network are killed (ARGS='--seed 7' repeats)
	@$(BIN)/python -m tests.acceptance.logsoak $(ARGS)

faults: setup ## strike every operation of an agent with every kind of fault (ARGS='--only nft' takes a few; 30 minutes)
	@$(BIN)/nimbus assets build
	@status=0; \
	NIMBUS_TEST_ALL_POINTS=1 $(BIN)/pytest -q tests/faults/test_every_step.py -k cancelling || status=1; \
	NIMBUS_TEST_ALL_POINTS=1 $(BIN)/pytest -q -rP tests/faults/test_cycles.py || status=1; \
	NIMBUS_TEST_ALL_POINTS=1 $(BIN)/pytest -q -rP tests/acceptance/test_agent_restarts.py -k every_line || status=1; \
	$(BIN)/python -m tests.faults.lease_machine --stories 6 --words 20 || status=1; \
	$(BIN)/python -m tests.faults.disabled_releases || status=1; \
	$(BIN)/python -m tests.faults.campaign --folder build/faults $(ARGS) || status=1; \
	exit $$status

model: setup ## search every state of the lease protocol with spin, and of variants broken on purpose
	@$(BIN)/python -m tests.model.run

storm: setup ## 100 jobs on two agents while agents and control plane are killed (ARGS='--seed 7' repeats one)
	@$(BIN)/python -m tests.faults.storm --vmm fake --jobs 100 --every 5 $(ARGS)

storm-qemu: setup ## the same with 20 jobs in real guests
	@$(BIN)/nimbus assets build
	@$(BIN)/python -m tests.faults.storm --vmm qemu --jobs 20 --every 10 $(ARGS)

bench-%: ## a measurement with bounds, for example bench-run; writes bench/results/NAME.json
	@deploy/setup.sh bench
	@$(BIN)/nimbus assets build
	@$(BIN)/python -m bench.$* $(ARGS)

lock: setup ## pin the requirements again, with hashes
	@deploy/lock.sh

clean: ## remove what builds and runs left in this folder (not .venv, not .state)
	@rm -rf build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
	@if [ -e native/Makefile ]; then $(MAKE) -C native clean; fi
	@rm -f .setup/project-*
	@find nimbus tests bench native -name __pycache__ -type d -prune -exec rm -rf {} +
