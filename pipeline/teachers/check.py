"""Whether a teacher does what its contract says, on two images: what it gives, how fast."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from phistill.cache.format.info import DTYPES
from phistill.compute.devices import choose_device, synchronize

from .contract import Features, Preprocessing, Teacher
from .runner import TeacherRunner
from .spec import TeacherSpec
from .to_host import Rounded

if TYPE_CHECKING:
    import torch

NUM_IMAGES = 2
PERMISSIVE = ("apache-2.0", "bsd-2-clause", "bsd-3-clause", "cc-by-4.0", "mit")


@dataclass(frozen=True, slots=True)
class KindReport:
    """One array that a teacher gives, over the two images."""

    kind: str
    row_shape: tuple[int, ...]
    """patches (h * w, c), summary (d,), registers (g, c)."""
    dtype: str
    """As the teacher computes it; float16 (summary: float32) is stored."""
    row_bytes: int
    num_nonfinite: int
    largest: float
    """Largest absolute value."""
    num_overflows: int
    """Images whose largest value float16 does not hold."""
    std: float
    num_same_rows: int
    """0, or 2 when both images gave the same values: the teacher does not look at them."""


@dataclass(frozen=True, slots=True)
class CheckReport:
    """What a teacher is, and what is wrong with it."""

    teacher: str
    name: str
    input: Preprocessing
    grid: tuple[int, int]
    kinds: tuple[KindReport, ...]
    licence: str | None
    identity: dict[str, Any]
    device: str
    seconds_per_image: float
    """Of the second of two passes over both images."""
    problems: tuple[str, ...]
    """Each with what to do; empty when the teacher can be used."""
    notes: tuple[str, ...] = ()
    """Worth knowing, but no obstacle."""

    @property
    def row_bytes(self) -> int:
        """Stored bytes per image over all kinds."""
        return sum(kind.row_bytes for kind in self.kinds)

    def to_dict(self) -> dict[str, Any]:
        return {**asdict(self), "input": self.input.to_dict(), "row_bytes": self.row_bytes}


def check_teacher(spec: str, device: str = "auto", *, autocast: str | None = None) -> CheckReport:
    """Build ``[NAME=]SOURCE:MODEL[?options]`` and run it twice on two images.

    Raises UsageError or TeacherError when it cannot be built or gives no patches at all; whatever
    else is wrong is in ``problems``.
    """
    parsed = TeacherSpec.parse(spec)
    teacher = parsed.build()
    target = choose_device(device)
    runner = TeacherRunner(parsed.name, parsed.text, teacher, target, autocast=autocast)
    pixels = two_images(runner.rendering.size)
    first = runner.forward(pixels)
    synchronize(target)
    started = time.perf_counter()
    second = runner.forward(pixels)
    synchronize(target)
    seconds = (time.perf_counter() - started) / NUM_IMAGES
    kinds = tuple(_kind_report(kind, values) for kind, values in second.by_kind().items())
    return CheckReport(
        teacher=parsed.text,
        name=parsed.name,
        input=teacher.preprocessing(),
        grid=runner.info.grid,
        kinds=kinds,
        licence=teacher.licence,
        identity=dict(runner.info.identity),
        device=str(target),
        seconds_per_image=seconds,
        problems=(*_problems(kinds), *_contract(teacher, runner, first, second, pixels)),
        notes=(*teacher.notes, *_notes(kinds, teacher.licence), *_edges(runner), *_windows(runner)),
    )


def two_images(size: tuple[int, int]) -> np.ndarray[Any, np.dtype[np.uint8]]:
    """Two unlike images as uint8 (2, h, w, 3): smooth colours, and the same with noise, turned."""
    height, width = size
    rows, columns = np.linspace(0, 1, height)[:, None], np.linspace(0, 1, width)[None]
    waves = [np.sin(7 * rows + 3 * columns), np.cos(5 * columns) * rows, rows * columns]
    smooth = np.stack([128 + 100 * np.broadcast_to(wave, size) for wave in waves], -1)
    noise = np.random.default_rng(0).normal(0, 40, smooth.shape)
    both = np.stack([smooth, smooth[::-1] + noise])
    return np.clip(both, 0, 255).astype(np.uint8)


def _kind_report(kind: str, values: torch.Tensor) -> KindReport:
    import torch

    host = values.detach().float().cpu()
    rounded = Rounded.of(host, DTYPES[kind])
    finite = host[torch.isfinite(host)]
    return KindReport(
        kind=kind,
        row_shape=tuple(host.shape[1:]),
        dtype=str(values.dtype).removeprefix("torch."),
        row_bytes=host[0].numel() * DTYPES[kind].itemsize,
        num_nonfinite=int((~torch.isfinite(host)).sum()),
        largest=float(finite.abs().max()) if finite.numel() else float("nan"),
        num_overflows=int((~rounded.survives & torch.isfinite(rounded.largest)).sum()),
        std=float(finite.std()) if finite.numel() > 1 else float("nan"),
        num_same_rows=2 if torch.equal(host[0], host[1]) else 0,
    )


def _problems(kinds: tuple[KindReport, ...]) -> list[str]:
    problems = []
    for kind in kinds:
        if kind.num_nonfinite:
            problems.append(
                f"{kind.kind}: {kind.num_nonfinite} values are NaN or infinite; such images are "
                "rejected. Try autocast=float32."
            )
        if kind.num_overflows:
            problems.append(
                f"{kind.kind}: the largest value is {kind.largest:.6g}, more than float16 holds "
                "(65,504); such images are rejected. Take an earlier layer, or the one after the "
                "norm."
            )
        if kind.num_same_rows:
            problems.append(
                f"{kind.kind}: two different images give the same values. Check that the images "
                "reach the model."
            )
    return problems


def _contract(
    teacher: Teacher,
    runner: TeacherRunner,
    first: Features,
    second: Features,
    pixels: np.ndarray[Any, np.dtype[np.uint8]],
) -> list[str]:
    import json

    import torch

    problems = []
    again = second.by_kind()
    different = [kind for kind, one in first.by_kind().items() if not torch.equal(one, again[kind])]
    if different:
        problems.append(
            f"two passes over the same images differ in {', '.join(different)}: the teacher is not "
            "deterministic, so a resumed cache would not be the same. Call eval() on the model, "
            "and draw nothing at random in features()."
        )
    try:
        json.dumps(dict(teacher.identity()), allow_nan=False)
    except (TypeError, ValueError) as error:
        problems.append(
            f"identity() is not JSON: {error}. Return strings, numbers, lists and dicts."
        )
    if dict(teacher.identity()) != dict(teacher.identity()):
        problems.append("identity() differs from call to call; leave out times and addresses.")
    if _fails(lambda: runner.forward(pixels[:1])):
        problems.append(
            "one image alone fails, where two work; the last batch may be of one image."
        )
    return problems


def _fails(action: Callable[[], object]) -> bool:
    try:
        action()
    except Exception:  # a user's model may raise anything
        return True
    return False


def _notes(kinds: tuple[KindReport, ...], licence: str | None) -> tuple[str, ...]:
    notes = []
    if "summary" not in {kind.kind for kind in kinds}:
        notes.append("no summary: the student gets no summary head for this teacher.")
    if licence is None:
        notes.append("the licence is not known here; look at the model's card before you publish.")
    elif licence not in PERMISSIVE:
        notes.append(
            f"the licence {licence} has conditions of its own, which may extend to a student "
            "distilled from this teacher; read it before you publish."
        )
    return tuple(notes)


def _edges(runner: TeacherRunner) -> Iterator[str]:
    size, grid = runner.rendering.size, runner.info.grid
    if runner.unseen:
        yield (
            f"the {' and '.join(runner.unseen)} of an image change nothing: {size[0]} x {size[1]} "
            f"pixels are no multiple of what the grid {grid[0]} x {grid[1]} looks at."
        )
    elif any(pixels % cells for pixels, cells in zip(size, grid, strict=True)):
        yield (
            f"{size[0]} x {size[1]} pixels are no multiple of the grid {grid[0]} x {grid[1]}: its "
            "last cells may show padding."
        )


def _windows(runner: TeacherRunner) -> Iterator[str]:
    if runner.padded_windows:
        yield (
            f"windows of its attention do not divide its maps, which are padded for them: "
            f"{runner.padded_windows}. Tokens at the lower and right edge look at padding; a "
            "model that was not trained so does better at the size it was trained at."
        )


def render(report: CheckReport) -> str:
    """The report as text for a terminal."""
    size, preprocessing = report.input.size, report.input
    lines = [
        f"{report.name} = {report.teacher}",
        f"  input      {size[0]} x {size[1]}, {preprocessing.interpolation}, mean "
        f"{_numbers(preprocessing.mean)}, std {_numbers(preprocessing.std)}",
        f"  grid       {report.grid[0]} x {report.grid[1]}",
    ]
    for kind in report.kinds:
        shape = " x ".join(str(number) for number in kind.row_shape)
        lines.append(
            f"  {kind.kind:<10} {shape} {kind.dtype}, std {kind.std:.3g}, largest "
            f"{kind.largest:.3g}, {kind.row_bytes:,} bytes"
        )
    lines += [
        f"  per image  {report.row_bytes:,} bytes, {report.seconds_per_image * 1000:.1f} ms on "
        f"{report.device}",
        f"  licence    {report.licence or 'not known'}",
        *(f"  note: {note}" for note in report.notes),
        *(f"  PROBLEM: {problem}" for problem in report.problems),
        "  Ready to be used." if not report.problems else "  Not ready.",
    ]
    return "\n".join(lines)


def _numbers(values: tuple[float, ...]) -> str:
    return " ".join(f"{value:g}" for value in values)
