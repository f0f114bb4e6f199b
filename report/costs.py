"""What an extraction costs, worked out from what was measured: bytes, hours, the read rate a
trainer needs, and when the cache pays off against running the teachers in every epoch."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any

from phistill.display import table_text
from phistill.errors import counted
from phistill.stats.codes.precision import PrecisionRow

from .precision import precision_text
from .terminal import bytes_text, duration_text, licences_text


@dataclass(frozen=True, slots=True, kw_only=True)
class TeacherPlan:
    """What one teacher costs."""

    name: str
    spec: str
    grid: tuple[int, int]
    widths: dict[str, int]
    row_bytes: int
    total_bytes: int
    num_files: int
    """Of all its arrays; a file has about ``total_bytes / num_files``."""
    seconds_per_row: float
    hours: float
    licence: str | None
    precision: tuple[PrecisionRow, ...] = ()
    """What its patches lose at each precision, where that was measured."""
    bits_for_loss: float | None = None
    """Bits per channel and token that lose `precision.LOSS` at most; None where none do."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What an extraction costs, and when it pays off."""

    num_images: int
    num_rows: int
    """Images times views."""
    num_sample: int
    """Images that were decoded and run to measure the hours."""
    num_rejected: int
    """Of the sample."""
    image_bytes: float
    """Mean encoded bytes of the sample."""
    teachers: tuple[TeacherPlan, ...]
    pixel_row_bytes: int
    pixel_files: int
    shard_rows: int
    """Rows of the unit of commit."""
    total_bytes: int
    free_bytes: int | None
    """On the disk where the cache would lie; None when no place was named."""
    decode_seconds_per_row: float
    """On one core."""
    num_cores: int
    device: str
    epochs: float
    num_runs: int
    student_rows_per_s: float
    disk_bytes_per_s: float

    @property
    def row_bytes(self) -> int:
        """Stored bytes per row over teachers and pixels."""
        return self.pixel_row_bytes + sum(teacher.row_bytes for teacher in self.teachers)

    @property
    def teacher_seconds_per_row(self) -> float:
        return sum(teacher.seconds_per_row for teacher in self.teachers)

    @property
    def pass_seconds_per_row(self) -> float:
        """One pass with teachers. On the CPU they and the decoder share the cores; a GPU works
        while the cores decode, and the slower of the two decides."""
        decode = self.decode_seconds_per_row / self.num_cores
        if self.device == "cpu":
            return self.teacher_seconds_per_row + decode
        return max(self.teacher_seconds_per_row, decode)

    @property
    def num_shards(self) -> int:
        return math.ceil(self.num_rows / self.shard_rows)

    @property
    def num_files(self) -> int:
        """Of features and pixels; beside them there are a few hundred."""
        return self.pixel_files + sum(teacher.num_files for teacher in self.teachers)

    @property
    def shard_s(self) -> float:
        """Seconds of work in a shard, which a killed run does again."""
        return min(self.shard_rows, self.num_rows) * self.pass_seconds_per_row

    @property
    def extract_hours(self) -> float:
        return self.num_rows * self.pass_seconds_per_row / 3600

    @property
    def read_hours_per_epoch(self) -> float:
        """An epoch reads one view of every image."""
        return self.num_images * self.row_bytes / self.disk_bytes_per_s / 3600

    @property
    def live_hours_per_epoch(self) -> float:
        return self.num_images * self.pass_seconds_per_row / 3600

    @property
    def read_bytes_per_s(self) -> float:
        """What the trainer must read to keep a student of ``student_rows_per_s`` busy."""
        return self.student_rows_per_s * self.row_bytes

    @property
    def break_even_epochs(self) -> float:
        """Epochs, over all runs, from which on the cache is cheaper than live teachers:
        E live = extract + E read. Infinite when reading costs as much as the teachers do."""
        saved = self.live_hours_per_epoch - self.read_hours_per_epoch
        return self.extract_hours / saved if saved > 0 else math.inf

    def to_dict(self) -> dict[str, Any]:
        """As JSON values; break_even_epochs is None where the cache never pays off."""
        derived = (
            *("row_bytes", "extract_hours", "read_hours_per_epoch", "live_hours_per_epoch"),
            *("read_bytes_per_s", "break_even_epochs", "num_files", "num_shards", "shard_s"),
        )
        values = {**asdict(self), **{name: getattr(self, name) for name in derived}}
        never = math.isinf(self.break_even_epochs)
        return values | {"break_even_epochs": None} if never else values


def render(plan: Plan) -> str:
    """The plan as text for a terminal."""
    lines = [
        f"{counted(plan.num_images, 'image')}, {counted(plan.num_rows, 'row')}; measured on "
        f"{counted(plan.num_sample, 'image')} ({plan.num_rejected} rejected), "
        f"{bytes_text(plan.image_bytes)} each.",
        "",
        table_text(("", "grid", "per row", "in all", "files", "ms/row", "time"), _rows(plan)),
    ]
    lines += [
        "",
        f"Disk     {bytes_text(plan.total_bytes)}{_room(plan)}",
        f"Files    {plan.num_files:,}, in {counted(plan.num_shards, 'shard')} of "
        f"{counted(plan.shard_rows, 'row')}: what a killed run does again is at most "
        f"{duration_text(plan.shard_s)}.",
    ]
    bound = "teachers"
    decode = plan.decode_seconds_per_row / plan.num_cores
    if plan.device != "cpu" and decode > plan.teacher_seconds_per_row:
        bound = f"decoding ({plan.num_cores} cores; more would help)"
    lines += [
        f"Extract  {duration_text(plan.extract_hours * 3600)} on {plan.device}, most of it "
        f"{bound}; decoding takes {plan.decode_seconds_per_row * 1e3:.1f} ms per row and core.",
        f"Train    reads {bytes_text(plan.read_bytes_per_s)}/s to feed a student that learns "
        f"{plan.student_rows_per_s:,.0f} rows/s.",
        _pays_off(plan),
    ]
    for teacher in plan.teachers:
        if teacher.precision:
            text = precision_text(
                teacher.name,
                teacher.precision,
                teacher.bits_for_loss,
                num_rows=plan.num_rows,
                seconds_per_row=teacher.seconds_per_row,
            )
            lines += ["", text, ""]
    lines.append(licences_text({teacher.name: teacher.licence for teacher in plan.teachers}))
    return "\n".join(lines)


def _rows(plan: Plan) -> list[tuple[str, ...]]:
    """A line per teacher, and one for the pixels."""
    pixels = plan.pixel_row_bytes
    return [
        *(
            (
                *(teacher.name, f"{teacher.grid[0]} x {teacher.grid[1]}"),
                *(bytes_text(teacher.row_bytes), bytes_text(teacher.total_bytes)),
                f"{teacher.num_files:,}",
                *(f"{teacher.seconds_per_row * 1e3:.1f}", duration_text(teacher.hours * 3600)),
            )
            for teacher in plan.teachers
        ),
        (
            *("pixels", "", bytes_text(pixels), bytes_text(pixels * plan.num_rows)),
            *(f"{plan.pixel_files:,}", "", ""),
        ),
    ]


def _room(plan: Plan) -> str:
    if plan.free_bytes is None:
        return "."
    text = f"; {bytes_text(plan.free_bytes)} are free there."
    if plan.total_bytes > plan.free_bytes:
        text += " NOT ENOUGH: take fewer teachers, a smaller grid (grid=16x16), or another disk."
    return text


def _pays_off(plan: Plan) -> str:
    passes = plan.epochs * plan.num_runs
    live = plan.live_hours_per_epoch * passes * 3600
    cached = (plan.extract_hours + plan.read_hours_per_epoch * passes) * 3600
    assumed = f"reading at {bytes_text(plan.disk_bytes_per_s)}/s"
    if math.isinf(plan.break_even_epochs):
        return (
            f"Worth it never: {assumed}, the cache takes as long to read as the teachers take to "
            "run. Use a faster disk, a smaller grid, or no cache."
        )
    return (
        f"Worth it from {plan.break_even_epochs:.1f} epochs on, over all runs ({assumed}): for "
        f"{plan.num_runs} x {plan.epochs:g} epochs, live teachers take {duration_text(live)}, "
        f"the cache {duration_text(cached)}."
    )
