# The commands of the README, which need Python 3.11 or newer and install everything else:
#   make demo   represents and rebuilds a classifier
#   make test   runs the tests
# CI also runs make lint, make docs and make types. Before a release, run make test-slow and
# make packaging.
# VENV and PYTHON set the environment and its Python: make test VENV=/tmp/venv PYTHON=python3.12

PYTHON ?= python3
VENV ?= .venv
export TF_CPP_MIN_LOG_LEVEL ?= 2
# TensorFlow leaves oneDNN off on CPUs without AVX512_VNNI. It is faster there, too, and some tests
# need its convolutions with channels first.
export TF_ENABLE_ONEDNN_OPTS ?= 1

.PHONY: demo test test-slow lint docs types packaging

demo: $(VENV)/demo.stamp
	$(VENV)/bin/python -m keras_nern.demo

test: $(VENV)/dev.stamp
	TF_NUM_INTRAOP_THREADS=1 $(VENV)/bin/python -m pytest -n 2  # two processes, two cores

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
