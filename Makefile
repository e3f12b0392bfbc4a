# The two commands of the README are `make demo` and `make test`; both set up .venv by themselves.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
JOBS ?= 2
# one thread a job: jobs run side by side, and threads that fight for a core are slower than none
export OMP_NUM_THREADS ?= 1

.PHONY: demo test check lint types clean

$(VENV)/.installed: pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit("Python 3.11 or newer is needed, this is " + sys.version.split()[0] if sys.version_info < (3, 11) else 0)'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --upgrade pip
	# torch first and pinned: an open range would fetch several GB of CUDA packages
	$(BIN)/pip install --quiet --constraint constraints.txt torch
	$(BIN)/pip install --quiet --constraint constraints.txt --editable '.[parallel]'
	touch $@

$(VENV)/.installed-test: $(VENV)/.installed
	$(BIN)/pip install --quiet --constraint constraints.txt --editable '.[parallel,test,dev]'
	touch $@

# A sweep of six masks on the embedded ribosome: table here, report.html and the MLflow store beside it.
demo: $(VENV)/.installed
	$(BIN)/cryosweep run experiment=demo hydra/launcher=joblib hydra.launcher.n_jobs=$(JOBS)
	@echo "look at the runs with: $(BIN)/cryosweep ui"

test: $(VENV)/.installed-test
	$(BIN)/python -m pytest

lint: $(VENV)/.installed-test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(VENV)/.installed-test
	$(BIN)/pyright --pythonpath $(BIN)/python

check: lint types test

clean:
	rm -rf $(VENV) build dist
