# gptline: raw text in, registered models out. `make` lists the targets.
# Variables: SITE=site  RECIPE=default  WORK=work  SET="pretrain.max_steps=50 execution.ranks=1"  UNTIL=tokenize  PYTHON=python3.11

SHELL := /bin/bash
.DEFAULT_GOAL := help
RECIPE ?= default
WORK ?= work
PYTHON ?= $(shell command -v python3.11 >/dev/null 2>&1 && python3.11 -c '' 2>/dev/null && echo python3.11 || echo python3)
VENV ?= .venv
PY := $(VENV)/bin/python

# Of a site. HOST counts on make's command line only: some shells have a variable of that name.
ifneq ($(origin HOST),command line)
override HOST :=
endif
# A default would send every node to a folder that is not shared.
SHARED := $(if $(filter command line environment,$(origin WORK)),yes)

# What people give goes to the shell as environment variables, byte for byte: quotes, spaces and dollars in it are theirs.
GIVEN := RECIPE WORK SET UNTIL MODEL DEST PROMPT WHAT KILLS SEED
GIVEN += SITE HOST HEAD TOKEN NAME REMOVE REGISTRY MLFLOW_DB MLFLOW_ARTIFACTS RAY_PORT DASHBOARD_PORT MLFLOW_PORT CPUS GPUS PREPARE SHARED
$(foreach name,$(GIVEN),$(eval override $(name) := $$(value $(name))))
export $(GIVEN)
SETTINGS = $${SITE:+--set "execution.site=$$SITE"} $${SET:+--set "$$SET"}
NODE = --site "$${SITE:-site}" $${HOST:+--host "$$HOST"} $${CPUS:+--cpus "$$CPUS"} $${GPUS:+--gpus "$$GPUS"} $${PREPARE:+--prepare}
OPTIONS = --recipe "$$RECIPE" --work "$$WORK" $(SETTINGS)

# Every target is phony: one named like a folder (tests, model) would silently do nothing.
.PHONY: help setup run plan dryrun status verify pull generate inspect ui backup integrity test thorough chaos check format bench clean

.PHONY: up join down user

help: ## list the targets
	@grep -hE '^[a-z]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-10s %s\n", $$1, $$2}'
	@echo '  variables: RECIPE=default WORK=work SET="pretrain.max_steps=50 execution.ranks=1" UNTIL=tokenize'

setup: $(VENV)/.installed ## make .venv, pinned by constraints.txt (3 minutes, once)

$(VENV)/.installed: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(0 if (3, 11) <= sys.version_info[:2] <= (3, 12) else f"gptline needs Python 3.11 or 3.12, $(PYTHON) is {sys.version.split()[0]}: make PYTHON=python3.11 $(MAKECMDGOALS)")'
	@echo "setting up $(VENV): about 3 minutes and 2.5 GB"
	@test -x $(PY) || $(PYTHON) -m venv $(VENV)
	@$(PY) -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	@touch $@

run: setup ## make everything the recipe asks for; does only what is not done
	@$(PY) -m pipelines run $(OPTIONS) $${UNTIL:+--until "$$UNTIL"}

plan: setup ## each step: done, or to do and why
	@$(PY) -m pipelines plan $(OPTIONS)

dryrun: setup ## sizes, memory and batches of the recipe's models, without training
	@$(PY) -m pipelines dry-run $(OPTIONS)

status: setup ## what is made, by whom something is being made, what it measured
	@$(PY) -m pipelines status $(OPTIONS)

verify: setup ## hash everything under WORK and compare with the records
	@$(PY) -m pipelines verify $(OPTIONS)

pull: setup ## download a model: MODEL=sentiment@champion DEST=folder
	@$(PY) -m pipelines pull $(SETTINGS) -- "$${MODEL:?say which: make pull MODEL=sentiment@champion DEST=folder}" "$${DEST:?say where to: make pull MODEL=sentiment@champion DEST=folder}"

generate: setup ## continue a text: MODEL=base@champion PROMPT="To be"
	@$(PY) -m pipelines generate $(SETTINGS) -- "$${MODEL:-base@champion}" "$${PROMPT:?say what to continue: make generate PROMPT=\"To be\"}"

inspect: setup ## decode a shard, examples or batch: WHAT=path or batch:STEP
	@$(PY) -m pipelines inspect $(OPTIONS) -- "$${WHAT:?say what: make inspect WHAT=batch:0, or a path below WORK}"

ui: setup ## MLflow's UI on loopback
	@$(PY) -m pipelines ui $(SETTINGS)

backup: setup ## copy the MLflow store to <registry>-backups, verified
	@$(PY) -m pipelines registry-backup $(SETTINGS)

integrity: setup ## check the MLflow store: database, packages, aliases, runs
	@$(PY) -m pipelines registry-check $(SETTINGS)

up: setup ## this node's Ray head and MLflow server: HOST=address WORK=shared-folder MLFLOW_ARTIFACTS=folder-or-bucket
	@$(PY) -m pipelines up $(NODE) $${SHARED:+--work "$$WORK"} $${REGISTRY:+--registry "$$REGISTRY"} $${MLFLOW_ARTIFACTS:+--artifacts "$$MLFLOW_ARTIFACTS"} \
	  $${RAY_PORT:+--ray-port "$$RAY_PORT"} $${DASHBOARD_PORT:+--dashboard-port "$$DASHBOARD_PORT"} $${MLFLOW_PORT:+--mlflow-port "$$MLFLOW_PORT"}

join: setup ## make this node a worker of HEAD=host[:port]; TOKEN=copy of the head's site/token
	@$(PY) -m pipelines join $(NODE) $${TOKEN:+--token "$$TOKEN"} -- "$${HEAD:?say which head: make join HEAD=host}"

down: setup ## end what up or join started on this node
	@$(PY) -m pipelines down --site "$${SITE:-site}"

user: setup ## a user who can read the registry and change nothing: NAME=team (REMOVE=1 takes it away)
	@$(PY) -m pipelines user --site "$${SITE:-site}" $${REMOVE:+--remove} -- "$${NAME:?say who: make user NAME=team}"

test: setup ## all tests, two files at a time
	@$(PY) -m pytest -n 2 --dist loadfile --no-loadscope-reorder

thorough: setup ## the fault tests at every single point, and those that take minutes (half an hour)
	@GPTLINE_CUTS=all $(PY) -m pytest -n 2 --dist loadfile --no-loadscope-reorder tests/faults -m ""
	@$(PY) -m pytest -m thorough --ignore tests/faults

chaos: setup ## kill anything at random and compare with an undisturbed run: KILLS=30 SEED=1
	@$(PY) -m tests.chaos --kills "$${KILLS:-30}" --seed "$${SEED:-1}"

check: setup ## format, lint, types: what CI checks
	@$(PY) -m ruff format --check . && $(PY) -m ruff check . && $(PY) -m mypy

format: setup ## write the format that check wants
	@$(PY) -m ruff format . && $(PY) -m ruff check --fix .

bench: setup ## the figures that are claimed, each beside its alternative
	@$(PY) -m benchmarks

clean: ## remove what can be made again: WORK (never registry/, never .venv)
	@test -e "$$WORK" || exit 0; \
	there="$$(cd -- "$$WORK" && pwd -P)" && here="$$(pwd -P)" || exit 2; \
	looks() { test -d "$$there/steps" || test -d "$$there/units" || test -f "$$there/digests.json"; }; \
	precious() { test -e "$$there/.git" || test -e "$$there/mlflow.db" || test -e "$$there/registry" || [[ "$$here/" == "$${there%/}/"* ]]; }; \
	if ! looks || precious; then echo "make clean: $$there is no work directory (or holds more than that); remove it yourself" >&2; exit 2; fi; \
	echo "removing $$there" && rm -rf -- "$$there"
