.DEFAULT_GOAL := help
.PHONY: help setup demo test lint clean

help:
	@echo "make setup   make .venv with Python 3.10 and install tlx, PyTorch and OneFlow in it (10 GB)"
	@echo "make demo    transfer learning on scanned digits, on both frameworks (under 3 minutes)"
	@echo "make test    lint, types and the whole test suite"
	@echo "make lint    lint and types only"
	@echo "make clean   remove .venv and caches"

setup: .venv/installed

.venv/installed: pyproject.toml constraints.txt build-constraints.txt scripts/setup
	@scripts/setup
	@touch $@

demo: setup
	.venv/bin/python examples/digits.py

test: lint
	.venv/bin/pytest

lint: setup
	.venv/bin/ruff check .
	.venv/bin/mypy

clean:
	rm -rf .venv .mypy_cache .pytest_cache .ruff_cache .hypothesis dist
