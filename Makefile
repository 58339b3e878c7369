# make demo: pretrain on the embedded data and say whether it learned.  make test: the tests.
# make docs: the site, in docs/_build.  All set up .venv first.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready

.PHONY: demo test test-all docs lint clean

demo: $(READY)
	rm -rf runs/demo
	$(BIN)/twinblock pretrain demo out=runs/demo
	$(BIN)/twinblock evaluate runs/demo

test: $(READY)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n 2 --timeout 900 -m "not slow"

test-all: $(READY)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n 2

docs: $(READY)
	$(BIN)/python -m sphinx -W -n --keep-going docs docs/_build

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright --pythonpath $(BIN)/python

$(READY): pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable ".[dev]"
	touch $(READY)

clean:
	rm -rf $(VENV) runs docs/_build docs/reference/_generated
