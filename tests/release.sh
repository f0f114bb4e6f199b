#!/usr/bin/env bash
# A wheel and a source archive of what is committed, in dist/, each shown to work: the wheel in an
# environment of its own, the archive by the tests that it brings.
set -euo pipefail
cd "$(dirname "$0")/.."
top=$PWD
clean=$(mktemp -d)
trap 'rm -rf "$clean"' EXIT

git archive --format tar --prefix tree/ HEAD | tar -x -C "$clean"
version=$(sed -n 's/^__version__ = "\(.*\)"/\1/p' "$clean/tree/__init__.py")
tag=$(git tag --points-at HEAD 'v*')
if [ -n "$tag" ] && [ "$tag" != "v$version" ]; then
  echo "the tag $tag stands on version $version" >&2
  exit 1
fi
grep -q "^version: $version$" "$clean/tree/CITATION.cff"
grep -q "^## $version" "$clean/tree/CHANGELOG.md"

rm -rf dist
.venv/bin/uv build --quiet --python .venv/bin/python --out-dir dist "$clean/tree" # the wheel from the archive
.venv/bin/uv tool run --quiet twine check --strict dist/*

.venv/bin/uv venv --quiet --python .venv/bin/python "$clean/venv"
.venv/bin/uv pip install --quiet --python "$clean/venv/bin/python" -c constraints.txt dist/*.whl
cd "$clean"
venv/bin/phistill --version
venv/bin/phistill --help
venv/bin/python -c 'import phistill.cache, phistill.demo, phistill.pipeline, phistill.report, phistill.stats, phistill.train'

mkdir archive
tar -x -C archive --strip-components 1 -f "$top"/dist/*.tar.gz
cd archive
"$top/.venv/bin/uv" venv --quiet --python "$top/.venv/bin/python" .venv
"$top/.venv/bin/uv" pip install --quiet --python .venv/bin/python -c constraints.txt -e '.[all]' --group dev
OMP_NUM_THREADS=1 .venv/bin/python -m pytest -q -n auto -m "not slow and not root" "$@"
