#!/usr/bin/env bash
# The light tests on the newest Python here (or PYTHON) with the newest of every dependency: what a
# user gets who installs today, where `make test` has the pinned versions. Arguments go to pytest.
set -euo pipefail
cd "$(dirname "$0")/.."

newest() {
  { compgen -c python3. | sort -u | while read -r name; do command -v "$name"; done
    ls -d "${PYENV_ROOT:-$HOME/.pyenv}"/versions/3.*/bin/python3 /opt/python/cp3*/bin/python3 || true; } 2>/dev/null |
    while read -r python; do
      "$python" -c 'import sys; v = sys.version_info; print(v[0], v[1], sys.executable) if v >= (3, 11) and v.releaselevel == "final" else 0' 2>/dev/null || true
    done | sort -k1,1n -k2,2n | tail -n 1 | cut -d " " -f 3-
}

python=${PYTHON:-$(newest)}
echo "newest versions: $("$python" --version)"
# Not --upgrade: in a new environment it changes nothing but the disk, where it lays 5 GB of wheels a second time.
.venv/bin/uv venv --quiet --clear --python "$python" .newest
.venv/bin/uv pip install --quiet --compile-bytecode --python .newest/bin/python -e '.[all]' --group dev
.venv/bin/uv pip list --quiet --python .newest/bin/python | grep -E "^(zarr|numpy|torch|timm|transformers|pyarrow|dask) "
.newest/bin/phistill --version
OMP_NUM_THREADS=1 .newest/bin/python -m pytest -q -n auto -m "not slow and not root" "$@"
