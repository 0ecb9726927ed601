# `make` lists the commands. Python 3.11-3.13, make and a C compiler (for pysteps) are needed.
PYTHON ?= $(shell for p in python3.11 python3.12 python3.13 python3; do \
  $$p -c 'import sys, venv; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' \
  >/dev/null 2>&1 && echo $$p && break; done)
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/installed
BACKENDS := $(VENV)/backends
PROOF := proof
RADAR := $(or $(NOWCAST_SHARED_DATA),../shared/data)/radar
export MLFLOW_DISABLE_TELEMETRY := true
export TF_CPP_MIN_LOG_LEVEL := 2

# Every public module; the served model runs only inside MLflow.
MODULES = $(shell cd nowcast && find . -name "*.py" ! -name served_model.py ! -path ./__init__.py \
  | sed -e "s,^\./,nowcast.,; s,/__init__\.py$$,,; s,\.py$$,,; s,/,.,g" | sort)

.DEFAULT_GOAL := help
.PHONY: help install demo test proof check format docs clean

help: ## List these commands
	@grep -E '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z]+):.*## (.*)/  make \1\t\2/' | expand -t 18

# Installed once; again only when the dependencies change.
$(INSTALLED): pyproject.toml constraints.txt
	@test -n "$(PYTHON)" || { echo "Python 3.11, 3.12 or 3.13 is needed and none was found; set PYTHON=/path/to/python"; exit 1; }
	@command -v cc >/dev/null || { echo "A C compiler is needed, since pysteps comes as source: apt-get install gcc libc6-dev"; exit 1; }
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[dev]'
	@touch $@

# JAX and torch, for the proofs alone. Where the index has torch for CUDA only, some gigabytes.
$(BACKENDS): $(INSTALLED)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[dev,backends]'
	@touch $@

install: $(INSTALLED) ## Create the virtual environment and install

demo: $(INSTALLED) ## The whole line on synthetic rain: observe, train, verify, promote, serve, issue
	$(BIN)/nowcast demo

test: $(INSTALLED) ## All tests: unit, contract, doctest, notebook, end to end
	$(BIN)/python -m pytest --numprocesses 2 --dist loadfile --no-loadscope-reorder

# One after the other, since the parts measure: each writes its figures, and all run if one fails.
proof: $(BACKENDS) ## The long proofs, in over an hour: crashes, hostile files, backends (installs JAX and torch), speed
	@mkdir -p $(PROOF)
	@failed=; run() { echo "== $$*"; "$$@" || failed="$$failed $$3"; }; \
	run $(BIN)/python -m pytest -q -m proof; \
	run $(BIN)/python -m benchmarks.reliability crash --every 4 --kills 100 --out $(PROOF)/crash.json; \
	run $(BIN)/python -m benchmarks.reliability corrupt --out $(PROOF)/corrupt.json; \
	run $(BIN)/python -m benchmarks.reliability feed --out $(PROOF)/feed.json; \
	run $(BIN)/python -m benchmarks.data --out $(PROOF)/data.json; \
	run $(BIN)/python -m benchmarks.networks all --rounds 3 --out $(PROOF)/networks.json \
	  --case ConvLSTM2D TimeDistributed "Moving MNIST"; \
	run $(BIN)/python -m benchmarks.issuing --rounds 3 --most-seconds 180 --out $(PROOF)/issuing.json; \
	if test -d "$(RADAR)"; then \
	  run $(BIN)/python -m benchmarks.radar_families $(RADAR) --out $(PROOF)/families.json; fi; \
	if test -n "$$failed"; then echo "failed:$$failed"; exit 1; fi; echo "figures are in $(PROOF)/"

check: $(INSTALLED) ## Lint and types: ruff, mypy
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(INSTALLED) ## Format the code
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

docs: $(INSTALLED) ## Build the API reference into site/
	$(BIN)/pdoc --docformat numpy --output-directory site nowcast $(MODULES)

clean: ## Remove what the commands above made, the virtual environment included
	rm -rf $(VENV) site nowcast-work .pytest_cache .mypy_cache .ruff_cache .hypothesis
