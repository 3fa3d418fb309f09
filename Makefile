# make search: a search on embedded data, to the end.  make test: all checks.  make docs: the site.  All set up .venv first.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/ready
CPUS := $(shell nproc 2>/dev/null || echo 1)

.PHONY: search test docs setup clean

search: $(READY)
	$(BIN)/sparsemix search nb201 --preset proxy --output runs/search-$$(date +%Y%m%d-%H%M%S)

test: $(READY)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/python -m pytest --numprocesses $(CPUS)

docs: $(READY)
	$(BIN)/python -m sphinx -b html --fail-on-warning --keep-going docs build/site

setup: $(READY)

$(READY): pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --disable-pip-version-check --progress-bar off --quiet --editable '.[test]'
	touch $@

clean:
	rm -rf $(VENV) build dist
