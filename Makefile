# Two commands on a fresh machine: `make demo` runs the main job, `make test` passes the tests. Both set everything up.
PYTHON ?= python3
VENV ?= .venv
OLDEST ?= .venv-oldest
# torch first and pinned: an unpinned torch may bring gigabytes of accelerator packages that nothing here needs.
TORCH ?= torch==2.13.0
# The two ends of what is supported; a new release of transformers is tried with make test TRANSFORMERS=transformers.
TRANSFORMERS ?= transformers==5.24.0
OLDEST_TRANSFORMERS ?= transformers==5.16.0
# What must hold on the oldest transformers: the modelling, configuration and loading of every format.
OLDEST_TESTS := $(addprefix tests/,test_spec.py test_configuration.py test_registration.py test_renamed.py test_exactness.py \
    test_golden.py test_generation.py test_prefix.py test_packing.py test_infilling_generation.py test_tables.py infilling \
    test_prefix_encoder.py test_ptuning.py test_integers.py test_quantization.py test_first_release.py test_sat.py \
    test_loading.py test_contracts.py test_chat.py test_tiny.py test_ecosystem.py \
    test_meta.py test_loss.py test_loss_in_model.py test_parity.py test_trainer.py test_remote_code.py test_pains.py \
    $(addprefix tokenization/,test_tokenizer.py test_templates.py test_with_models.py test_training_masks.py) \
    $(addprefix checkpoint/,test_convert.py test_adapters.py test_sources.py))
BIN := $(VENV)/bin
# A process a core, four at the most: each holds torch.
PARALLEL := -n auto --maxprocesses 4 --dist worksteal

.PHONY: demo test test-fast test-exhaustive test-oldest conformance llama-cpp liger docs lint types format benchmarks dist install clean

demo: $(VENV)/.ready
	$(BIN)/glmlike demo

test: $(VENV)/.ready
	$(BIN)/python -m pytest $(PARALLEL)

test-fast: $(VENV)/.ready
	$(BIN)/python -m pytest $(PARALLEL) -m "not slow and not weights and not exhaustive"

test-exhaustive: $(VENV)/.ready
	$(BIN)/python -m pytest $(PARALLEL) -m exhaustive

test-oldest: $(OLDEST)/.ready
	$(OLDEST)/bin/python -m pytest $(PARALLEL) -m "not slow and not weights and not exhaustive" $(OLDEST_TESTS)

conformance: $(VENV)/.ready
	$(BIN)/python tests/conformance/run.py

lint: $(VENV)/.ready
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

format: $(VENV)/.ready
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

types: $(VENV)/.ready
	$(BIN)/mypy --strict src

docs: $(VENV)/.ready
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict

# The sdist and the wheel, the wheel tried in an environment of its own.
dist: $(VENV)/.ready
	rm -rf dist
	$(BIN)/python tools/check_package.py dist

# Liger's own table, rotation and loss, in Triton's interpreter.
liger: $(VENV)/.ready
	$(BIN)/python -m pip install --no-deps liger-kernel==0.8.5 triton==3.9.0
	$(BIN)/python -m pytest tests/test_liger.py

# llama.cpp itself, from a prebuilt wheel, reads what we write.
llama-cpp: $(VENV)/.ready
	$(BIN)/python -m pip install xllamacpp
	$(BIN)/python -m pytest tests/checkpoint/test_llama_cpp.py

benchmarks: $(VENV)/.ready
	$(BIN)/python benchmarks/run.py

install: $(VENV)/.ready

$(VENV)/.ready: pyproject.toml
	sh tools/venv.sh $(PYTHON) $(VENV) "$(TORCH)" "$(TRANSFORMERS)" dev
	touch $@

$(OLDEST)/.ready: pyproject.toml
	sh tools/venv.sh $(PYTHON) $(OLDEST) "$(TORCH)" "$(OLDEST_TRANSFORMERS)" test
	touch $@

clean:
	rm -rf $(VENV) $(OLDEST) dist out .pytest_cache .mypy_cache .ruff_cache .hypothesis
