# What a person and CI run. Each target installs what it needs and is safe to repeat.

SHELL := /bin/bash
.DEFAULT_GOAL := help
.NOTPARALLEL:
.PHONY: help setup demo demo-stop test lint bench lock clean

help:
	@echo 'make setup      .venv/bin/bb-ops, ready to use (PYTHON=… chooses the interpreter)'
	@echo 'make demo       start the embedded world and take, copy and prove a backup in it'
	@echo 'make demo-stop  stop it'
	@echo 'make test       install what the tests need and run them all (ARGS=… goes to pytest)'
	@echo 'make lint       style, types, architecture, dependencies'
	@echo 'make bench      compare with other backup tools, side by side (ARGS=…)'
	@echo 'make lock       write requirements.lock from pyproject.toml (ARGS=--upgrade: newest versions)'
	@echo 'make clean      stop the demo and remove everything that these targets made'

setup:
	@.ci/setup

demo: setup
	@.venv/bin/bb-ops demo

demo-stop: setup
	@.venv/bin/bb-ops demo stop

test: setup
	@.ci/system-packages test
	.venv/bin/pytest --numprocesses=2 --dist=loadfile $(ARGS)

lint: setup
	.venv/bin/ruff check
	.venv/bin/ruff format --check
	.venv/bin/mypy
	.venv/bin/lint-imports
	.venv/bin/deptry .

bench: setup
	@.ci/system-packages bench
	.venv/bin/python benchmarks/run.py $(ARGS)
	.venv/bin/python benchmarks/increments.py
	.venv/bin/python benchmarks/catalog.py
	.venv/bin/python benchmarks/wal.py
	.venv/bin/python benchmarks/recovery.py
	.venv/bin/python benchmarks/load.py

lock: setup
	@.ci/lock $(ARGS)

clean:
	@if [ -d .demo ] && [ -x .venv/bin/bb-ops ]; then .venv/bin/bb-ops demo stop; fi
	rm -rf .venv .demo .cache .coverage .hypothesis .mypy_cache .pytest_cache .ruff_cache .import_linter_cache build artifacts *.egg-info
