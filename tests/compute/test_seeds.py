"""Streams of random numbers that leave the caller's as they were."""

from __future__ import annotations

import pytest
import torch

from phistill.compute.seeds import RandomState, normal_like, seeded


def test_a_seed_gives_the_numbers_of_manual_seed_and_leaves_the_callers() -> None:
    torch.manual_seed(3)
    expected = torch.rand(4)
    outside = torch.get_rng_state()
    with seeded(3):
        assert torch.equal(torch.rand(4), expected)
    assert torch.equal(torch.get_rng_state(), outside)
    with pytest.raises(ArithmeticError), seeded(3):
        raise ArithmeticError
    assert torch.equal(torch.get_rng_state(), outside)


def test_a_seed_touches_no_generator_of_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    touched: list[int] = []
    monkeypatch.setattr(torch.cuda, "manual_seed_all", touched.append)
    monkeypatch.setattr(torch.mps, "manual_seed", touched.append)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)  # seeds every device there is, which fork_rng does not take back
    assert touched
    touched.clear()
    with seeded(1):
        torch.rand(1)
    assert not touched


def test_students_that_take_turns_draw_as_if_alone() -> None:
    cpu = torch.device("cpu")
    one, two, alone = (RandomState(seed, 0, cpu) for seed in (1, 2, 1))
    outside = torch.get_rng_state()
    drawn = []
    for _ in range(3):
        with one.in_place():
            drawn.append(torch.rand(2))
        with two.in_place():
            torch.rand(5)
    with alone.in_place():
        assert torch.equal(torch.cat(drawn), torch.rand(6))
    assert torch.equal(torch.get_rng_state(), outside)


def test_apples_generator_is_put_in_place_and_taken_back(monkeypatch: pytest.MonkeyPatch) -> None:
    device = torch.device("mps")
    states = {"now": torch.tensor([9], dtype=torch.uint8)}

    class Generator:
        """torch's, which knows no mps here."""

        def __init__(self, device: torch.device | str = "cpu") -> None:
            self.seed = 0

        def manual_seed(self, seed: int) -> Generator:
            self.seed = seed
            return self

        def get_state(self) -> torch.Tensor:
            return torch.tensor([self.seed % 200], dtype=torch.uint8)

    state = RandomState(5, 0, torch.device("cpu"))
    host = state.states["torch"]
    monkeypatch.setattr(torch, "Generator", Generator)
    monkeypatch.setattr(torch.mps, "get_rng_state", lambda: states["now"])
    monkeypatch.setattr(torch.mps, "set_rng_state", lambda new: states.update(now=new))
    state = RandomState(5, 0, device)
    state.states["torch"] = host
    with state.in_place():
        assert states["now"].item() == 5
        states["now"] = torch.tensor([6], dtype=torch.uint8)
    assert states["now"].item() == 9
    assert state.states["mps"].item() == 6


def test_what_is_drawn_for_a_row_depends_on_its_seed_alone() -> None:
    x, before = torch.zeros(3, 2, 5), torch.get_rng_state()
    drawn = normal_like(x, [7, 2**64 - 1, 7])
    assert torch.equal(drawn[0], drawn[2])
    assert torch.equal(drawn[1:2], normal_like(x[:1], [2**64 - 1]))
    assert not torch.equal(drawn[0], drawn[1])
    assert torch.equal(torch.get_rng_state(), before)
    many = normal_like(torch.zeros(1, 100_000), [0])
    # Standard errors are 0.003 and 0.002.
    assert abs(float(many.mean())) < 0.015
    assert abs(float(many.std()) - 1) < 0.01
