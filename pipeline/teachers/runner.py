"""Running a teacher over rendered rows: its device, its batches, its first images."""

from __future__ import annotations

import platform
from collections.abc import Callable, Iterable, Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import UInt8
from numpy.typing import NDArray

from phistill.cache import TeacherInfo
from phistill.compute.copies import Sent, ToDevice
from phistill.compute.devices import hardware_name
from phistill.compute.precision import FLOAT32_PRODUCTS, products_in, resolve_autocast
from phistill.errors import PhistillError, TeacherError

from ..decode.views import Rendering
from .contract import Features, Preprocessing, Teacher
from .to_host import BatchToHost, StoredRows

if TYPE_CHECKING:
    import torch

ROWS_AT_256 = {"cpu": 32, "cuda": 128, "mps": 64}
"""Rows in one forward pass of a teacher whose input is 256 x 256 pixels."""


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
        compiled: bool = False,
        channels_last: bool = False,
    ) -> None:
        self._teacher, self._device = teacher, device
        self._channels_last, self._compiled = channels_last, False
        self._calls: dict[tuple[str, ...], Callable[[torch.Tensor], list[Features]]] = {}
        self._preprocessing: Preprocessing = teacher.preprocessing()
        teacher.let_text_go()
        teacher.to(device)
        self._copies = ToDevice(device)
        self._constants = _constants(self._preprocessing, device)
        self._autocast = resolve_autocast(autocast, device)
        self.unseen: tuple[str, ...] = ()
        """Parts of its input that change nothing: a size that the patches do not divide."""
        self.padded_windows = ""
        """Maps whose windows are filled up with padding, from and to; empty where none is."""
        self.info = self._probe(
            name,
            spec,
            rows_per_forward or default_rows_per_forward(device.type, self._preprocessing.size),
        )
        self._compiled = compiled  # not for the images of the probe

    @property
    def device(self) -> torch.device:
        return self._device

    @property
    def rendering(self) -> Rendering:
        return Rendering(self._preprocessing.size, self._preprocessing.interpolation)

    def run(
        self, pixels: UInt8[np.ndarray, "n h w 3"], rows_per_forward: int
    ) -> tuple[dict[str, NDArray[Any]], dict[int, str]]:
        """Arrays per kind (n, ...) in the stored dtypes, and why a row cannot be stored."""
        (stored,) = run_together([self], pixels, rows_per_forward)
        return stored

    def shares_forward(self, other: TeacherRunner) -> bool:
        """Whether ``run_together`` needs one forward pass for both."""
        same = (self._device, self._autocast) == (other._device, other._autocast)
        return same and self._teacher.shares_forward(other._teacher)

    def prepare(self, pixels: UInt8[np.ndarray, "b h w 3"]) -> Sent:
        """The teacher's input, as far as the host makes it; another thread may call this while
        the teacher runs. On the CPU what the teacher takes, elsewhere bytes on their way there."""
        import torch

        rendered = torch.from_numpy(pixels)
        if self._device.type == "cpu":
            rendered = self._normalised(rendered)
        return self._copies.send([rendered])

    def forward(self, pixels: UInt8[np.ndarray, "b h w 3"]) -> Features:
        """Features of rendered images, on the device and as the teacher gives them."""
        return self.forward_together([self], self.prepare(pixels))[0]

    def forward_together(self, runners: Sequence[TeacherRunner], prepared: Sent) -> list[Features]:
        """Features of each runner, from one forward pass where there are several."""
        import torch

        with torch.inference_mode(), products_in(self._autocast, self._device.type):
            (images,) = prepared.take()
            if self._device.type != "cpu":
                images = self._normalised(images)
            return self._call(runners)(images)

    def _call(self, runners: Sequence[TeacherRunner]) -> Callable[[torch.Tensor], list[Features]]:
        """From images to the features of each runner; compiled once where that is asked for."""
        import torch

        teachers = [runner._teacher for runner in runners]

        def features(images: torch.Tensor) -> list[Features]:
            if len(teachers) == 1:
                return [teachers[0].features(images)]
            return teachers[0].features_together(teachers, images)

        if not self._compiled:
            return features
        names = tuple(runner.info.name for runner in runners)
        if names not in self._calls:
            self._calls[names] = _or_say_why(torch.compile(features, dynamic=False), names)
        return self._calls[names]

    def _normalised(self, pixels: UInt8[torch.Tensor, "b h w 3"]) -> torch.Tensor:
        import torch

        mean, std = self._constants
        # Channels first while they are still bytes: on the strided view each step takes ten times
        # as long.
        images = pixels.permute(0, 3, 1, 2).contiguous().float()
        images = images.div_(255.0).sub_(mean).div_(std)
        return images.to(memory_format=torch.channels_last) if self._channels_last else images

    def _probe(self, name: str, spec: str, rows_per_forward: int) -> TeacherInfo:
        """Shapes from one forward pass over three grey images: two have a white edge."""
        from .models.window_padding import WindowPadding  # loads torch

        height, width = self._preprocessing.size
        grey = np.full((3, height, width, 3), 127, np.uint8)
        grey[1, -1], grey[2, :, -1] = 255, 255
        padding = WindowPadding()
        try:
            with padding:
                features = self.forward(grey)
        except PhistillError:
            raise
        except Exception as error:  # a library, or a user's own code, may raise anything
            first = (str(error).strip().splitlines() or [""])[0]
            raise TeacherError(
                f"teacher {name} cannot take images of {height} x {width} pixels: "
                f"{type(error).__name__}: {first[:300]}"
            ) from error
        if features.patches.ndim != 4 or features.patches.shape[0] != 3:
            raise TeacherError(
                f"teacher {name} gave patches of shape {tuple(features.patches.shape)} for three "
                "images; wanted (3, h, w, c)."
            )
        self.padded_windows = padding.text()
        kinds = features.by_kind()
        edges = {1: "lowest rows", 2: "rightmost columns"}
        self.unseen = tuple(
            edge for number, edge in edges.items() if _equal(kinds.values(), 0, number)
        )
        return TeacherInfo(
            name=name,
            spec=spec,
            licence=self._teacher.licence or "",
            grid=(int(features.patches.shape[1]), int(features.patches.shape[2])),
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
    rows = StoredRows([runner.info for runner in runners], len(pixels))
    flying: list[BatchToHost] = []
    for start in range(0, len(pixels), rows_per_forward):
        prepared = runners[0].prepare(pixels[start : start + rows_per_forward])
        launched = launch_together(runners, prepared, start)
        if flying:
            rows.land(flying)
        flying = launched
    if flying:
        rows.land(flying)
    return [rows.result(number) for number in range(len(runners))]


def launch_together(
    runners: Sequence[TeacherRunner], prepared: Sent, start: int
) -> list[BatchToHost]:
    """Run a batch that starts at row ``start`` and begin to copy what each runner gives.

    TeacherError when the features have another shape than at first.
    """
    batches = []
    for runner, features in zip(
        runners, runners[0].forward_together(runners, prepared), strict=True
    ):
        values = features.by_kind()
        for kind, value in values.items():
            if tuple(value.shape[1:]) != runner.info.row_shape(kind):
                raise TeacherError(
                    f"teacher {runner.info.name} gave {kind} of shape {tuple(value.shape[1:])}, "
                    f"its first images gave {runner.info.row_shape(kind)}."
                )
        batches.append(BatchToHost(runner.info.name, start, values))
    return batches


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


def environment(
    device: torch.device | None, *, compiled: bool = False, channels_last: bool = False
) -> dict[str, str]:
    """Versions, device and kernels that the values may depend on in their last bits."""
    packages = (
        *("phistill", "numpy", "pillow", "torch"),
        *("torchvision", "timm", "open_clip_torch", "transformers"),
    )
    facts = {"python": platform.python_version(), "machine": platform.machine()}
    for package in packages if device is not None else packages[:3]:
        try:
            facts[package] = version(package)
        except PackageNotFoundError:
            facts[package] = "not installed"
    if device is not None:
        facts["device"] = hardware_name(device)
        if device.type == "cuda":
            facts["float32_products"] = FLOAT32_PRODUCTS
    if compiled:
        facts["compiled"] = "torch.compile"
    if channels_last:
        facts["memory_format"] = "channels_last"
    return facts


def _or_say_why(
    compiled: Callable[[torch.Tensor], list[Features]], names: tuple[str, ...]
) -> Callable[[torch.Tensor], list[Features]]:
    """The same function; TeacherError where torch.compile cannot do it, for want of a compiler
    perhaps."""
    from torch._dynamo.exc import TorchDynamoException

    def call(images: torch.Tensor) -> list[Features]:
        try:
            return compiled(images)
        except TorchDynamoException as error:
            first = (str(error).strip().splitlines() or [type(error).__name__])[0]
            raise TeacherError(
                f"teacher {', '.join(names)} cannot be compiled: {first[:300]} Leave out --compile."
            ) from error

    return call


def _equal(kinds: Iterable[torch.Tensor], one: int, other: int) -> bool:
    import torch

    return all(torch.equal(values[one], values[other]) for values in kinds)


def _constants(
    preprocessing: Preprocessing, device: torch.device
) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean and std as (1, 3, 1, 1)."""
    import torch

    mean = torch.tensor(preprocessing.mean, device=device).view(1, 3, 1, 1)
    return mean, torch.tensor(preprocessing.std, device=device).view(1, 3, 1, 1)
