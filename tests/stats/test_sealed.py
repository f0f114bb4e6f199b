"""Stored statistics notice every change, and old files stay readable."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from phistill.cache.format.tensors import seal, unseal
from phistill.errors import CorruptCache, UsageError
from phistill.stats import Moments, Normalizer
from phistill.stats.moments.pass_result import Stored, Summary
from phistill.stats.moments.squared_norms import Energies

DATA = Path(__file__).parent / "data"


def small_moments() -> Moments:
    """Whole numbers, so that every machine sums them to the same bits."""
    x = np.array([[1, 2, 0], [3, -1, 4], [-2, 0, 2], [2, 3, -2]], dtype=np.float64)
    mean = np.array([1.0, 1.0, 1.0])
    return Moments(4, mean, (x - mean).T @ (x - mean))


def small_normalizer() -> Normalizer:
    """Made by hand: a fit's last bits are the machine's own."""
    swap = np.array([[0.0, 1.0, 0.0], [1.0, 0.0, 0.0], [0.0, 0.0, -1.0]])
    mean = np.array([0.5, -2.0, 8.0])
    options = {"shrinkage": 0.25}
    return Normalizer("zca", mean, swap / 2, swap * 2, "hartley+givens", options, "abc")


def small_summary() -> Stored:
    energies = Energies.of(np.array([0.0, 1.0, 1.0, 1024.0]))
    return Stored(Summary(2, small_moments(), energies).sketched(), {"pieces": ["p", "q"]})


@settings(max_examples=600, deadline=None)
@given(st.data())
def test_no_flipped_byte_changes_a_value_silently(data: st.DataObject) -> None:
    """A space of the header's padding that becomes a tab is the one flip that may load."""
    loaders: list[tuple[bytes, Callable[[bytes], Normalizer | Stored]]] = [
        (small_normalizer().to_bytes(), Normalizer.from_bytes),
        (small_summary().to_bytes(), lambda b: Stored.from_bytes(b, "it")),
    ]
    for whole, load in loaders:
        position = data.draw(st.integers(0, len(whole) - 1))
        broken = bytearray(whole)
        broken[position] ^= data.draw(st.integers(1, 255))
        try:
            loaded = load(bytes(broken))
        except (UsageError, CorruptCache):
            continue
        assert loaded.to_bytes() == whole
        assert whole[position : position + 1] == b" "


@given(st.integers(0, 2000))
def test_no_truncation_loads(length: int) -> None:
    whole = small_normalizer().to_bytes()
    if length < len(whole):
        with pytest.raises(UsageError):
            Normalizer.from_bytes(whole[:length])


@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=200))
def test_arbitrary_bytes_are_refused(data: bytes) -> None:
    with pytest.raises(ValueError, match="sealed"):
        unseal(data)


def test_sealing_is_a_pure_function_of_arrays_and_facts() -> None:
    arrays = {"b": np.arange(3.0), "a": np.eye(2)}
    one = seal(arrays, {"x": 1, "y": [2]})
    two = seal(dict(reversed(arrays.items())), {"y": [2], "x": 1})
    assert one == two
    loaded, facts = unseal(one)
    assert facts == {"x": 1, "y": [2]}
    assert np.array_equal(loaded["a"], np.eye(2))


def test_a_summary_comes_back_bit_for_bit() -> None:
    stored = small_summary()
    back = Stored.from_bytes(stored.to_bytes(), "it")
    assert back.facts == {"pieces": ["p", "q"]}
    assert back.summary.num_rows == 2
    assert back.summary.moments.scatter.tobytes() == stored.summary.moments.scatter.tobytes()
    assert np.array_equal(back.summary.energies.counts, stored.summary.energies.counts)
    assert back.summary.sketches[0].axes.tobytes() == stored.summary.sketches[0].axes.tobytes()


def test_format_1_is_read_for_ever() -> None:
    """Files written by the first release; they are never written again."""
    normalizer = Normalizer.from_bytes((DATA / "normalizer-1.safetensors").read_bytes())
    expected = small_normalizer()
    assert normalizer.metadata() == expected.metadata()
    for name, array in expected.to_arrays().items():
        assert normalizer.to_arrays()[name].tobytes() == array.tobytes()
    stored = Stored.from_bytes((DATA / "summary-1.safetensors").read_bytes(), "it")
    moments = small_moments()
    assert stored.facts == {"pieces": ["p", "q"]}
    assert stored.summary.moments.scatter.tobytes() == moments.scatter.tobytes()
    assert stored.summary.moments.mean.tobytes() == moments.mean.tobytes()
    assert stored.summary.energies.n == 4
    assert len(stored.summary.sketches) == 1
