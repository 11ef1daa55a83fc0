# The two commands of the README, from nothing but Python 3.11+:
#   make demo   the main job
#   make test   the tests
# and what CI does besides: make lint, make docs, make types; before a release: make test-slow and
# make packaging.
# VENV and PYTHON may be given: make test VENV=/tmp/venv PYTHON=python3.12

PYTHON ?= python3
VENV ?= .venv
export TF_CPP_MIN_LOG_LEVEL ?= 2

.PHONY: demo test test-slow lint docs types packaging

demo: $(VENV)/demo.stamp
	$(VENV)/bin/python -m keras_nern.demo

test: $(VENV)/dev.stamp
	$(VENV)/bin/python -m pytest -n 2

test-slow: $(VENV)/dev.stamp
	$(VENV)/bin/python -m pytest -n 2 -m slow

lint: $(VENV)/dev.stamp
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .

docs: $(VENV)/dev.stamp
	NO_MKDOCS_2_WARNING=1 $(VENV)/bin/python -m mkdocs build --strict  # --quiet would hide warnings from --strict

types: $(VENV)/dev.stamp
	$(VENV)/bin/mypy

packaging:
	PYTHON=$(PYTHON) .ci/packaging

$(VENV)/%.stamp: setup.py pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(VENV)/bin/python -m pip install --quiet --editable ".[$*]"
	touch $@
