# One command for each thing a person does here. Each makes .venv when it is missing.
PYTHON ?= python3
BIN := .venv/bin

.PHONY: setup demo test newest torture lint docs constraints release wheels gpu clean

setup: .venv/.ready

.venv/.ready: pyproject.toml constraints.txt
	$(BIN)/python -m pip --version >/dev/null 2>&1 || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt uv
	UV_COMPILE_BYTECODE_TIMEOUT=600 $(BIN)/uv pip install --quiet --compile-bytecode --python $(BIN)/python -c constraints.txt -e '.[all]' --group dev --group docs
	touch $@

demo: setup
	$(BIN)/phistill demo --out demo-out

# One worker per core, one thread each: threads of several processes that spin for a core cost far
# more than they bring.
test: setup
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto

# The light tests with the newest versions instead of the pinned ones, on the newest Python there is.
newest: setup
	tests/newest_versions.sh

# The full sizes of the kill, fault and fuzz tests, without a network, and a table of what passed;
# a quarter of an hour on two quiet cores. The table in benchmarks/results/ is its output.
torture: setup
	OMP_NUM_THREADS=1 PHISTILL_FULL=1 tests/without_network.sh $(BIN)/python -m pytest -n auto --timeout 0

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

# The pages as a site in site/, every link and anchor checked: python -m http.server -d site
docs: setup
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

# The pinned versions that `make` installs, for every supported Python.
constraints: setup
	$(BIN)/uv pip compile --quiet --universal --python-version 3.11 --all-extras --group dev --group docs \
	  --no-header --no-annotate --no-emit-index-url --upgrade pyproject.toml -o constraints.txt

# The wheel and the source archive of what is committed, each shown to work; in dist/.
release: setup
	tests/release.sh

# What a machine with a GPU and without a package index lacks beside torch, timm and transformers:
# run this where there is an index, and take .whl along. WITHOUT names what it has, one of
# benchmarks/gpu/wheels.txt or several: WITHOUT="pyarrow|timm". What is larger than 32 MB (pyarrow)
# lies in .whl-large: together they are 80 MB, and a way that takes 64 MiB at once takes each.
WHEELS_PYTHON ?= 3.12
WITHOUT ?= nothing
wheels: setup
	mkdir -p .whl .whl-large
	grep -vxE "$(WITHOUT)" benchmarks/gpu/wheels.txt > .whl/list.txt
	$(BIN)/python -m pip download --quiet --quiet --no-deps --only-binary :all: -d .whl \
	  --python-version $(WHEELS_PYTHON) --platform manylinux_2_28_x86_64 \
	  --platform manylinux_2_17_x86_64 --platform manylinux2014_x86_64 \
	  -c constraints.txt -r .whl/list.txt
	find .whl -name '*.whl' -size +32M -exec mv -t .whl-large {} +
	du -sh .whl .whl-large

# Everything that only a GPU can tell, within twenty minutes, on one page in benchmarks/results/;
# on a CPU it runs small and names what it skips. The environment sees the packages of PYTHON, and
# takes what is missing there from .whl, or from an index where there is no .whl.
FROM = $(if $(wildcard .whl),--no-index --find-links .whl --find-links .whl-large)
gpu: .gpu/.ready
	.gpu/bin/python benchmarks/gpu/run.py

.gpu/.ready: pyproject.toml
	$(PYTHON) -m venv --system-site-packages .gpu
	$(PYTHON) -c "import sysconfig; print(sysconfig.get_path('purelib'))" \
	  > "$$(.gpu/bin/python -c "import sysconfig; print(sysconfig.get_path('purelib'))")/machine.pth"
	.gpu/bin/python -m pip install --quiet --disable-pip-version-check $(FROM) \
	  "setuptools>=77" -r benchmarks/gpu/tests.txt
	.gpu/bin/python -m pip install --quiet --disable-pip-version-check $(FROM) \
	  --no-build-isolation -e .
	touch $@

clean:
	rm -rf .venv .newest .gpu build dist site *.egg-info demo-out
