"""Features on their way to the host: rounded, checked, copied while more are computed.

Patches and registers are stored as float16, summaries as float32. What does not survive that is
decided here and nowhere else, for teachers that run and for features that are imported.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from phistill.cache import TeacherInfo
from phistill.cache.format.info import DTYPES
from phistill.compute.copies import Arriving, to_host

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True, eq=False, slots=True)
class Rounded:
    """Values of b rows in the dtype that is stored."""

    values: torch.Tensor
    """(b, ...)."""
    survives: torch.Tensor
    """(b,) bool: every value of the row is finite in the stored dtype."""
    largest: torch.Tensor
    """(b,) largest absolute value before; NaN where one was NaN or infinite."""

    @classmethod
    def of(cls, values: torch.Tensor, dtype: np.dtype[Any]) -> Rounded:
        """Round ``values`` (b, ...) on the device they are on."""
        import torch

        with torch.inference_mode():
            stored = getattr(torch, dtype.name)
            low, high = values.flatten(1).aminmax(dim=1)  # NaN stays NaN
            largest = torch.maximum(-low, high)
            # Rounding keeps the order, so a row survives if its largest value does.
            survives = torch.isfinite(largest.to(stored))
            largest = torch.where(torch.isfinite(largest), largest, torch.nan)
            return cls(values.to(stored), survives, largest)

    def reasons(self) -> dict[int, str]:
        """Why a row cannot be stored, by row; of values on the host."""
        dtype = str(self.values.dtype).removeprefix("torch.")
        return {
            row: f"exceeds {dtype} (largest {largest:.6g})"
            if np.isfinite(largest := float(self.largest[row]))
            else "holds NaN or infinity"
            for row in np.flatnonzero(~self.survives.numpy()).tolist()
        }


def stored_as(values: NDArray[Any], dtype: np.dtype[Any]) -> tuple[NDArray[Any], dict[int, str]]:
    """Values (n, ...) in the stored dtype, and why rows among them cannot be stored."""
    import torch

    if values.dtype.kind != "f":
        return values, {}
    rounded = Rounded.of(torch.from_numpy(values), dtype)
    return rounded.values.numpy(), rounded.reasons()


class BatchToHost:
    """A batch of one teacher's features, kind by kind.

    A device other than the CPU rounds it to the stored dtype itself and begins to copy at once; on
    the CPU both wait for ``land``, which another thread may call while the teacher goes on.
    """

    def __init__(self, teacher: str, start: int, values: dict[str, torch.Tensor]) -> None:
        self._teacher, self._start = teacher, start
        self._values, self._kinds = values, tuple(values)
        self._arriving: Arriving | None = None
        if next(iter(values.values())).device.type != "cpu":
            rounded = [Rounded.of(value, DTYPES[kind]) for kind, value in values.items()]
            three = [(one.values, one.survives, one.largest) for one in rounded]
            self._arriving = to_host([tensor for tensors in three for tensor in tensors])
            self._values = {}

    def result(self) -> tuple[dict[str, NDArray[Any]], dict[int, str]]:
        """Wait; the values (b, ...) of each kind, and why a row cannot be stored, by its place
        in the batch."""
        values, reasons = {}, dict[int, str]()
        for kind, rounded in self._landed().items():
            values[kind] = rounded.values.numpy()
            for row, reason in rounded.reasons().items():
                reasons.setdefault(row, f"{self._teacher}/{kind} {reason}")
        return values, reasons

    def land(self, arrays: dict[str, NDArray[Any]], reasons: dict[int, str]) -> None:
        """Wait, copy into ``arrays``, and say why a row cannot be stored."""
        values, why = self.result()
        for kind, of_kind in values.items():
            arrays[kind][self._start : self._start + len(of_kind)] = of_kind
        for row, reason in why.items():
            reasons.setdefault(self._start + row, reason)

    def _landed(self) -> dict[str, Rounded]:
        if self._arriving is None:
            return {k: Rounded.of(v, DTYPES[k]) for k, v in self._values.items()}
        tensors = iter(self._arriving.wait())
        three = zip(tensors, tensors, tensors, strict=True)
        return {kind: Rounded(*parts) for kind, parts in zip(self._kinds, three, strict=True)}


class StoredRows:
    """What teachers that share a forward pass give for n rows, filled batch by batch."""

    def __init__(self, teachers: Sequence[TeacherInfo], num_rows: int) -> None:
        self._arrays = [
            {kind: np.empty((num_rows, *info.row_shape(kind)), DTYPES[kind]) for kind in info.kinds}
            for info in teachers
        ]
        self._reasons = [dict[int, str]() for _ in teachers]

    def land(self, batches: Sequence[BatchToHost]) -> None:
        """Wait for a batch of each teacher and keep it."""
        for batch, arrays, reasons in zip(batches, self._arrays, self._reasons, strict=True):
            batch.land(arrays, reasons)

    def result(self, number: int) -> tuple[dict[str, NDArray[Any]], dict[int, str]]:
        """Arrays per kind of one teacher and why a row cannot be stored; the values of such a row
        are NaN."""
        arrays, reasons = self._arrays[number], self._reasons[number]
        for values in arrays.values():
            values[list(reasons)] = np.nan
        return arrays, reasons
