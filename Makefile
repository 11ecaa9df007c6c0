# Everything runs in .venv, which is made when it is missing. Nothing else is needed but make and
# Python 3.11 or newer.

SHELL := bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help

PYTHON ?= $(shell command -v python3.11 || command -v python3)
# The GPU checks also run without a .venv, from source, on a machine that has the packages.
GPU_PYTHON ?= $(if $(wildcard .venv/bin/python),.venv/bin/python,python3)
TEST := recipes/data/tatoeba-en-fr/test
RUN := runs/quickstart

.PHONY: help install quickstart test check format slow gpu-check docs clean

help: ## Print this list.
	@sed -n 's/^\([a-z-]*\):.*## /  make \1\t/p' Makefile | expand -t 20

install: .venv/.installed ## Make .venv and install s2s in it.

.venv/.installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	.venv/bin/python -m pip install --quiet -c constraints.txt -e '.[dev]'
	touch .venv/.installed

quickstart: install ## Train English-French in three minutes, translate, print the score.
	.venv/bin/s2s train --recipe quickstart --run $(RUN)
	.venv/bin/s2s translate -m $(RUN) < $(TEST).en | tee $(RUN)/test.fr | .venv/bin/s2s evaluate $(TEST).fr
	@echo; echo "Some translations (source, translation, reference):"
	@paste -d '\n' <(head -n 8 $(TEST).en) <(head -n 8 $(RUN)/test.fr) <(head -n 8 $(TEST).fr) | sed '3~3G'

test: install ## Run the tests.
	.venv/bin/python -m pytest

check: install ## Check format, lint and types, and run the tests.
	.venv/bin/ruff format --check .
	.venv/bin/ruff check .
	.venv/bin/mypy
	.venv/bin/python -m pytest

format: install ## Format the code and mend what ruff can.
	.venv/bin/ruff check --fix .
	.venv/bin/ruff format .

slow: install ## Run the slow tests, before a release.
	.venv/bin/python -m pytest -m slow

gpu-check: ## Run all that needs a CUDA device, in less than ten minutes.
	@if $(GPU_PYTHON) -c 'import sys, torch; sys.exit(not torch.cuda.is_available())'; then \
		$(GPU_PYTHON) -m pytest -m gpu -s && \
		PYTHONPATH=. $(GPU_PYTHON) benchmarks/training.py --size paper --device cuda --precision bf16 \
			--rounds 3 --updates 20 --section speed --section split --section floor; \
	else \
		echo "gpu-check: skipped, because $(GPU_PYTHON) finds no torch with a CUDA device"; \
	fi

docs: install ## Write the reference of all recipe keys anew.
	.venv/bin/python -m s2s_cli.core.recipe.reference > docs/recipes.md

clean: ## Remove what make has made, trained runs excepted.
	rm -rf .venv build dist .mypy_cache .ruff_cache .pytest_cache .hypothesis
