# gptline: raw text in, registered models out. `make` lists the targets.
# Variables: SITE=site  RECIPE=default  WORK=work  SET="pretrain.max_steps=50 execution.ranks=1"  UNTIL=tokenize  PYTHON=python3.11

SHELL := /bin/bash
.DEFAULT_GOAL := help
RECIPE ?= default
WORK ?= work
# WORK= (of a variable that is not set, say) would be the folder that make stands in, or with `clean` another one than was meant.
$(foreach name,RECIPE WORK,$(if $(value $(name)),,$(error $(name) is empty; leave it out or say which)))
PYTHON ?= $(shell command -v python3.11 >/dev/null 2>&1 && python3.11 -c '' 2>/dev/null && echo python3.11 || echo python3)
VENV ?= .venv
PY := $(VENV)/bin/python

# Of a site. HOST and TOKEN count on make's command line only: some shells have variables of these names.
ifneq ($(origin HOST),command line)
override HOST :=
endif
ifneq ($(origin TOKEN),command line)
override TOKEN :=
endif
# A default would send every node to a folder that is not shared.
SHARED := $(if $(filter command line environment,$(origin WORK)),yes)
# The default recipe is no answer to whose data a model is to be measured on: its own, unless a recipe was said.
CHOSEN := $(if $(filter command line environment,$(origin RECIPE)),yes)

# What people give goes to the shell as environment variables, byte for byte: quotes, spaces and dollars in it are theirs.
GIVEN := RECIPE WORK SET UNTIL MODEL DEST PROMPT WHAT KILLS SEED OFFLINE NEWER_THAN WHY
GIVEN += TASKS DONE JOB FOLLOW RETRAIN AUTOSCALING KEEP_DAYS KEEP YES WEIGHTS EVERY
GIVEN += SITE HOST HEAD TOKEN NAME REMOVE REGISTRY MLFLOW_DB MLFLOW_ARTIFACTS RAY_PORT DASHBOARD_PORT MLFLOW_PORT WORKER_PORTS CPUS GPUS PREPARE SHARED CHOSEN
$(foreach name,$(GIVEN),$(eval override $(name) := $$(value $(name))))
export $(GIVEN)
SETTINGS = $${SITE:+--set "execution.site=$$SITE"} $${SET:+--set "$$SET"}
NODE = --site "$${SITE:-site}" $${HOST:+--host "$$HOST"} $${CPUS:+--cpus "$$CPUS"} $${GPUS:+--gpus "$$GPUS"} $${WORKER_PORTS:+--worker-ports "$$WORKER_PORTS"} $${PREPARE:+--prepare}
FOLLOWED = $${FOLLOW:+$$([ "$$FOLLOW" = no ] && echo --no-follow || echo --follow)}
JOBS = $${JOB:+-- "$$JOB"}
OPTIONS = --recipe "$$RECIPE" --work "$$WORK" $(SETTINGS)

# Every target is phony: one named like a folder (tests, model) would silently do nothing.
.PHONY: help setup run tasks labels plan dryrun status verify pull lineage generate evaluate inspect ui backup integrity test thorough chaos check format bench clean
.PHONY: submit logs stop jobs up join down user gc schedule unschedule

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

tasks: setup ## the recipe of every task, and their table: TASKS="topics dialogue" (DONE=1: the table of what is done)
	@$(PY) -m pipelines tasks --work "$$WORK" $(SETTINGS) $${TASKS:+--tasks "$$TASKS"} $${DONE:+--done}

labels: setup ## accuracy by number of labels: pre-trained, from scratch, TF-IDF; table and picture (an hour)
	@$(PY) -m pipelines run --recipe labels --work "$$WORK" $(SETTINGS)

submit: setup ## the same on the cluster, as a job, and follow it (FOLLOW=no: start it and leave; RETRAIN=1: make retrain)
	@$(PY) -m pipelines submit --site "$${SITE:-site}" $(OPTIONS) $${UNTIL:+--until "$$UNTIL"} $${RETRAIN:+--retrain} $(FOLLOWED)

logs: setup ## follow the job that runs, or print the last one's log: JOB=id FOLLOW=no
	@$(PY) -m pipelines logs --site "$${SITE:-site}" $(FOLLOWED) $(JOBS)

stop: setup ## ask the job that runs to save and leave: JOB=id
	@$(PY) -m pipelines stop --site "$${SITE:-site}" $(JOBS)

jobs: setup ## the jobs that were submitted: running, done, failed
	@$(PY) -m pipelines jobs --site "$${SITE:-site}"

plan: setup ## each step: done, or to do and why
	@$(PY) -m pipelines plan $(OPTIONS)

dryrun: setup ## sizes, memory and batches of the recipe's models, without training
	@$(PY) -m pipelines dry-run $(OPTIONS)

status: setup ## what is made, by whom something is being made, what it measured
	@$(PY) -m pipelines status $(OPTIONS)

verify: setup ## hash everything under WORK and compare with the records
	@$(PY) -m pipelines verify $(OPTIONS)

pull: setup ## download a model: MODEL=sentiment@champion DEST=folder (OFFLINE=1: from the cache; NEWER_THAN=3: waits)
	@$(PY) -m pipelines pull $(SETTINGS) $${OFFLINE:+--offline} $${NEWER_THAN:+--wait-newer-than "$$NEWER_THAN"} -- "$${MODEL:?say which: make pull MODEL=sentiment@champion DEST=folder}" "$${DEST:?say where to: make pull MODEL=sentiment@champion DEST=folder}"

lineage: setup ## WHAT=sentiment@champion: what it was made from; WHAT=file or SHA-256: which models were made from it
	@$(PY) -m pipelines lineage $(SETTINGS) -- "$${WHAT:?say what: make lineage WHAT=sentiment@champion, or WHAT=path/to/file}"

generate: setup ## continue a text: MODEL=base@champion PROMPT="To be"
	@$(PY) -m pipelines generate $(SETTINGS) -- "$${MODEL:-base@champion}" "$${PROMPT:?say what to continue: make generate PROMPT=\"To be\"}"

evaluate: setup ## lm-eval's figures beside ours: MODEL=translation@champion (TASKS=perplexity; RECIPE=questions: on its data)
	@$(PY) -m pipelines evaluate --work "$$WORK" $(SETTINGS) $${CHOSEN:+--recipe "$$RECIPE"} $${TASKS:+--tasks "$$TASKS"} -- "$${MODEL:-base@champion}"

inspect: setup ## decode a shard, examples or batch: WHAT=path or batch:STEP
	@$(PY) -m pipelines inspect $(OPTIONS) -- "$${WHAT:?say what: make inspect WHAT=batch:0, or a path below WORK}"

ui: setup ## MLflow's UI on loopback
	@$(PY) -m pipelines ui $(SETTINGS)

.PHONY: retrain history promote rollback promotions

retrain: setup ## if a source has something new: train, compare with the champion, promote if better
	@$(PY) -m pipelines retrain $(OPTIONS) $${FORCE:+--force} $${WAIT:+--wait}

history: setup ## the retraining slots: when, why, what was new, which version, promoted or not
	@$(PY) -m pipelines history --work "$$WORK"

promote: setup ## make a version champion: MODEL=sentiment@7 WHY="..." (ANYWAY=1: although gates failed)
	@$(PY) -m pipelines promote $(SETTINGS) --why "$${WHY:?say why: make promote MODEL=sentiment@7 WHY=\"...\"}" $${ANYWAY:+--anyway} -- "$${MODEL:?say which: make promote MODEL=sentiment@7 WHY=\"...\"}"

rollback: setup ## make the champion before this one champion again: MODEL=sentiment WHY="..."
	@$(PY) -m pipelines rollback $(SETTINGS) --why "$${WHY:?say why: make rollback MODEL=sentiment WHY=\"...\"}" -- "$${MODEL:?say which: make rollback MODEL=sentiment WHY=\"...\"}"

promotions: setup ## who moved a champion, when and why: MODEL=sentiment
	@$(PY) -m pipelines promotions $(SETTINGS) -- "$${MODEL:?say which: make promotions MODEL=sentiment}"

backup: setup ## copy the MLflow store to <registry>-backups, verified
	@$(PY) -m pipelines registry-backup $(SETTINGS)

integrity: setup ## check the MLflow store: database, packages, aliases, runs
	@$(PY) -m pipelines registry-check $(SETTINGS)

up: setup ## this node's Ray head and MLflow server: HOST=address WORK=shared-folder MLFLOW_ARTIFACTS=folder-or-bucket
	@$(PY) -m pipelines up $(NODE) $${SHARED:+--work "$$WORK"} $${REGISTRY:+--registry "$$REGISTRY"} $${MLFLOW_ARTIFACTS:+--artifacts "$$MLFLOW_ARTIFACTS"} \
	  $${RAY_PORT:+--ray-port "$$RAY_PORT"} $${DASHBOARD_PORT:+--dashboard-port "$$DASHBOARD_PORT"} $${MLFLOW_PORT:+--mlflow-port "$$MLFLOW_PORT"} $${AUTOSCALING:+--autoscaling "$$AUTOSCALING"}

join: setup ## make this node a worker of HEAD=host[:port]; TOKEN=copy of the head's site/token
	@$(PY) -m pipelines join $(NODE) $${TOKEN:+--token "$$TOKEN"} -- "$${HEAD:?say which head: make join HEAD=host}"

down: setup ## end what up or join started on this node
	@$(PY) -m pipelines down --site "$${SITE:-site}"

user: setup ## a user who can read the registry and change nothing: NAME=team (REMOVE=1 takes it away)
	@$(PY) -m pipelines user --site "$${SITE:-site}" $${REMOVE:+--remove} -- "$${NAME:?say who: make user NAME=team}"

# Upkeep: docs/upkeep.md
gc: setup ## what no record and no alias needs any more; YES=1 removes it: KEEP_DAYS=30 KEEP=3 (WEIGHTS=1: of old versions too)
	@$(PY) -m pipelines gc --work "$$WORK" $(SETTINGS) $${KEEP_DAYS:+--keep-days "$$KEEP_DAYS"} $${KEEP:+--keep "$$KEEP"} $${YES:+--yes} $${WEIGHTS:+--registry}

schedule: setup ## retrain at these times: EVERY="daily 03:00" (or cron's five fields)
	@$(PY) -m pipelines schedule $(OPTIONS) -- "$${EVERY:?say when: make schedule EVERY=\"daily 03:00\"}"

unschedule: setup ## no more: removes what schedule installed for this RECIPE and WORK
	@$(PY) -m pipelines unschedule --recipe "$$RECIPE" --work "$$WORK"

test: setup ## all tests, three files at a time: much of their time is waiting for processes
	@$(PY) -m pytest -n 3 --dist loadfile --no-loadscope-reorder

thorough: setup ## the fault tests at every single point, and those that take minutes (an hour)
	@GPTLINE_CUTS=all $(PY) -m pytest -n 3 --dist loadfile --no-loadscope-reorder tests/faults -m ""
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
