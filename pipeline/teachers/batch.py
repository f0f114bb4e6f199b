"""Features on their way to the host: float16, checked, copied while more are computed."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from phistill.cache.format.info import DTYPES

if TYPE_CHECKING:
    import torch

Stored = tuple["torch.Tensor", "torch.Tensor", "torch.Tensor"]
"""Values (b, ...) in the stored dtype; per row whether they survived it, and the largest absolute
value before: NaN where one was NaN or infinite."""


def storable(values: torch.Tensor, dtype: np.dtype[Any]) -> Stored:
    import torch

    with torch.inference_mode():
        low, high = values.flatten(1).aminmax(dim=1)  # NaN stays NaN
        largest = torch.maximum(-low, high)
        # Rounding keeps the order, so a row survives if its largest value does.
        survived = torch.isfinite(largest.to(getattr(torch, dtype.name)))
        largest = torch.where(torch.isfinite(largest), largest, torch.nan)
        return values.to(getattr(torch, dtype.name)), survived, largest


def to_host(stored: Stored) -> Stored:
    """The same on the host; from CUDA into pinned memory, not yet arrived."""
    import torch

    def move(values: torch.Tensor) -> torch.Tensor:
        if not values.is_cuda:
            return values.cpu()
        host = torch.empty(values.shape, dtype=values.dtype, pin_memory=True)
        return host.copy_(values, non_blocking=True)

    values, survived, largest = stored
    return move(values), move(survived), move(largest)


class Batch:
    """A batch of features on its way to the host.

    A device other than the CPU rounds it to the stored dtype itself and begins to copy at once; on
    the CPU both wait for ``land``, which another thread may call while the teacher goes on.
    """

    def __init__(self, name: str, start: int, values: dict[str, torch.Tensor]) -> None:
        self._name, self._start = name, start
        self._event: torch.cuda.Event | None = None
        self._values, self._stored = values, dict[str, Stored]()
        device = next(iter(values.values())).device
        if device.type != "cpu":
            self._stored = {k: to_host(storable(v, DTYPES[k])) for k, v in values.items()}
            self._values = {}
        if device.type == "cuda":
            import torch

            self._event = torch.cuda.Event()
            self._event.record(torch.cuda.current_stream(device))

    def land(self, arrays: dict[str, NDArray[Any]], reasons: dict[int, str]) -> None:
        """Wait, copy into ``arrays``, and say why a row cannot be stored."""
        if self._event is not None:
            self._event.synchronize()
        stored = self._stored or {k: storable(v, DTYPES[k]) for k, v in self._values.items()}
        for kind, (values, survived, largest) in stored.items():
            arrays[kind][self._start : self._start + len(values)] = values.numpy()
            for row in np.flatnonzero(~survived.numpy()).tolist():
                most = float(largest[row])
                why = f"exceeds {DTYPES[kind]} (largest {most:.6g})"
                why = why if np.isfinite(most) else "holds NaN or infinity"
                reasons.setdefault(self._start + row, f"{self._name}/{kind} {why}")
