# The commands of the README. Each does its own set-up: a virtual environment, the package
# with what it needs, the data.

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

.PHONY: help demo test test-slow gpu-test lint typecheck data setup clean

help:
	@echo "make demo       the whole pipeline on the embedded model; report in demo-output/"
	@echo "make test       lint, types and tests"
	@echo "make test-slow  the long tests too"
	@echo "make gpu-test   the tests that run engines, on a machine with an NVIDIA GPU"
	@echo "make clean      remove the virtual environment and what was made"

demo: data
	$(BIN)/deploy-tools demo -o demo-output

test: data lint typecheck
	$(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder -m "not slow and not gpu"

test-slow: data
	$(BIN)/python -m pytest -m "slow and not gpu"

gpu-test: data
	$(BIN)/python -m pytest -m gpu -rs

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

typecheck: $(STAMP)
	$(BIN)/mypy

data: $(STAMP)
	@$(BIN)/python -m deploy_tools.data.fetch

setup: $(STAMP)

$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; v = sys.version_info; sys.exit(0 if (3, 11) <= v[:2] <= (3, 13) else "deploy-tools: Python 3.11 to 3.13 is needed and %s is %d.%d; set PYTHON=python3.12, for example." % (sys.executable, *v[:2]))'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[all,dev]'
	@touch $(STAMP)

clean:
	rm -rf $(VENV) demo-output runs build *.egg-info
