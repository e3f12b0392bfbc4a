# The two commands of the README are `make demo` and `make test`; both set up .venv by themselves.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
JOBS ?= 2
# one thread a job: jobs run side by side, and threads that fight for a core are slower than none
export OMP_NUM_THREADS ?= 1

.PHONY: demo test peers check lint types clean

$(VENV)/.installed: pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit("Python 3.11 or newer is needed, this is " + sys.version.split()[0] if sys.version_info < (3, 11) else 0)'
	$(PYTHON) -c 'import ensurepip' || { echo "Python's venv module is incomplete: apt-get install python3-venv"; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --upgrade pip
	# torch first and pinned, so that nothing after it resolves it anew (a CPU build counts as the same version)
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

test: $(VENV)/.installed-test peers
	$(BIN)/python -m pytest

# The programs that tests are held against: RELION, and a browser for the report. Where they can be neither found
# nor installed, the tests that need them are skipped with a reason; under CI they fail.
PEERS := relion_project relion_refine_mpi chromium chromedriver
peers:
	@for program in $(PEERS); do command -v $$program >/dev/null || missing="$$missing $$program"; done; \
	if [ -z "$$missing" ]; then exit 0; fi; \
	if [ "$$(id -u)" = 0 ]; then root=; elif sudo -n true 2>/dev/null; then root=sudo; else \
	  echo "not found:$$missing (as root: apt-get install relion chromium chromium-driver)"; exit 0; fi; \
	$$root apt-get update -qq && \
	$$root env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends \
	  relion chromium chromium-driver >/dev/null

lint: $(VENV)/.installed-test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(VENV)/.installed-test
	$(BIN)/pyright --pythonpath $(BIN)/python

check: lint types test

clean:
	rm -rf $(VENV) build dist
