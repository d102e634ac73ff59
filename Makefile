# Everything that a person or CI runs. `make help` lists it.
SHELL := /bin/bash
PYTHON ?= $(shell command -v python3.11 || command -v python3)
BIN := $(CURDIR)/.venv/bin
export PATH := $(BIN):$(PATH)
export DO_NOT_TRACK = 1
export DVC_NO_ANALYTICS = 1
export MLFLOW_DISABLE_TELEMETRY = true
export GX_ANALYTICS_ENABLED = False
export PREFECT_SERVER_ANALYTICS_ENABLED = false
# uv follows pip's own settings, wherever a person made them.
PIP_SETTING = $(shell $(PYTHON) -m pip config get $(1) 2>/dev/null)
UV_SETTINGS = UV_FIND_LINKS="$${UV_FIND_LINKS:-$${PIP_FIND_LINKS:-$(call PIP_SETTING,global.find-links)}}" \
	UV_DEFAULT_INDEX="$${UV_DEFAULT_INDEX:-$${PIP_INDEX_URL:-$(call PIP_SETTING,global.index-url)}}"
CODE := polyweft registry stages flows tests bench

.DEFAULT_GOAL := help
.PHONY: help doctor setup run flow retrain sweep compare bench-training serve-flows serve ui test lint format types lock clean

help:            ## List the targets
	@grep -hE '^[a-z-]+: .*##' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## /\t/' | expand -t 16

doctor:          ## Say what this machine lacks: git, Python, ports, disk
	@$(PYTHON) flows/doctor.py

setup: .venv/.ready .venv-triton/.ready  ## Create both environments from the lock files

.venv/.ready: requirements.lock
	@$(PYTHON) flows/doctor.py --quiet
	$(PYTHON) -m venv .venv
	.venv/bin/python -m pip install --quiet --disable-pip-version-check "$$(grep '^uv==' requirements.lock)"
	$(UV_SETTINGS) .venv/bin/uv pip install --quiet --python .venv/bin/python --compile-bytecode -r requirements.lock
	@touch $@

.venv-triton/.ready: requirements-triton.lock .venv/.ready
	$(PYTHON) -m venv --without-pip .venv-triton
	$(UV_SETTINGS) .venv/bin/uv pip install --quiet --python .venv-triton/bin/python --compile-bytecode -r requirements-triton.lock
	@touch $@

run: setup       ## Run the whole graph on the data that params.yaml names, and print the table
	dvc repro
	@python -m flows.summary

flow: setup      ## The same, as a Prefect flow
	python -m flows.pipeline

retrain: setup   ## Run the graph if data or parameters changed, and report how the metrics moved
	python -m flows.retrain --report reports/retrain.md

sweep: setup     ## Search parameters with Optuna, as flows/sweep.yaml says
	python -m flows.sweep

FILES ?= params.yaml examples/trimodal.yaml examples/huggingface.yaml
compare: setup   ## Train the models of FILES on the same data, and set them side by side
	python -m flows.compare $(FILES)

bench-training: setup  ## Time a training step beside open_clip's
	python -m bench.training

serve-flows: setup  ## Serve the nightly schedule of prefect.yaml, until Ctrl-C
	python -m flows.pipeline --serve

serve: setup     ## Serve the champion with Triton, until Ctrl-C
	python -m registry serve

ui: setup        ## Show MLflow on http://127.0.0.1:5000, until Ctrl-C
	MLFLOW_SERVER_ENABLE_JOB_EXECUTION=false mlflow ui --backend-store-uri sqlite:///mlflow.db --host 127.0.0.1 --port 5000

WORKERS ?= 2
test: setup lint types  ## Everything that CI checks, with WORKERS tests at a time
	rm -f .coverage .coverage.*
	coverage run -m pytest --numprocesses $(WORKERS) --dist loadfile --no-loadscope-reorder --durations=15
	coverage combine --quiet
	coverage report

lint: setup      ## Style and layers
	ruff check $(CODE)
	ruff format --check $(CODE)
	lint-imports

format: setup    ## Put the code in form
	ruff check --fix $(CODE)
	ruff format $(CODE)

types: setup     ## Strict types
	mypy

lock: setup      ## Resolve both lock files anew
	$(UV_SETTINGS) uv pip compile --quiet --python-version 3.11 --no-header --no-annotate --no-emit-index-url --no-emit-find-links --group dev --upgrade pyproject.toml | sed 's/^\(torch==[0-9.]*\)+.*/\1/' > requirements.lock
	$(UV_SETTINGS) uv pip compile --quiet --python-version 3.11 --no-header --no-annotate --no-emit-index-url --no-emit-find-links --group triton --upgrade > requirements-triton.lock

clean:           ## Remove old versions, checkpoints and caches; says what first
	python -m registry clean
