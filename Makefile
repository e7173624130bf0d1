# make reproduce   set up, fetch weights, run the whole study on a profile, report      (PROFILE=quick)
# make test        set up, run the tests
# make bench       set up, measure data reading, retrieval and harness against what they should reach (BENCH=--small: a first look)
# make figures     set up, draw figures/ again from the published results/, without any model
PROFILE ?= quick
PYTHON ?= python3
VLLM := $(shell grep -E '^[a-z ].*provider.?: *.?vllm' params/$(PROFILE).yaml 2>/dev/null)
REQUIREMENTS := $(if $(VLLM),requirements-gpu.txt,requirements.txt)
BIN := .venv/bin

.PHONY: reproduce test bench figures report setup clean

reproduce: setup
	@$(BIN)/ecpo run --profile $(PROFILE)
	@$(BIN)/ecpo report --profile $(PROFILE)

test: setup
	@echo "== tests"
	@$(BIN)/ruff check ecpo_utils tests notebooks workflow benchmarks
	@$(BIN)/python -m pytest -n 2 --dist loadfile

bench: setup
	@$(BIN)/python benchmarks/all.py $(BENCH)

figures: setup
	@$(BIN)/ecpo figures --profile cpu

report: setup
	@$(BIN)/ecpo report --profile $(PROFILE)

setup: .venv/.$(REQUIREMENTS)

.venv/.$(REQUIREMENTS): $(REQUIREMENTS) requirements.txt pyproject.toml
	@echo "== setting up .venv (first time: a few minutes, about 2.5 GB)"
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed, this is " + sys.version.split()[0] + "; set PYTHON=")'
	@$(PYTHON) -m venv .venv
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -r $(REQUIREMENTS)
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation -e .
	@touch $@
	@echo "== .venv is ready"

clean:
	rm -rf .venv .snakemake
