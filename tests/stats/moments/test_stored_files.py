"""Stored statistics notice every change, and old files stay readable."""

from __future__ import annotations

import json
from pathlib import Path

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import load as load_file

from phistill.cache.format import tensor_file
from phistill.errors import CorruptCache, UsageError
from phistill.stats import Moments, Normalizer
from phistill.stats.fit.partials import PartialFacts
from phistill.stats.moments.pass_result import PassResult
from phistill.stats.moments.squared_norms import SquaredNorms

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


def small_result() -> PassResult:
    norms = SquaredNorms.of(np.array([0.0, 1.0, 1.0, 1024.0]))
    return PassResult(2, small_moments(), norms).sketched()


FACTS = PartialFacts(["p", "q"])


def result_again(data: bytes) -> bytes:
    result, facts = PassResult.from_bytes(data, "it", PartialFacts)
    return result.to_bytes(facts)


def test_no_changed_byte_loads() -> None:
    """Of the header and its padding, of the facts and the arrays: eight flips of every byte."""
    for whole, load in (
        (small_normalizer().to_bytes(), Normalizer.from_bytes),
        (small_result().to_bytes(FACTS), result_again),
    ):
        for position in range(len(whole)):
            for bit in range(8):
                broken = bytearray(whole)
                broken[position] ^= 1 << bit
                with pytest.raises((UsageError, CorruptCache)):
                    load(bytes(broken))


def test_a_header_that_says_the_same_in_other_words_does_not_load() -> None:
    """safetensors itself loads both."""
    whole = tensor_file.encode({"a": np.arange(3.0)}, {"x": 1})
    end = 8 + int.from_bytes(whole[:8], "little")
    header = json.loads(whole[8:end])
    text = json.dumps(dict(reversed(header.items())), separators=(",", ":")).encode()
    other = len(text).to_bytes(8, "little") + text + whole[end:]
    assert load_file(other)["a"].tolist() == [0.0, 1.0, 2.0]
    with pytest.raises(ValueError, match="changed after it was written"):
        tensor_file.decode(other)


@given(st.integers(0, 2000))
def test_no_truncation_loads(length: int) -> None:
    whole = small_normalizer().to_bytes()
    if length < len(whole):
        with pytest.raises(UsageError):
            Normalizer.from_bytes(whole[:length])


@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=200))
def test_arbitrary_bytes_are_refused(data: bytes) -> None:
    with pytest.raises(ValueError, match="not a tensor file"):
        tensor_file.decode(data)


def test_the_file_is_a_pure_function_of_arrays_and_facts() -> None:
    arrays = {"b": np.arange(3.0), "a": np.eye(2)}
    one = tensor_file.encode(arrays, {"x": 1, "y": [2]})
    two = tensor_file.encode(dict(reversed(arrays.items())), {"y": [2], "x": 1})
    assert one == two
    loaded, facts = tensor_file.decode(one)
    assert facts == {"x": 1, "y": [2]}
    assert np.array_equal(loaded["a"], np.eye(2))


def test_a_result_comes_back_bit_for_bit() -> None:
    result = small_result()
    back, facts = PassResult.from_bytes(result.to_bytes(FACTS), "it", PartialFacts)
    assert facts == FACTS
    assert back.num_rows == 2
    assert back.moments.scatter.tobytes() == result.moments.scatter.tobytes()
    assert np.array_equal(back.squared_norms.counts, result.squared_norms.counts)
    assert back.sketches[0].axes.tobytes() == result.sketches[0].axes.tobytes()


def test_what_another_version_stored_is_refused_with_its_name() -> None:
    class Newer(msgspec.Struct):
        pieces: list[str]
        rotation: str

    data = small_result().to_bytes(Newer(["p"], "x"))
    with pytest.raises(CorruptCache, match=r"unknown field `rotation`.*fit-stats"):
        PassResult.from_bytes(data, "it", PartialFacts)


def test_format_1_is_read_for_ever() -> None:
    """Files written by the first release; they are never written again."""
    normalizer = Normalizer.from_bytes((DATA / "normalizer-1.safetensors").read_bytes())
    expected = small_normalizer()
    assert normalizer.metadata() == expected.metadata()
    for name, array in expected.to_arrays().items():
        assert normalizer.to_arrays()[name].tobytes() == array.tobytes()
    data = (DATA / "result-1.safetensors").read_bytes()
    result, facts = PassResult.from_bytes(data, "it", PartialFacts)
    moments = small_moments()
    assert facts == FACTS
    assert result.moments.scatter.tobytes() == moments.scatter.tobytes()
    assert result.moments.mean.tobytes() == moments.mean.tobytes()
    assert result.squared_norms.n == 4
    assert len(result.sketches) == 1
