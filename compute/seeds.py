"""Random states: weights drawn from a seed, and the stream of one student in training.

Dropout and stochastic depth draw from torch's generators, on the CPU and on the device of the
student. Students that take turns each have their own stream, and a checkpoint holds that of every
rank. The caller's generators are as they were whenever a function here is left.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch
    from torch import Tensor

RANK_STRIDE = 7919
"""Between the seeds of ranks: a prime beyond any seed a person counts up to."""


@contextlib.contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Draw from ``seed`` on the CPU; no other device's generator is touched."""
    import torch

    before = torch.get_rng_state()
    # Not torch.manual_seed, which seeds the generators of all devices.
    torch.default_generator.manual_seed(seed)
    try:
        yield
    finally:
        torch.set_rng_state(before)


def normal_like(x: Tensor, seeds: Sequence[int]) -> Tensor:
    """Standard normal numbers in the shape and type of ``x`` (b, ...), drawn on its device.

    ``seeds`` has one for each of the b: what is drawn from it depends on the kind of device alone.
    """
    import torch

    drawn = torch.empty_like(x, memory_format=torch.contiguous_format)
    generator = torch.Generator(x.device)
    for one, seed in zip(drawn, seeds, strict=True):
        generator.manual_seed(seed)
        one.normal_(generator=generator)
    return drawn


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
        import torch

        self.states = {"torch": torch.Generator().manual_seed(seed).get_state()}
        if self.device.type != "cpu":
            generator = torch.Generator(self.device).manual_seed(seed)
            self.states[self.device.type] = generator.get_state()

    def _current(self) -> dict[str, Tensor]:
        import torch

        states = {"torch": torch.get_rng_state()}
        if self.device.type == "cuda":
            states["cuda"] = torch.cuda.get_rng_state(self.device)
        elif self.device.type == "mps":
            states["mps"] = torch.mps.get_rng_state()
        return states

    def _set(self, states: Mapping[str, Tensor]) -> None:
        import torch

        torch.set_rng_state(states["torch"])
        if "cuda" in states:
            torch.cuda.set_rng_state(states["cuda"], self.device)
        if "mps" in states:
            torch.mps.set_rng_state(states["mps"])


def state_name(kind: str, rank: int) -> str:
    """The name in a checkpoint: ``rng/torch``, ``rng/torch/1``, ..."""
    return f"rng/{kind}" if not rank else f"rng/{kind}/{rank}"
