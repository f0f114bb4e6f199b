"""Statistics and evaluations as text: tables, and a line for what deserves attention."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from phistill.errors import UsageError
from phistill.stats.coarse import CoarseArray
from phistill.stats.description import STABLE, Description
from phistill.stats.moments.squared_norms import TOP_FRACTION

from .terminal import table_text

if TYPE_CHECKING:
    from phistill.train import EvalRow

NORMAL_95 = 1.96
_STATISTICS = (
    *("teacher", "kind", "width", "vectors", "channel mean", "channel std"),
    *("phi", "eff. rank", "rotation"),
)


def statistics_table(rows: Sequence[Description]) -> str:
    """One line per array, no trailing newline."""
    return table_text(_STATISTICS, [_cells(row) for row in rows], words=(0, 1, 8))


def statistics_notes(rows: Sequence[Description]) -> list[str]:
    """What the table has no room for: convergence, outlier tokens, dispersion; a line each."""
    return [note for row in rows for note in _notes(row)]


def evaluation_table(lines: Sequence[EvalRow]) -> str:
    """A line per student, teacher and kind; a first column names the cache where there are several.

    UsageError where there is no line.
    """
    if not lines:
        raise UsageError("there is nothing to show.")
    several = any(line.cache for line in lines)
    header = ["student", "teacher", "kind", "rows", "mse", "unexplained", "cosine"]
    rows = [
        [
            *(line.student, line.teacher, line.kind, str(line.num_rows)),
            "-" if line.mse is None else f"{line.mse:.4g}",
            _share(line),
            f"{line.cosine:.3f}",
        ]
        for line in lines
    ]
    if several:
        header = ["cache", *header]
        rows = [[line.cache, *row] for line, row in zip(lines, rows, strict=True)]
    table = table_text(header, rows, words=range(3 + several))
    intervals = any(line.unexplained_error is not None for line in lines)
    return f"{table}\n± is the 95 % confidence interval, over images." if intervals else table


def _share(line: EvalRow) -> str:
    if line.unexplained is None:
        return "-"
    error = line.unexplained_error
    return f"{line.unexplained:.3f}" + ("" if error is None else f" ± {NORMAL_95 * error:.3f}")


def _cells(row: Description) -> tuple[str, ...]:
    return (
        row.teacher,
        row.kind,
        str(row.width),
        f"{row.num_vectors:,}",
        f"{row.mean_min:.3g} .. {row.mean_max:.3g}",
        f"{row.std_min:.3g} .. {row.std_max:.3g}",
        f"{row.phi:.4g}",
        f"{row.effective_rank:.1f}",
        row.rotation,
    )


def _notes(row: Description) -> list[str]:
    name, notes = f"{row.teacher} {row.kind}", []
    if row.convergence:
        last = row.convergence[-1]
        moved = (
            f"{name}: from {last.num_rows:,} to {row.num_rows:,} rows the mean moved by "
            f"{last.mean_shift:.2%} of the spread, phi by {last.phi_change:.2%}, "
            f"the leading axes by {last.axes_shift:.2%}"
        )
        stable = row.stable_after
        state = f"stable to {STABLE:.1%} after {stable:,} rows" if stable else "not yet stable"
        notes.append(f"{moved}; {state}.")
    if row.num_vectors <= row.width:
        notes.append(
            f"{name}: warning: {row.num_vectors:,} vectors span fewer directions than its "
            f"{row.width:,} channels, and in the others nothing is known; take more images."
        )
    if row.dispersion is not None:
        notes.append(f"{name}: angular dispersion {row.dispersion:.3f}.")
    if row.has_outliers:
        notes.append(
            f"{name}: warning: the top {TOP_FRACTION:.1%} of tokens hold "
            f"{row.outlier_share:.0%} of the variance and set phi and the leading axes."
        )
    if row.coarse is not None:
        notes.append(str(CoarseArray(row.teacher, row.kind, row.width, row.coarse)))
    return notes
