# make quickstart   prepare .venv, then recipes/quickstart.yaml: train SmolLM2-135M, measure what changed, write a report
# make test         run the tests
# make install      only prepare (or bring up to date) .venv
# make check-data   run the checks that need the development data beside the project
# make lint         ruff and pyright
# make docs         the pages of docs/ and the reference as a site, build/site/index.html

PYTHON ?= python3.11
VENV := .venv
BIN := $(VENV)/bin

.PHONY: install quickstart test check-data lint docs clean

install: $(VENV)/installed

# torch comes first and pinned: a range would fetch CUDA builds of several gigabytes
$(VENV)/installed: pyproject.toml constraints.txt
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV) || python3 -m venv $(VENV)
	@$(BIN)/python -c 'import sys; assert sys.version_info >= (3, 11), "Manners needs Python 3.11 or newer"'
	$(BIN)/python -m pip install --quiet --disable-pip-version-check $$(grep '^torch==' constraints.txt)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[dev]'
	@touch $@

quickstart: install
	$(BIN)/manners run recipes/quickstart.yaml

# two processes of one thread each: most tests compute too little at a time for two threads to be of use
test: install
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m 'not shared' -n 2 --dist worksteal

check-data: install
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m shared -n 2 --dist worksteal

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright

$(VENV)/installed-docs: $(VENV)/installed
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[docs]'
	@touch $@

# docs/commands.md is made by `python -m tools.reference`; a test says when it is out of date
docs: $(VENV)/installed-docs
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet
	@echo build/site/index.html

clean:
	rm -rf $(VENV) build dist *.egg-info
