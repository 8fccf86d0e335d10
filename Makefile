# The environment is made on first use and again when its requirements change; PYTHON=python3.12 chooses the interpreter.
SUPPORTED := import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))
PYTHON ?= $(shell for p in python3 python3.12 python3.11 python3.13; do $$p -c '$(SUPPORTED)' 2>/dev/null && echo $$p && break; done)
VENV := .venv
# Files stay whole, and begin in the order of tests/conftest.py.
IN_PROCESSES := --dist loadgroup --no-loadscope-reorder
STAMP := $(VENV)/.installed
RUN := $(VENV)/bin/python

export PATH := $(CURDIR)/$(VENV)/bin:$(PATH)
export DVC_NO_ANALYTICS := 1
export MLFLOW_DISABLE_TELEMETRY := true
export RAY_USAGE_STATS_ENABLED := 0
export RAY_AUTH_MODE ?= token

.DEFAULT_GOAL := help
.PHONY: help ray-job env pocket smoke ablation foundation ui check test lint docs documents ci clean

help:  ## these lines
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*##/\t/' | expand -t 14

env: $(STAMP)  ## make the environment in .venv

pocket: $(STAMP)  ## environment + main job: the pocket pipeline, end to end (minutes on 2 CPU cores)
	$(RUN) -m omniforcing run --preset pocket

smoke: $(STAMP)  ## environment + every stage in its smallest form, from scratch
	$(RUN) -m omniforcing run --preset smoke

ablation: $(STAMP)  ## what each stage contributes: variants of the tracked preset beside its baseline (after make pocket; an hour or so)
	$(RUN) -m omniforcing ablation

foundation: $(STAMP)  ## train pocket's codec and teacher and keep them in the package (hours on 2 CPU cores)
	$(RUN) -m omniforcing run --preset pocket --foundation

ray-job: $(STAMP)  ## one stage as a job on a named cluster: make ray-job STAGE=self_forcing [CLUSTER=ray] [PRESET=pocket]
	@test -n "$(STAGE)" || { echo "error: name a stage: make ray-job STAGE=self_forcing" >&2; exit 2; }
	$(RUN) -m omniforcing job $(STAGE) $(if $(PRESET),--preset $(PRESET)) cluster=$(or $(CLUSTER),ray) $(OVERRIDES)

ui: $(STAMP)  ## MLflow at http://127.0.0.1:5000
	MLFLOW_SERVER_ENABLE_JOB_EXECUTION=false $(VENV)/bin/mlflow server --workers 1 --host 127.0.0.1 --port 5000 \
	  --backend-store-uri "$${MLFLOW_TRACKING_URI:-sqlite:///mlflow.db}"

check: lint  ## what you run all the time: ruff, mypy and the everyday tests
	$(RUN) -m pytest -n 2 $(IN_PROCESSES) -m "not extended and not slow and not ray and not chromium and not documents"

test: $(STAMP)  ## all fast tests, some minutes; MARKS= chooses others, by pytest's marks
	$(RUN) -m pytest -n $(or $(PROCESSES),2) $(IN_PROCESSES) --durations 30 $(if $(MARKS),-m "$(MARKS)")

ci:  ## everything that a change must pass, also slow tests, Ray, browsers and the commands of README and tutorials (.ci/run)
	.ci/run

lint: $(STAMP)  ## ruff and mypy
	$(VENV)/bin/ruff check .
	$(VENV)/bin/mypy

docs: $(STAMP)  ## renew the generated pages in docs/reference
	$(RUN) -m tools.reference --write

documents: $(STAMP)  ## run every command of README and the tutorials in a clean clone (minutes)
	$(RUN) -m pytest -m documents

clean:  ## forget half-done work (.work) and temporary folders; outputs, runs and environment stay
	rm -rf .work data/*/.*.tmp-*

$(STAMP): constraints.txt pyproject.toml
	@test -n "$(PYTHON)" || { echo "error: no Python 3.11, 3.12 or 3.13 found; install one or name it with PYTHON=" >&2; exit 2; }
	@$(PYTHON) -c '$(SUPPORTED)' || { echo "error: $(PYTHON) is not Python 3.11, 3.12 or 3.13; name one with PYTHON=" >&2; exit 2; }
	$(PYTHON) -m venv $(VENV)
	@# Python compiles and keeps what is imported, when it is; pip would compile all 25 000 modules, in as much time as it
	@# installs them. Where Python is told to keep nothing, every process would compile all that it imports, so pip does it.
	$(RUN) -m pip install --quiet $(if $(PYTHONDONTWRITEBYTECODE),,--no-compile) -c constraints.txt -e '.[pipeline,serve,dev]'
	@# The torchaudio wheel carries an extension linked to CUDA, which cannot load beside a CPU-only torch. Without the file
	@# torchaudio works, as its loader documents; what it would add (CUDA decoders, forced alignment) is not used here.
	@$(RUN) -c 'import torch, pathlib, importlib.util as u; \
	  lib = pathlib.Path(u.find_spec("torchaudio").submodule_search_locations[0], "lib"); \
	  [p.unlink() for p in lib.glob("_torchaudio*.so") if torch.version.cuda is None]'
	@touch $(STAMP)
