"""The random state of one trainee: torch's on the CPU and, where it trains there, on a CUDA device.

Dropout and stochastic depth draw from it. Students that take turns each have their own, and a
checkpoint holds that of every rank.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping

import torch
from torch import Tensor

RANK_STRIDE = 7919
"""Between the seeds of ranks: a prime beyond any seed a person counts up to."""


class RandomState:
    """A stream of its own, seeded by the run's seed and the rank."""

    def __init__(self, seed: int, rank: int, device: torch.device) -> None:
        self.device = device
        self.states: dict[str, Tensor] = {}
        self._begin(seed + RANK_STRIDE * rank)

    @contextlib.contextmanager
    def in_place(self) -> Iterator[None]:
        """Draw from this stream, and leave the caller's as it was."""
        outer = self._current()
        self._set(self.states)
        try:
            yield
        finally:
            self.states = self._current()
            self._set(outer)

    def restore(self, stored: Mapping[str, Tensor], *, seed: int, rank: int, num_done: int) -> None:
        """Go on with this rank's state after ``num_done`` steps.

        A checkpoint of fewer ranks, or of another kind of device, knows nothing of it: a new
        stream begins.
        """
        names = {kind: state_name(kind, rank) for kind in self.states}
        if all(name in stored for name in names.values()):
            self.states = {kind: stored[name].clone() for kind, name in names.items()}
        else:
            self._begin(seed + RANK_STRIDE * rank + num_done)

    def _begin(self, seed: int) -> None:
        self.states = {"torch": torch.Generator().manual_seed(seed).get_state()}
        if self.device.type == "cuda":
            generator = torch.Generator(self.device).manual_seed(seed)
            self.states["cuda"] = generator.get_state()

    def _current(self) -> dict[str, Tensor]:
        found = {"torch": torch.get_rng_state()}
        if self.device.type == "cuda":
            found["cuda"] = torch.cuda.get_rng_state(self.device)
        return found

    def _set(self, states: Mapping[str, Tensor]) -> None:
        torch.set_rng_state(states["torch"])
        if "cuda" in states:
            torch.cuda.set_rng_state(states["cuda"], self.device)


def state_name(kind: str, rank: int) -> str:
    """The name in a checkpoint: ``rng/torch``, ``rng/torch/1``, ..."""
    return f"rng/{kind}" if not rank else f"rng/{kind}/{rank}"
