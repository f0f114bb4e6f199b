"""report: one HTML file a person can read on a phone, on paper or years later.

Everything shown is computed here from the cache and the runs; the template holds words alone.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from phistill import __version__
from phistill import cache as store
from phistill.cache import Cache
from phistill.cache.storage import publish
from phistill.errors import UsageError
from phistill.train import EvalRow

from ..extras import require_libraries
from ..tables import statistics_notes
from ..terminal import bytes_text
from . import figures
from .answers import answers, runs_text
from .bars import error_groups, share_bars
from .canvas import NUM_SERIES, run_dash
from .contrasts import contrasts
from .gather import CacheFacts, gather_cache
from .maps import TeacherMaps, gather_maps, worst_rows
from .settings import Setting, ranked, settings_of
from .students import RELATIVE, Diverged, diverged_below, gather_runs, runs_below
from .tables import contrast_lines, eval_lines, numeric_columns, setting_lines, trained
from .wording import explained, finding_text, made_with_text, number_text, percent_text

if TYPE_CHECKING:
    from jinja2 import Environment

FILE = "report.html"
TEMPLATE = "page.html.jinja"
DEFAULT_NORMALIZERS = ("none", "global", "standardize", "phi-s", "hca")
MAX_MAPPED = 4
ReportProgress = Callable[[int, int, str], None]
"""Called with the parts done, the parts there are, and what is being worked on."""


class ExtraTable(NamedTuple):
    """A table the caller brings; cells are text or numbers. A plain tuple of the four will do."""

    title: str
    header: Sequence[str]
    rows: Sequence[Sequence[object]]
    note: str = ""


def report(
    cache: Cache | Path | str,
    runs: Sequence[Path | str],
    out: Path | str,
    *,
    normalizers: Sequence[str] = DEFAULT_NORMALIZERS,
    num_images: int = 6,
    max_heldout_rows: int = 512,
    evaluations: Mapping[Path, Sequence[EvalRow]] | None = None,
    extra_tables: Sequence[ExtraTable | tuple[Any, ...]] = (),
    title: str = "",
    device: str = "auto",
    progress: ReportProgress | None = None,
) -> Path:
    """Write the report of a cache and any number of runs (none will do) and return its path. A
    sweep's folder stands for its runs.

    ``out`` is the file, or a folder that gets a report.html. ``normalizers`` are compared with raw
    features and PHI-S; channel variances are measured on ``max_heldout_rows`` held-out rows and
    ``num_images`` of them are drawn. ``evaluations`` holds what ``evaluate`` already returned, by
    run; the others are evaluated. Raises UsageError when the extra ``report`` is not installed and
    for names that do not exist, MissingMoments before fit-stats, RunMismatch for a run of other
    teachers.
    """
    require_libraries()
    if num_images < 0 or max_heldout_rows < 0:
        raise UsageError(
            f"num_images={num_images} and max_heldout_rows={max_heldout_rows} must not be negative."
        )
    opened = cache if isinstance(cache, Cache) else store.open(cache)
    paths = [path for run in runs for path in runs_below(Path(run))]
    done, total = 0, len(opened.teachers) + len(paths) + 1

    def note(text: str) -> None:
        nonlocal done
        if progress is not None:
            progress(done, total, text)
        done += 1

    heldout = opened.rows(split="heldout")
    runs_found = gather_runs(
        opened,
        paths,
        evaluations={Path(path): rows for path, rows in (evaluations or {}).items()},
        can_evaluate=heldout.size > 0,
        device=device,
        note=note,
    )
    settings = settings_of(runs_found)
    learnt = {one.runs[0].student.config.normalizer for one in settings}
    facts = gather_cache(
        opened, methods=[*normalizers, *learnt], max_heldout_rows=max_heldout_rows, note=note
    )
    note("drawing")
    page = render(
        facts,
        settings,
        gather_maps(opened, facts.patches, drawn_in_maps(settings), heldout[:num_images]),
        _worst_maps(opened, facts, settings, num_images),
        extra_tables=[ExtraTable(*table) for table in extra_tables],
        diverged=[name for run in runs for name in diverged_below(Path(run))],
        title=title or f"phistill report: {opened.files.name}",
    )
    target = Path(out)
    target = target / FILE if target.is_dir() else target
    publish.publish_bytes(target, page.encode())
    if progress is not None:
        progress(total, total, str(target))
    return target


def drawn_in_maps(settings: Sequence[Setting]) -> list[Setting]:
    """All of a few; of more than MAX_MAPPED the best and the last, between which all others lie."""
    if len(settings) <= MAX_MAPPED:
        return list(settings)
    return [*settings[: MAX_MAPPED - 1], settings[-1]]


def _worst_maps(
    cache: Cache, facts: CacheFacts, settings: Sequence[Setting], num: int
) -> list[TeacherMaps]:
    """For every teacher the images that the best setting predicts worst."""
    found: list[TeacherMaps] = []
    for best in ranked(settings)[:1]:
        for teacher in facts.patches:
            rows = worst_rows(cache, best, teacher.teacher, num)
            found += gather_maps(cache, [teacher], [best], rows)
    return found


def _coded(settings: Sequence[Setting]) -> list[str]:
    """What students were compared with as decoded codes."""
    rows = [row for one in settings for run in one.runs for row in run.evaluation]
    return sorted({row.column for row in rows if row.of_codes})


def render(
    cache: CacheFacts,
    settings: Sequence[Setting],
    maps: Sequence[TeacherMaps],
    worst: Sequence[TeacherMaps] = (),
    *,
    extra_tables: Sequence[ExtraTable] = (),
    diverged: Sequence[Diverged] = (),
    title: str,
) -> str:
    """The page as text; the same numbers give the same page to the byte."""
    from markupsafe import Markup

    def drawn(svg: str) -> Markup:
        # Ours: canvas.py wrote it, and what it quotes from outside is escaped there.
        return Markup(svg)

    drawings: dict[str, Any] = {
        "before": drawn(figures.spectra(cache, scaled=False)),
        "after": drawn(figures.spectra(cache, scaled=True)),
        "channels": {
            name: drawn(figures.channels(cache, number))
            for number, name in enumerate(cache.teachers)
        },
        "checks": [(target, unit, drawn(svg)) for target, unit, svg in figures.held_out(settings)],
        "losses": [(target, unit, drawn(svg)) for target, unit, svg in figures.losses(settings)],
    }
    curves = [curve for one in settings for curve in one.curves]
    return (
        _environment()
        .get_template(TEMPLATE)
        .render(
            title=title,
            version=__version__,
            finding=finding_text(cache),
            answers=answers(settings, diverged),
            contrasts=[(one, contrast_lines(one)) for one in contrasts(settings)],
            ranking=setting_lines(settings, diverged),
            runs_text=runs_text(settings, diverged),
            errors=error_groups(settings),
            coded=_coded(settings),
            worst=worst,
            cache=cache,
            bars=share_bars(cache),
            settings=settings,
            has_seeds=any(one.runs[1:] for one in settings),
            trained=trained(settings),
            maps=maps,
            figures=drawings,
            evaluation=eval_lines(cache.teachers, settings),
            extra_tables=[
                {**table._asdict(), "numeric": numeric_columns(table.header, table.rows)}
                for table in extra_tables
            ],
            teacher_number={name: number for number, name in enumerate(cache.teachers)},
            setting_number={one.name: number for number, one in enumerate(settings)},
            num_series=NUM_SERIES,
            run_dash=run_dash,
            explained=explained(settings, cache.methods),
            statistics_notes=statistics_notes([array.stats for array in cache.arrays]),
            has_warnings=any(array.stats.has_outliers for array in cache.arrays),
            made_with=made_with_text(settings),
            has_bands=any(facts.chance is not None for facts in cache.patches),
            relative=RELATIVE,
            values_per_point=max((curve.values_per_point for curve in curves), default=1.0),
        )
    )


def _environment() -> Environment:
    from jinja2 import Environment, PackageLoader, StrictUndefined

    environment = Environment(
        loader=PackageLoader("phistill.report.page", ""),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(number=number_text, percent=percent_text, bytes=bytes_text)
    return environment
