# `make help` lists the targets. Everything runs in one locked environment (.venv) that uv sets up on first use.
SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help

UV_VERSION := 0.13.9
# uv from PATH, or one of our own in .uv/ on a machine that has none.
UV := $(shell command -v uv || echo .uv/bin/uv)
RUN := $(UV) run --frozen
# Each run records how long every test took (build/tests.xml) and prints the slowest.
PYTEST := $(RUN) pytest --durations=25 --durations-min=1 --junitxml=build/tests.xml
# Two processes: in one the tests that mostly wait, in the other, at the lowest priority, those that compute
# (tests/conftest.py). They share two processors well.
BOTH := -n 2 --no-loadscope-reorder
# The tests marked `extended` as well, which pyproject.toml leaves out.
EXTENDED := -m ''

.PHONY: help setup demo test test-all test-fast unit monitoring trainer local conformance integration e2e resilience lint format generate cluster-up cluster-down bench-trainer bench-recovery bench-operator gpu-check soak clean

help:  ## show this help
	@awk 'BEGIN {FS = ":.*##"} /^[a-z0-9-]+:.*##/ {printf "  %-16s%s\n", $$1, $$2}' $(MAKEFILE_LIST)

.uv/bin/uv:
	@python3 -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo 'Python 3.11 or newer is needed, as python3' >&2; exit 1; }
	@python3 -m venv .uv || { echo 'python3 -m venv failed; on Debian: apt-get install python3-venv' >&2; exit 1; }
	.uv/bin/pip install --quiet --disable-pip-version-check uv==$(UV_VERSION)

setup: $(if $(filter .uv/bin/uv,$(UV)),.uv/bin/uv)  ## create the locked environment in .venv
	@$(UV) sync --frozen --quiet

demo: setup  ## train a small transformer with two workers on this machine (under 3 minutes)
	$(RUN) trainyard run manifests/samples/llama-ddp.yaml --folder build/demo

test: setup lint  ## what each change has to pass: unit, trainer, conformance and integration (real API server), e2e (real node, needs root)
	$(PYTEST) $(BOTH)

test-all: setup lint soak  ## the same, the extended tests and the soak; TRAINYARD_TEST_KUBERNETES=1.34 for an older version
	TRAINYARD_TEST_EXAMPLES=300 $(PYTEST) $(BOTH) $(EXTENDED)

test-fast: setup  ## unit tests only
	$(PYTEST) tests/unit

unit monitoring trainer local conformance integration e2e: setup  ## one part of the tests: tests/unit, tests/trainer, ...
	$(PYTEST) tests/$@

resilience: setup  ## measure what faults cost on a real node, and rewrite docs/resilience.md
	$(PYTEST) $(EXTENDED) tests/e2e/faults
	cp build/resilience.md docs/resilience.md

lint: setup  ## ruff, mypy, import-linter, vermin, shellcheck, hadolint
	$(RUN) ruff check .
	$(RUN) ruff format --check .
	$(RUN) mypy api operator trainer cli monitoring tests
	$(RUN) lint-imports --no-logo
	$(RUN) vermin --quiet --no-tips --violations --target=3.8- api/trainyard/protocol/{launcher,launcher_dns,launcher_output,launcher_port,launcher_protocol,log_tail}.py
	$(RUN) shellcheck .ci/run
	$(RUN) hadolint Dockerfile

format: setup  ## format the code and apply automatic fixes
	$(RUN) ruff check --fix .
	$(RUN) ruff format .

generate: setup  ## regenerate the CRD, rules, dashboards and manifests/install.yaml
	$(RUN) python -m trainyard.crd > charts/trainyard/files/crd.yaml
	$(RUN) python -m trainyard_monitoring charts/trainyard/files docs/monitoring.md
	$(RUN) python -m trainyard.resume docs/checkpoints.md
	$(RUN) python -m tests.cluster render-chart > manifests/install.yaml

cluster-up: setup  ## a real one-node cluster for tests (needs root), or the one of TRAINYARD_TEST_KUBECONFIG
	$(RUN) python -m tests.cluster up

cluster-down: setup  ## remove that cluster; its logs stay in build/cluster-logs
	$(RUN) python -m tests.cluster down

bench-trainer: setup  ## speed and memory of the trainer beside a plain loop and frameworks; ARGS="--only FSDP" for some
	$(RUN) --group bench python -m tests.bench.trainer $(ARGS)

bench-recovery: setup  ## seconds from a failure to the next step, cost of checkpoints, goodput under faults
	$(RUN) python -m tests.bench.recovery $(ARGS)

bench-operator: setup  ## thousands of pods on simulated nodes: seconds, CPU, memory and writes of the operator beside bare pods
	$(RUN) python -m tests.bench.operator $(ARGS)

gpu-check: setup  ## on a machine with GPUs: correctness, endings, memory, speed beside a plain loop, in ten minutes; build/gpu-check/report.md
	$(RUN) python -m tests.bench.gpu_check $(ARGS)

soak: setup  ## ten minutes of runs that are hurt at random; ARGS="--seconds 3600 --seed 7"
	$(RUN) python -m tests.soak $(ARGS)

clean:  ## remove what builds and runs have left here
	rm -rf build runs dist .mypy_cache .ruff_cache .pytest_cache .hypothesis
