"""Running a teacher over rendered rows: batches, device, float16, and what cannot be stored."""

from __future__ import annotations

import platform
from collections.abc import Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import UInt8
from numpy.typing import NDArray

from ..cache import TeacherInfo
from ..cache.errors import TeacherError, UsageError
from ..cache.info import DTYPES
from .adjust import licence_of
from .batch import Batch, storable, to_host
from .contract import Features, Preprocessing, Teacher
from .views import Rendering

if TYPE_CHECKING:
    import torch

AUTOCASTS = ("float32", "bfloat16", "float16")
ROWS_AT_256 = {"cpu": 32, "cuda": 128, "mps": 64}
"""Rows in one forward pass of a teacher whose input is 256 x 256 pixels."""


def choose_device(name: str, local_rank: int | None = None) -> torch.device:
    """``auto`` is CUDA, then Apple's GPU, then the CPU; UsageError when the named one is absent.

    Of several processes on a machine each takes the CUDA device of its number, in turn.
    """
    import torch

    if name in ("auto", "cuda") and torch.cuda.is_available():
        if local_rank is None:
            return torch.device("cuda")
        return torch.device("cuda", local_rank % torch.cuda.device_count())
    if name == "auto":
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise UsageError(
            f"device {name!r} is not known; write auto, cpu, cuda, cuda:1 or mps."
        ) from error
    present = {
        "cpu": True,
        "cuda": torch.cuda.is_available(),
        "mps": torch.backends.mps.is_available(),
    }
    if not present.get(device.type, False):
        raise UsageError(f"device {name!r} was asked for, but torch sees no such device here.")
    return device


def default_rows_per_forward(device: str, size: tuple[int, int]) -> int:
    """Rows whose pixels are at most those of ROWS_AT_256, a power of two: SAM's 1024 x 1024 take
    16 times the memory. A rule and no measurement, so that every machine chooses the same."""
    rows = ROWS_AT_256.get(device, 32) * 256 * 256 // (size[0] * size[1])
    return int(2 ** (min(max(rows, 1), 256).bit_length() - 1))


class TeacherRunner:
    """A teacher on its device, with the shapes of what it gives."""

    def __init__(
        self,
        name: str,
        spec: str,
        teacher: Teacher,
        device: torch.device,
        *,
        autocast: str | None = None,
        rows_per_forward: int | None = None,
    ) -> None:
        self._teacher, self._device = teacher, device
        self._preprocessing: Preprocessing = teacher.preprocessing()
        self.licence: str | None = licence_of(teacher)
        """Of the weights, where it is known."""
        teacher.to(device)
        self._constants = _constants(self._preprocessing, device)
        self._autocast = autocast or ("bfloat16" if device.type == "cuda" else "float32")
        if self._autocast not in AUTOCASTS:
            raise UsageError(
                f"autocast={self._autocast!r} is not known; choose one of {', '.join(AUTOCASTS)}."
            )
        self.info = self._probe(
            name,
            spec,
            rows_per_forward or default_rows_per_forward(device.type, self._preprocessing.size),
        )

    @property
    def rendering(self) -> Rendering:
        return Rendering(self._preprocessing.size, self._preprocessing.interpolation)

    def run(
        self, pixels: UInt8[np.ndarray, "n h w 3"], rows_per_forward: int
    ) -> tuple[dict[str, NDArray[Any]], dict[int, str]]:
        """Arrays per kind (n, ...) in the stored dtypes, and why a row cannot be stored."""
        (found,) = run_together([self], pixels, rows_per_forward)
        return found

    def shares_forward(self, other: TeacherRunner) -> bool:
        """Whether ``run_together`` needs one forward pass for both."""
        shares = getattr(self._teacher, "shares_forward", None)
        same = (self._device, self._autocast) == (other._device, other._autocast)
        return same and shares is not None and bool(shares(other._teacher))

    def launch(self, features: Features, start: int) -> Batch:
        """Begin to copy what is stored of a batch that starts at row ``start``."""
        import torch

        stored = {}
        for kind, values in _kinds(features).items():
            if tuple(values.shape[1:]) != self.info.row_shape(kind):
                raise TeacherError(
                    f"teacher {self.info.name} gave {kind} of shape {tuple(values.shape[1:])}, its "
                    f"first images gave {self.info.row_shape(kind)}."
                )
            with torch.inference_mode():
                stored[kind] = to_host(storable(values, DTYPES[kind]))
        event = None
        if self._device.type == "cuda":
            event = torch.cuda.Event()
            event.record()
        return Batch(self.info.name, start, stored, event)

    def forward(self, pixels: UInt8[np.ndarray, "b h w 3"]) -> Features:
        """Features of rendered images, on the device and as the teacher gives them."""
        return self.forward_together([self], pixels)[0]

    def forward_together(
        self, runners: Sequence[TeacherRunner], pixels: UInt8[np.ndarray, "b h w 3"]
    ) -> list[Features]:
        """Features of each runner, from one forward pass where there are several."""
        import torch

        given = torch.from_numpy(pixels)
        if self._device.type == "cuda":
            given = given.pin_memory().to(self._device, non_blocking=True)
        else:
            given = given.to(self._device)
        mean, std = self._constants
        # Channels first while they are still bytes: on the strided view each step takes ten times
        # as long.
        images = given.permute(0, 3, 1, 2).contiguous().float()
        images = images.div_(255.0).sub_(mean).div_(std)
        mixed = self._autocast != "float32"
        with (
            torch.inference_mode(),
            torch.autocast(
                self._device.type,
                dtype=getattr(torch, self._autocast) if mixed else torch.bfloat16,
                enabled=mixed,
            ),
        ):
            if len(runners) == 1:
                return [self._teacher.features(images)]
            together: Any = self._teacher
            found: list[Features] = together.features_together(
                [runner._teacher for runner in runners], images
            )
            return found

    def _probe(self, name: str, spec: str, rows_per_forward: int) -> TeacherInfo:
        """Shapes from one forward pass over two grey images."""
        height, width = self._preprocessing.size
        grey = np.full((2, height, width, 3), 127, np.uint8)
        found = self.forward(grey)
        if found.patches.ndim != 4 or found.patches.shape[0] != 2:
            raise TeacherError(
                f"teacher {name} gave patches of shape {tuple(found.patches.shape)} for two "
                "images; wanted (2, h, w, c)."
            )
        kinds = _kinds(found)
        return TeacherInfo(
            name=name,
            spec=spec,
            grid=(int(found.patches.shape[1]), int(found.patches.shape[2])),
            widths={kind: int(values.shape[-1]) for kind, values in kinds.items()},
            num_registers=int(kinds["registers"].shape[1]) if "registers" in kinds else 0,
            rows_per_forward=rows_per_forward,
            identity={
                **self._teacher.identity(),
                "preprocessing": self._preprocessing.to_dict(),
                "autocast": self._autocast,
            },
        )


def run_together(
    runners: Sequence[TeacherRunner],
    pixels: UInt8[np.ndarray, "n h w 3"],
    rows_per_forward: int,
) -> list[tuple[dict[str, NDArray[Any]], dict[int, str]]]:
    """``run`` of each runner; all of them share the forward pass with the first.

    On CUDA a batch is copied to the host while the next one runs.
    """
    found = [
        (
            {
                kind: np.empty((len(pixels), *r.info.row_shape(kind)), DTYPES[kind])
                for kind in r.info.kinds
            },
            dict[int, str](),
        )
        for r in runners
    ]
    flying: list[Batch] = []
    for start in range(0, len(pixels), rows_per_forward):
        features = runners[0].forward_together(runners, pixels[start : start + rows_per_forward])
        launched = [r.launch(given, start) for r, given in zip(runners, features, strict=True)]
        for batch, (arrays, reasons) in zip(flying, found, strict=False):
            batch.land(arrays, reasons)
        flying = launched
    for batch, (arrays, reasons) in zip(flying, found, strict=False):
        batch.land(arrays, reasons)
    for arrays, reasons in found:
        for values in arrays.values():
            values[list(reasons)] = np.nan
    return found


def sharing(runners: Mapping[str, TeacherRunner]) -> list[list[str]]:
    """Names in groups that ``run_together`` can run, each in the order given.

    Teachers share a forward pass when they are layers of one model, and a batch size.
    """
    groups: list[list[str]] = []
    for name, runner in runners.items():
        for group in groups:
            first = runners[group[0]]
            same = first.info.rows_per_forward == runner.info.rows_per_forward
            if same and first.shares_forward(runner):
                group.append(name)
                break
        else:
            groups.append([name])
    return groups


def environment(device: torch.device | None) -> dict[str, str]:
    """Versions and device that the values may depend on."""
    packages = ("phistill", "numpy", "pillow", "torch", "timm", "open_clip_torch")
    found = {"python": platform.python_version(), "machine": platform.machine()}
    for package in packages if device is not None else packages[:3]:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "not installed"
    if device is not None:
        found["device"] = device.type
        if device.type == "cuda":
            import torch

            found["device"] = torch.cuda.get_device_name(device)
    return found


def _kinds(features: Features) -> Mapping[str, torch.Tensor]:
    found = {"patches": features.patches.flatten(1, 2)}
    if features.summary is not None:
        found["summary"] = features.summary
    if features.registers is not None:
        found["registers"] = features.registers
    return found


def _constants(given: Preprocessing, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean and std as (1, 3, 1, 1)."""
    import torch

    mean = torch.tensor(given.mean, device=device).view(1, 3, 1, 1)
    return mean, torch.tensor(given.std, device=device).view(1, 3, 1, 1)
