"""Statistics and evaluations as text: tables, and a line for what deserves attention."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from phistill.display import Table, table_text
from phistill.errors import UsageError
from phistill.stats.coarse import CoarseArray
from phistill.stats.description import STABLE, WITHIN, Description
from phistill.stats.moments.squared_norms import TOP_FRACTION

if TYPE_CHECKING:
    from phistill.train import EvalRow, TaskScore, Verdict

INTERVAL = "95 % interval"


def statistics_table(rows: Sequence[Description]) -> str:
    """One line per array, no trailing newline."""
    return repr(Table(rows))


def statistics_notes(rows: Sequence[Description]) -> list[str]:
    """What the table has no room for: convergence, outlier tokens, dispersion; a line each."""
    return [note for row in rows for note in _notes(row)]


def statistics_text(rows: Sequence[Description]) -> str:
    """The table and the notes."""
    return "\n".join([statistics_table(rows), *statistics_notes(rows)])


def evaluation_table(lines: Sequence[EvalRow]) -> str:
    """A line per student, teacher and kind; a first column names the cache where there are several.

    UsageError where there is no line.
    """
    if not lines:
        raise UsageError("there is nothing to show.")
    return f"{Table(lines)!r}\n{ERROR_WORDS}"


ERROR_WORDS = (
    "error: squared error over that of the constant (the training mean); of summaries learnt by "
    "direction,\n1 - cosine over the constant's. 0 is the teacher itself, 1 the constant. "
    "Intervals are over images."
)


NO_LABELS = (
    "No kNN and no probe: they want labels (extract --labels, into a new cache) of at least two "
    "classes,\non training images that are not judged themselves."
)


def verdict_text(found: Verdict) -> str:
    """Everything that an evaluation found, for a terminal."""
    parts = [evaluation_table(found.lines)]
    if coded := sorted({line.column for line in found.lines if line.of_codes}):
        parts.append(
            f"Measured against decoded codes: {', '.join(coded)}. Errors hold their noise too, the "
            "same for every student. For the features give a cache that has them: --against CACHE."
        )
    parts += ["", "How alike to the teacher"]
    rows = [
        [
            *(one.student, one.teacher, f"{one.cka.value:.3f}", one.cka.between()),
            *(f"{one.overlap.value:.3f}", one.overlap.between()),
        ]
        for one in found.likeness
    ]
    header = ["features", "teacher", "CKA", INTERVAL, "shared neighbours", INTERVAL]
    parts.append(table_text(header, rows, words=(0, 1)))
    names = list(found.matrix)
    cells = [[a, *(f"{found.matrix[a][b]:.2f}" for b in names)] for a in names]
    parts += ["", "CKA between teachers and backbones", table_text(["", *names], cells)]
    ranks = [[name, f"{one.value:.1f}", one.between(1)] for name, one in found.ranks.items()]
    parts += ["", "Directions in use", table_text(["features", "RankMe", INTERVAL], ranks)]
    if found.tasks:
        parts += ["", "What the features are good for", tasks_table(found.tasks)]
    if not any(one.task == "kNN" for one in found.tasks):
        parts += ["", NO_LABELS]
    return "\n".join(parts)


def tasks_table(scores: Sequence[TaskScore]) -> str:
    """A line per kind of features, a column per task."""
    from phistill.train.evaluation.tasks import in_order

    of_task = {one.task: one for one in reversed(scores)}
    tasks = list(dict.fromkeys(one.task for one in scores))
    found = {(one.features, one.task): one for one in scores}
    header = ["features", *tasks]
    rows = [
        [name, *(_task_cell(found.get((name, task))) for task in tasks)]
        for name in in_order([one.features for one in scores])
    ]
    said = [
        f"{one.task}: {one.score.num_images:,} images"
        + (f", {one.num_classes:,} classes" if one.num_classes else "")
        for one in map(of_task.__getitem__, tasks)
    ]
    text = table_text(header, rows, words=range(len(header)))
    return f"{text}\nHigher is better; 95 % intervals are over images. {'; '.join(said)}."


def _task_cell(one: TaskScore | None) -> str:
    if one is None:
        return ""
    between = "" if one.score.low is None else f" {one.score.between()}"
    return f"{one.score.value:.3f}{between}"


def _settled(row: Description) -> str:
    """How far the statistics still move, and how many images they want."""
    if row.convergence:
        last = row.convergence[-1]
        moved = (
            f"from {last.num_rows:,} to {row.num_rows:,} rows the mean moved by "
            f"{last.mean_shift:.2%} of the spread, phi by {last.phi_change:.2%}, "
            f"the leading axes by {last.axes_shift:.2%}"
        )
        stable = row.stable_after
        state = f"stable to {STABLE:.1%} after {stable:,} rows" if stable else "not yet stable"
        moved = f"{moved}; {state}"
    else:
        moved = f"{row.num_rows:,} rows are too few to see how far the statistics still move"
    wanted = row.num_rows_wanted
    more = f", {wanted - row.num_rows:,} more" if wanted > row.num_rows else ": there are enough"
    return f"{moved}; mean and phi within {WITHIN:.0%} want about {wanted:,} rows{more}."


def _notes(row: Description) -> list[str]:
    name = f"{row.teacher} {row.kind}"
    notes = [f"{name}: {_settled(row)}"]
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
