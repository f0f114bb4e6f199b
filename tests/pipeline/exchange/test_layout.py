"""Which axis is which: channels first on a word, never by chance, and bits of bfloat16 as well."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st

from phistill import cache as store
from phistill.cli import main
from phistill.errors import UsageError
from phistill.pipeline.exchange.import_features import import_features
from phistill.pipeline.exchange.layout import layout_of
from tests.pipeline.exchange.feature_folders import ids_of, normal, write

REAL = [
    # rows as (n, T, C), (n, h, w, C) of real models, and whether their axes say what they are
    ((196, 768), "ntc"), ((49, 2048), "ntc"), ((1369, 384), "ntc"), ((4096, 768), "ntc"),
    ((14, 14, 768), "nhwc"), ((7, 7, 2048), "nhwc"), ((32, 24, 384), "nhwc"),
    ((64, 64, 256), "nhwc"),
    ((768, 196), None), ((384, 1369), None), ((768, 14, 14), None), ((2048, 7, 7), None),
    ((1152, 16, 16), None), ((256, 64, 64), None), ((768, 24, 32), None),
    # 256 and 1,024 are both squares; a cube has no face
    ((256, 1024), None), ((1024, 256), None), ((16, 16, 16), None), ((8, 16, 24), None),
]  # fmt: skip


@pytest.mark.parametrize(("shape", "expected"), REAL)
def test_channels_last_are_known_by_their_axes_and_anything_else_is_asked_for(
    shape: tuple[int, ...], expected: str | None
) -> None:
    if expected is not None:
        assert layout_of(shape, None, None, "t.patches") == expected
        return
    first = "nct" if len(shape) == 2 else "nchw"
    with pytest.raises(UsageError, match=f"--layout {first}"):
        layout_of(shape, None, None, "t.patches")
    assert layout_of(shape, None, first, "t.patches") == first


@given(st.integers(1, 64), st.integers(1, 64), st.integers(1, 3000))
def test_no_order_of_axes_is_ever_taken_for_the_other(h: int, w: int, c: int) -> None:
    """What is accepted as channels last would be refused when it were channels first."""
    for last, first in (((h, w, c), (c, h, w)), ((h * w, c), (c, h * w))):
        taken = []
        for shape in (last, first):
            try:
                taken.append(layout_of(shape, None, None, "t.patches"))
            except UsageError:
                continue
        if len(taken) == 2:  # no square and no map: the grid has to be stated
            assert taken == ["ntc", "ntc"]
            assert int(h * w) != int((h * w) ** 0.5) ** 2 or h * w == 1


@pytest.mark.parametrize(
    ("layout", "transpose"), [("nct", (0, 2, 1)), ("nchw", (0, 3, 1, 2)), ("t=nchw", (0, 3, 1, 2))]
)
def test_channels_first_are_imported_on_a_word(
    layout: str, transpose: tuple[int, ...], tmp_path: Path
) -> None:
    right = normal(40, 9, 12) if layout == "nct" else normal(40, 3, 4, 12)
    folder = write(tmp_path / "feats", t__patches=np.ascontiguousarray(right.transpose(transpose)))
    done = CliRunner().invoke(
        main,
        ["import-features", str(folder), "--cache", str(tmp_path / "c"), "--source", "s",
         "--layout", layout],
    )  # fmt: skip
    assert done.exit_code == 0, done.output
    grid = "3 x 3" if layout == "nct" else "3 x 4"
    assert f"t: patches on a grid of {grid}, 12 channels." in done.output
    cache = store.open(tmp_path / "c")
    rows = cache.rows(["t"], "all")
    order = [int(name[4:7]) for name in ids_of(cache, rows)]
    found = cache.reader("t", "patches").read(rows)
    expected = right.reshape(40, -1, 12)[order].astype(np.float16)
    np.testing.assert_array_equal(found, expected)


REFUSED: list[tuple[tuple[int, ...], dict[str, Any], str]] = [
    ((40, 12, 3, 3), {}, r"look like \(n, C, h, w\)"),
    ((40, 12, 9), {}, r"look like \(n, C, T\)"),
    ((40, 9, 16), {}, r"may be \(n, T, C\) or \(n, C, T\)"),
    ((40, 9, 2, 30), {}, "look like no map"),
    ((40, 3, 3, 12), {"layouts": {"": "nct"}}, "choose nhwc or nchw"),
    ((40, 3, 3, 12), {"layouts": {"t": "nwhc"}}, "Did you mean nhwc"),
    ((40, 3, 3, 12), {"layouts": {"u": "nhwc"}}, "--layout names 'u'"),
    ((40, 12, 3, 3), {"layouts": {"": "nchw"}, "grids": {"t": (2, 2)}}, r"on the grid \(2, 2\)"),
]


@pytest.mark.parametrize(("shape", "options", "what"), REFUSED)
def test_axes_that_are_not_clear_are_refused(
    shape: tuple[int, ...], options: dict[str, Any], what: str, tmp_path: Path
) -> None:
    folder = write(tmp_path / "feats", t__patches=normal(*shape))
    with pytest.raises(UsageError, match=what):
        import_features(folder, tmp_path / "c", source="s", **options)
    assert not (tmp_path / "c").exists()


def test_a_stated_grid_decides_where_both_are_squares(tmp_path: Path) -> None:
    folder = write(tmp_path / "feats", t__patches=normal(40, 16, 9))
    cache = import_features(folder, tmp_path / "c", source="s", grids={"t": (2, 8)}).cache
    assert (cache.teacher("t").grid, cache.teacher("t").width("patches")) == ((2, 8), 9)


@pytest.mark.parametrize("as_integers", [True, False])
def test_bits_of_bfloat16_are_read_when_they_are_said_to_be(
    as_integers: bool, tmp_path: Path
) -> None:
    values = normal(40, 4, 8).astype(ml_dtypes.bfloat16)
    stored = values.view(np.uint16) if as_integers else values
    folder = write(tmp_path / "bits", t__patches=stored)
    with pytest.raises(UsageError, match="import them with --bfloat16"):
        import_features(folder, tmp_path / "c", source="s")
    cache = import_features(folder, tmp_path / "c", source="s", bfloat16=True).cache
    rows = cache.rows(["t"], "all")
    order = [int(name[4:7]) for name in ids_of(cache, rows)]
    expected = values[order].astype(np.float32).astype(np.float16)
    np.testing.assert_array_equal(cache.reader("t", "patches").read(rows), expected)
