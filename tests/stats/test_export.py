"""An exported normalizer works with the ten lines of its documentation and nothing of ours."""

from __future__ import annotations

import subprocess
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from phistill.cache import Cache
from phistill.errors import MissingMoments, UsageError
from phistill.stats import export as export_module
from phistill.stats import fit_stats, load_normalizer
from phistill.stats.export import export_normalizer

_USE = """
import sys
import numpy as np
normalizer = Normalizer(sys.argv[1])
x = torch.from_numpy(np.load(sys.argv[2]))
y = normalizer(x)
np.savez(sys.argv[3], y=y.numpy(), x=normalizer.inverse(y).numpy())
assert "phistill" not in sys.modules
"""


def documented_lines() -> str:
    """The indented block of the module's docstring."""
    doc = export_module.__doc__ or ""
    return textwrap.dedent(doc[doc.index("    import torch") :])


def test_the_documented_lines_load_and_apply_it(
    make_cache: Callable[..., Cache], tmp_path: Path
) -> None:
    cache = make_cache(num_rows=60)
    fit_stats(cache)
    out = tmp_path / "normalizer.safetensors"
    export_normalizer(cache, "b", out)
    x = cache.reader("b", "patches").read(cache.rows(["b"])).astype(np.float32)
    np.save(tmp_path / "x.npy", x)
    result = tmp_path / "y.npz"
    program = documented_lines() + _USE
    subprocess.run(
        [sys.executable, "-I", "-c", program, str(out), str(tmp_path / "x.npy"), str(result)],
        check=True,
    )
    with np.load(result) as arrays:
        # float32 against float64 matrices
        assert np.allclose(
            arrays["y"], load_normalizer(cache, "b", "patches").transform(x), atol=1e-5
        )
        assert np.allclose(arrays["x"], x, atol=1e-5)


def test_an_export_replaces_an_export_and_nothing_else(cache: Cache, tmp_path: Path) -> None:
    fit_stats(cache)
    out = tmp_path / "n.safetensors"
    export_normalizer(cache, "b", out)
    first = out.read_bytes()
    for _ in range(8):
        export_normalizer(cache, "b", out)
        assert out.read_bytes() == first
    export_normalizer(cache, "b", out, method="standardize")
    for taken in (cache.path / "zarr.json", *cache.path.rglob("normalizer.safetensors")):
        before = taken.read_bytes()
        with pytest.raises(UsageError, match="is no exported normalizer"):
            export_normalizer(cache, "b", taken)
        assert taken.read_bytes() == before


def test_nothing_is_exported_before_statistics_exist(
    make_cache: Callable[..., Cache], tmp_path: Path
) -> None:
    with pytest.raises(MissingMoments, match="phistill fit-stats"):
        export_normalizer(make_cache(num_rows=20), "b", tmp_path / "n.safetensors")
    assert not list(tmp_path.glob("n.*"))
