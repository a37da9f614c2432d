# Two commands on a fresh machine: `make demo` runs the main job, `make test` passes the tests. Both set everything up.
PYTHON ?= python3
VENV ?= .venv
OLDEST ?= .venv-oldest
# torch first and pinned: an unpinned torch may bring gigabytes of accelerator packages that nothing here needs.
TORCH ?= torch==2.13.0
OLDEST_TRANSFORMERS ?= transformers==5.16.0
BIN := $(VENV)/bin

.PHONY: demo test test-fast test-oldest conformance conformance-quick lint types format benchmarks wheel install clean

demo: $(VENV)/.ready
	$(BIN)/glmlike demo

test: $(VENV)/.ready
	$(BIN)/python -m pytest

test-fast: $(VENV)/.ready
	$(BIN)/python -m pytest -m "not slow and not weights"

test-oldest: $(OLDEST)/.ready
	$(OLDEST)/bin/python -m pytest -m "not slow and not weights" tests/test_modeling.py tests/test_exactness.py \
	    tests/test_generation.py tests/test_configuration.py tests/test_registration.py tests/test_loading.py tests/checkpoint

conformance: $(VENV)/.ready
	$(BIN)/python tests/conformance/run.py

conformance-quick: $(VENV)/.ready
	$(BIN)/python tests/conformance/run.py --quick

lint: $(VENV)/.ready
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

format: $(VENV)/.ready
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

types: $(VENV)/.ready
	$(BIN)/mypy --strict src

benchmarks: $(VENV)/.ready
	$(BIN)/python benchmarks/run.py

wheel: $(VENV)/.ready
	$(BIN)/python -m hatchling build

install: $(VENV)/.ready

$(VENV)/.ready: pyproject.toml
	sh tools/venv.sh $(PYTHON) $(VENV) "$(TORCH)" "transformers>=5.16,<6" dev
	touch $@

$(OLDEST)/.ready: pyproject.toml
	sh tools/venv.sh $(PYTHON) $(OLDEST) "$(TORCH)" "$(OLDEST_TRANSFORMERS)" test
	touch $@

clean:
	rm -rf $(VENV) $(OLDEST) dist .pytest_cache .mypy_cache .ruff_cache .hypothesis
