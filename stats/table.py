"""The statistics of a cache as plain text: a table, and a line for what deserves attention."""

from __future__ import annotations

from collections.abc import Sequence

from .description import STABLE, StatsRow
from .moments.squared_norms import TOP_FRACTION

_HEADERS = (
    "teacher",
    "kind",
    "width",
    "vectors",
    "channel mean",
    "channel std",
    "phi",
    "eff. rank",
    "rotation",
)
_LEFT = (0, 1, 8)  # columns of words; the others hold numbers


def render_table(rows: Sequence[StatsRow]) -> str:
    """Columns aligned for a terminal, one line per array, no trailing newline."""
    cells = [_HEADERS, *(_cells(row) for row in rows)]
    widths = [max(len(line[column]) for line in cells) for column in range(len(_HEADERS))]
    lines = []
    for line in cells:
        padded = [
            cell.ljust(width) if column in _LEFT else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(line, widths, strict=True))
        ]
        lines.append("  ".join(padded).rstrip())
    lines.insert(1, "  ".join("-" * width for width in widths))
    return "\n".join(lines)


def render_notes(rows: Sequence[StatsRow]) -> list[str]:
    """What the table has no room for: convergence, outlier tokens, dispersion; a line each."""
    return [note for row in rows for note in _notes(row)]


def _cells(row: StatsRow) -> tuple[str, ...]:
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


def _notes(row: StatsRow) -> list[str]:
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
    return notes
