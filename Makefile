# Everything runs in .venv, which the first target that needs it builds. A second run installs nothing.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check
INSTALL := $(PIP) install --quiet --constraint constraints.txt

.PHONY: bench test test-slow lint docs dist clean help

help:
	@echo "make bench      train, sample and compare the tiny models of every family (about 6 minutes on 2 cores)"
	@echo "make test       the fast tests"
	@echo "make test-slow  the tests that take longer"
	@echo "make lint       ruff and mypy"
	@echo "make docs       build the documentation into site/"
	@echo "make dist       build wheel and sdist into dist/ and run the wheel in an empty environment"
	@echo "make clean      remove .venv and everything built"

bench: $(VENV)/.bench
	@$(BIN)/ditzoo bench quick $(ARGS)

test: $(VENV)/.dev
	@$(BIN)/python -m pytest -n 2 -m "not slow" $(ARGS)

test-slow: $(VENV)/.dev
	@$(BIN)/python -m pytest -n 2 -m slow $(ARGS)

lint: $(VENV)/.dev
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy ditzoo

docs: $(VENV)/.docs
	@$(BIN)/mkdocs build --strict

dist: $(VENV)/.dev
	@.ci/dist

clean:
	rm -rf $(VENV) site build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis

# One stamp a set of extras, renewed when the requirements change.
$(VENV)/.bench: EXTRAS = bench
$(VENV)/.dev: EXTRAS = bench,dev
$(VENV)/.docs: EXTRAS = bench,docs
$(VENV)/.bench $(VENV)/.dev $(VENV)/.docs: $(VENV)/.created pyproject.toml constraints.txt
	@echo "Installing ditzoo[$(EXTRAS)] into $(VENV); the first time takes a few minutes." >&2
	@$(INSTALL) --editable ".[$(EXTRAS)]"
	@touch $@

$(VENV)/.created:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and \
	  "ditzoo needs Python 3.11 or newer, this is " + sys.version.split()[0] + "; use make PYTHON=python3.12, say.")'
	@$(PYTHON) -m venv $(VENV)
	@touch $@
