"""Running a teacher over rendered rows: batches, device, float16, and what cannot be stored."""

from __future__ import annotations

import platform
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import UInt8
from numpy.typing import NDArray

from ..cache import TeacherInfo
from ..cache.errors import TeacherError, UsageError
from ..cache.info import DTYPES
from .adjust import licence_of
from .contract import Features, Preprocessing, Teacher
from .views import Rendering

if TYPE_CHECKING:
    import torch

AUTOCASTS = ("float32", "bfloat16", "float16")
DEFAULT_ROWS_PER_FORWARD = {"cpu": 32, "cuda": 128, "mps": 64}


def choose_device(name: str) -> torch.device:
    """``auto`` is CUDA, then Apple's GPU, then the CPU; UsageError when the named one is absent."""
    import torch

    if name == "auto":
        if torch.cuda.is_available():
            return torch.device("cuda")
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise UsageError(
            f"device {name!r} is not known; write auto, cpu, cuda or cuda:1."
        ) from error
    if device.type == "cuda" and not torch.cuda.is_available():
        raise UsageError(f"device {name!r} was asked for, but torch sees no CUDA device here.")
    return device


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
        self._autocast = autocast or ("bfloat16" if device.type == "cuda" else "float32")
        if self._autocast not in AUTOCASTS:
            raise UsageError(
                f"autocast={self._autocast!r} is not known; choose one of {', '.join(AUTOCASTS)}."
            )
        self.info = self._probe(
            name, spec, rows_per_forward or DEFAULT_ROWS_PER_FORWARD.get(device.type, 32)
        )

    @property
    def rendering(self) -> Rendering:
        return Rendering(self._preprocessing.size, self._preprocessing.interpolation)

    def run(
        self, pixels: UInt8[np.ndarray, "n h w 3"], rows_per_forward: int
    ) -> tuple[dict[str, NDArray[Any]], dict[int, str]]:
        """Arrays per kind (n, ...) in the stored dtypes, and why a row cannot be stored."""
        arrays = {
            kind: np.empty((len(pixels), *self.info.row_shape(kind)), DTYPES[kind])
            for kind in self.info.kinds
        }
        reasons: dict[int, str] = {}
        for start in range(0, len(pixels), rows_per_forward):
            stop = min(start + rows_per_forward, len(pixels))
            for kind, tensor in _kinds(self.forward(pixels[start:stop])).items():
                values = tensor.float().cpu().numpy()
                stored, why = _storable(values, DTYPES[kind], f"{self.info.name}/{kind}")
                if stored.shape[1:] != arrays[kind].shape[1:]:
                    raise TeacherError(
                        f"teacher {self.info.name} gave {kind} of shape {stored.shape[1:]}, its "
                        f"first images gave {arrays[kind].shape[1:]}."
                    )
                arrays[kind][start:stop] = stored
                for row, reason in why.items():
                    reasons.setdefault(start + row, reason)
        for values in arrays.values():
            values[list(reasons)] = np.nan
        return arrays, reasons

    def forward(self, pixels: UInt8[np.ndarray, "b h w 3"]) -> Features:
        """Features of rendered images, on the device and as the teacher gives them."""
        import torch

        mean = torch.tensor(self._preprocessing.mean, device=self._device).view(1, 3, 1, 1)
        std = torch.tensor(self._preprocessing.std, device=self._device).view(1, 3, 1, 1)
        images = torch.from_numpy(pixels).to(self._device).permute(0, 3, 1, 2).float() / 255.0
        images = ((images - mean) / std).contiguous()
        mixed = self._autocast != "float32"
        with (
            torch.inference_mode(),
            torch.autocast(
                self._device.type,
                dtype=getattr(torch, self._autocast) if mixed else torch.bfloat16,
                enabled=mixed,
            ),
        ):
            return self._teacher.features(images)

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


def _storable(
    values: NDArray[np.float32], dtype: np.dtype[Any], what: str
) -> tuple[NDArray[Any], dict[int, str]]:
    """Values in the stored dtype, and for each row that does not survive it, why."""
    with np.errstate(over="ignore", invalid="ignore"):
        stored = values.astype(dtype)
    axes = tuple(range(1, values.ndim))
    bad = np.flatnonzero(~np.isfinite(stored).all(axis=axes))
    reasons = {}
    for row in bad.tolist():
        finite = np.isfinite(values[row]).all()
        largest = np.abs(values[row]).max() if finite else np.nan
        why = f"exceeds {dtype} (largest {largest:.6g})" if finite else "holds NaN or infinity"
        reasons[row] = f"{what} {why}"
    return stored, reasons
