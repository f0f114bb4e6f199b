# One command for each thing a person does here. Each makes .venv when it is missing.
PYTHON ?= python3
BIN := .venv/bin

.PHONY: setup demo test torture lint constraints clean

setup: .venv/.ready

.venv/.ready: pyproject.toml constraints.txt
	$(BIN)/python -m pip --version >/dev/null 2>&1 || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt uv
	UV_COMPILE_BYTECODE_TIMEOUT=600 $(BIN)/uv pip install --quiet --compile-bytecode --python $(BIN)/python -c constraints.txt -e '.[demo,distributed,s3,transformers]' --group dev
	touch $@

demo: setup
	$(BIN)/phistill demo --out demo-out

# One worker per core, one thread each: threads of several processes that spin for a core cost far
# more than they bring.
test: setup
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto

# The full sizes of the kill, fault and fuzz tests, without a network, and a table of what passed;
# a quarter of an hour on two quiet cores. The table in docs/guarantees.md is its output.
torture: setup
	OMP_NUM_THREADS=1 PHISTILL_FULL=1 tests/without_network.sh $(BIN)/python -m pytest -n auto --timeout 0

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

# The pinned versions that `make` installs, for every supported Python.
constraints: setup
	$(BIN)/uv pip compile --quiet --universal --python-version 3.11 --all-extras --group dev \
	  --no-header --no-annotate --no-emit-index-url --upgrade pyproject.toml -o constraints.txt

clean:
	rm -rf .venv build dist *.egg-info demo-out
