# `make test` and `make demo` need nothing but Python 3.11 or newer: they make the environment in .venv first.
PYTHON ?= python3
BIN := .venv/bin
export PATH := $(CURDIR)/$(BIN):$(PATH)

.PHONY: help install test test-slow lint demo clean

help:
	@echo "make install    create .venv with the package and its tests"
	@echo "make test       run the quick, offline tests"
	@echo "make test-slow  run the long ones"
	@echo "make demo       generate videos, train, test, save, load and predict (about 5 minutes on two cores)"
	@echo "make lint       ruff"

install: .venv/installed

.venv/installed: pyproject.toml
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --editable '.[test]'
	@touch $@

test: install
	$(BIN)/python -m pytest -q

test-slow: install
	$(BIN)/python -m pytest -q -m slow

lint: install
	$(BIN)/ruff check . && $(BIN)/ruff format --check .

clean:
	rm -rf demo
