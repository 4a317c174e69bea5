# What people and CI both run. Recipes are one line; logic lives in tools/.
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
MAKEFLAGS += --no-print-directory

BIN := .venv/bin
# Options for pytest, such as PYTEST_ARGS='-k drain'. Live tests mostly wait: four at a time.
PYTEST_ARGS ?= -n 4
# The checkers' own work is on these.
CODE := schemas worker tests tools

.PHONY: help setup setup-test setup-v2 run test test-unit test-v2 soak bench bench-quick bench-queue bench-kill lint types layers check format lock build clean

help: ## Show this help
	@awk -F ':.*## ' '/^[a-z0-9-]+:.*## / {printf "  %-11s  %s\n", $$1, $$2}' $(MAKEFILE_LIST)

setup: ## Set this machine up: Debian packages, gVisor, .venv (as root)
	@tools/setup

setup-test:
	@tools/setup --test

setup-v2:
	@tools/setup --v2

run: setup ## Show corral at work: the demo, on this machine
	@$(BIN)/corral demo

test: setup-test ## Run all tests (PYTEST_ARGS: other options for pytest)
	$(BIN)/pytest $(PYTEST_ARGS)

test-unit: setup-test ## Run the tests that need nothing of the host
	$(BIN)/pytest tests/unit $(PYTEST_ARGS)

test-v2: setup-v2 ## Run the sandbox tests on cgroup version 2, in a virtual machine
	@tools/test-v2

soak: setup-test ## Run thousands of jobs while runsc and workers get killed (SOAK_ARGS: options)
	PYTHONPATH=tests $(BIN)/python -m soak $(SOAK_ARGS)

bench: setup-test ## Measure corral beside bare runsc and others (BENCH_ARGS: options)
	PYTHONPATH=tests $(BIN)/python -m bench $(BENCH_ARGS)

bench-quick: setup-test ## The same with latency and throughput only, and fewer runs
	PYTHONPATH=tests $(BIN)/python -m bench --quick $(BENCH_ARGS)

bench-queue: setup-test ## Measure the queue beside a stock arq worker
	$(BIN)/python tests/bench/bench_queue.py

bench-kill: setup-test ## Measure how soon a sandbox is dead after a cancel or a limit
	PYTHONPATH=tests $(BIN)/python -m bench.bench_kill

lint: setup ## Check style and formatting
	$(BIN)/ruff check $(CODE) && $(BIN)/ruff format --check $(CODE)

types: setup ## Check types
	$(BIN)/mypy

layers: setup ## Check which package may import which
	$(BIN)/lint-imports

check: lint types layers ## Run every check but the tests

format: setup ## Format the code and mend what can be mended
	$(BIN)/ruff format $(CODE) && $(BIN)/ruff check --fix $(CODE)

lock: setup ## Resolve the requirements again, with hashes
	tools/lock

build: setup ## Build the wheel into dist/ (needs no network)
	$(BIN)/hatchling build --target wheel

clean: ## Remove everything that was made here, .venv too
	rm -rf .venv build dist .hypothesis .import_linter_cache .mypy_cache .pytest_cache .ruff_cache
