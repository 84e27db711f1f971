# Every target sets itself up on a fresh clone: it needs make, sh and a Python 3.10 or newer.
#   PYTHON=/path/to/python3.12   the interpreter to make .venv with
#   ARGS="..."                   more arguments for what the target runs

export PYTHON

SETUP := sh tools/setup.sh
TOX := .venv/bin/python -m tox
# pyenv keeps interpreters off PATH until they are selected.
PYENV := $(wildcard $(HOME)/.pyenv/versions/3.1*/bin/python)

.DEFAULT_GOAL := help
.NOTPARALLEL:
.PHONY: help demo test lint types docs thorough acceptance matrix bench chaos clean tox

help: ## show the targets
	@echo "celery_idem: make TARGET [PYTHON=...] [ARGS=...]"
	@sed -n 's/^\([a-z]*\):.*## \(.*\)/  make \1|\2/p' Makefile | \
		while IFS='|' read -r target text; do printf '%-18s %s\n' "$$target" "$$text"; done

demo: ## beats and workers on real servers, some killed, for about a minute, with a verdict
	@$(SETUP) --extra demo --optional servers
	@.venv/bin/python -m example_project $(ARGS)

test: tox ## all checks and tests: newest releases, fast tests with the oldest, lint, types, imports
	$(TOX) run-parallel --parallel 2 --notest
	$(TOX) run $(ARGS)

lint: tox ## style, format and the import rules
	$(TOX) run -e lint,imports $(ARGS)

types: tox ## mypy --strict
	$(TOX) run -e types $(ARGS)

docs: tox ## run what the documents say
	$(TOX) run -e newest -- tests/docs \
		tests/acceptance/test_demo.py::test_every_slot_is_executed_once $(ARGS)

thorough: tox ## every test, also those of which the others are a sample
	IDEM_THOROUGH=1 $(TOX) run -e newest,oldest $(ARGS)

acceptance: tox ## the whole system on every database and broker, a minute each
	IDEM_ACCEPTANCE_SECONDS=60 $(TOX) run -e newest -- tests/acceptance $(ARGS)

matrix: tox ## every supported Python, Celery and SQLAlchemy that can be run here
	$(TOX) run $(if $(PYENV),--discover $(PYENV)) -m matrix $(ARGS)

bench: ## measure against plain Celery and raw SQL
	@$(SETUP) --extra test --optional servers
	@.venv/bin/python -m bench $(ARGS)

chaos: ## three beats, four workers and their servers, killed, stopped and cut off, with a verdict
	@$(SETUP) --extra test --optional servers
	@.venv/bin/python -m tests.chaos $(ARGS)

clean: ## remove what the targets made
	rm -rf .venv .tox build dist site .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

tox:
	@$(SETUP) --require 'tox>=4.23'
