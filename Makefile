.PHONY: style quality docs test test-slow test-gpu bench

# The environment of the README's commands, or else what is on the PATH.
BIN ?= $(if $(wildcard .venv/bin),.venv/bin/)
CODE := $(wildcard diffusers_xai spaces tests training)

# Mends what a tool can mend.
style:
	$(BIN)ruff check --fix $(CODE)
	$(BIN)ruff format $(CODE)

# What .ci/run checks beside the tests.
quality:
	$(BIN)ruff check $(CODE)
	$(BIN)ruff format --check $(CODE)
	$(BIN)mypy
	$(BIN)lint-imports --no-logo

# The pages in docs/, the notebooks, which are run for it, and the API reference, in build/site.
docs:
	PYTHONPATH=. $(BIN)python docs/_experiments.py
	PYTHONPATH=. PYTHONWARNINGS=ignore $(BIN)python -m nbconvert --execute --to markdown --log-level WARN docs/notebooks/*.ipynb
	$(BIN)zensical build --clean --strict

test:
	$(BIN)python -m pytest -n 2 --dist worksteal

test-slow:
	$(BIN)python -m pytest -m "slow and not gpu"

# Needs a CUDA device; `TEST_DEVICE=cpu make test-gpu` tries the same tests without one.
test-gpu:
	$(BIN)python -m pytest -m gpu tests/gpu

# Each benchmark prints its own table, with the machine's facts.
bench:
	@set -e; for script in $(wildcard tests/benchmarks/bench_*.py); do \
		$(BIN)python -m "$$(echo "$${script%.py}" | tr / .)"; done
