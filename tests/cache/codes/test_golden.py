"""Bytes of the first format: decoded for ever, by the package and by the lines of docs/codes.md."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from phistill.cache.codes import RowCodec

ROOT = Path(__file__).parents[3]
DATA = ROOT / "tests" / "data" / "codes"
"""Made by `python tests/data/codes/make.py`."""

NAMES = ["patches", "summary", "fine"]


def golden(name: str) -> tuple[Path, dict[str, np.ndarray]]:
    with np.load(DATA / f"{name}.npz") as file:
        return DATA / f"{name}.codec.safetensors", dict(file)


@pytest.mark.parametrize("name", NAMES)
def test_golden_codes_decode_to_the_same_bits(name: str) -> None:
    path, arrays = golden(name)
    codec = RowCodec.from_bytes(path.read_bytes())
    assert np.array_equal(codec.decode(arrays["codes"]), arrays["decoded"])
    assert np.array_equal(codec.decode(arrays["codes"], unbiased=True), arrays["unbiased"])


@pytest.mark.parametrize("name", NAMES)
def test_golden_rows_encode_to_the_same_bytes(name: str) -> None:
    path, arrays = golden(name)
    codec = RowCodec.from_bytes(path.read_bytes())
    assert np.array_equal(codec.encode(arrays["rows"]), arrays["codes"])


@pytest.mark.parametrize("name", NAMES)
def test_the_lines_of_the_page_decode_without_phistill(name: str) -> None:
    page = (ROOT / "docs" / "codes.md").read_text("utf-8")
    (lines,) = [
        block for block in re.findall(r"```python\n(.*?)```", page, re.S) if "def " in block
    ]
    assert "phistill import" not in lines
    assert "import phistill" not in lines
    made: dict[str, Any] = {}
    exec(lines, made)  # noqa: S102  # our own page
    path, arrays = golden(name)
    decode, codes = made["decode"], arrays["codes"]
    assert np.array_equal(decode(path, codes), arrays["decoded"])
    assert np.array_equal(decode(path, codes, unbiased=True), arrays["unbiased"])
