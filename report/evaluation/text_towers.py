"""The text towers of a run's teachers, for what ``evaluate`` says of named classes."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from phistill.cache import Split
from phistill.cache.joined import CacheArgument
from phistill.errors import PhistillError, UsageError
from phistill.pipeline import TeacherSpec
from phistill.train import TaskScore, load_run, text_scores
from phistill.train.evaluation.teacher_tools import TEMPLATES, Encode
from phistill.train.targets import SUMMARY

WITHOUT_TEXT = ("timm", "transformers")
"""Sources whose teachers are image towers alone."""


def scores_by_text(
    run: Path,
    caches: CacheArgument | None = None,
    *,
    classes: Path | None = None,
    templates: Sequence[str] = (),
    captions: Path | None = None,
    which: str = "latest",
    split: Split = "heldout",
    device: str = "auto",
) -> tuple[list[TaskScore], tuple[str, ...]]:
    """Scores of every teacher of the run that has a text tower, and why others have none.

    The teachers are built from what the run recorded of them. ``classes`` is a file with a class
    per line: its label in the cache and, after a tab, its words where they are others; ``captions``
    one with the id of an image and, after a tab, its caption.
    """
    encoders, notes = text_encoders(run, which)
    if not encoders:
        return [], notes
    scores = text_scores(
        run,
        encoders,
        caches,
        classes=None if classes is None else read_classes(classes),
        templates=tuple(templates) or TEMPLATES,
        captions=None if captions is None else read_captions(captions),
        which=which,
        split=split,
        device=device,
    )
    return scores, notes


def text_encoders(run: Path, which: str) -> tuple[dict[str, Encode], tuple[str, ...]]:
    """By teacher of the run; and a line for each that could not be asked."""
    student = load_run(run, which=which)
    with_summary = {t.teacher for t in student.targets if t.kind == SUMMARY}
    encoders: dict[str, Encode] = {}
    notes = []
    for name, text in student.facts["specs"].items():
        if name not in with_summary or not text or text.partition(":")[0] in WITHOUT_TEXT:
            continue
        try:
            teacher = TeacherSpec.parse(f"{name}={text}").build()
            teacher.text_features(["a picture"])
        except PhistillError as error:
            notes.append(f"No zero-shot of {name}: {str(error).splitlines()[0]}")
        else:
            encoders[name] = teacher.text_features
    return encoders, tuple(notes)


def read_classes(path: Path) -> dict[str, str]:
    """The words for each label; UsageError for a file that is no such list."""
    pairs = _pairs(path)
    words = {pair[0].strip(): pair[-1].strip() for pair in pairs}
    if len(words) < 2 or len(words) < len(pairs):
        raise UsageError(
            f"{path} must name two classes at least, each once: a label per line and, after a tab, "
            "its words."
        )
    return words


def read_captions(path: Path) -> dict[str, list[str]]:
    """The captions by image id; UsageError for a file that is no such list."""
    pairs = _pairs(path)
    if not pairs or any(len(pair) < 2 or not pair[1].strip() for pair in pairs):
        raise UsageError(f"{path} must have an image's id, a tab and its caption on every line.")
    captions: dict[str, list[str]] = {}
    for name, text in pairs:
        captions.setdefault(name.strip(), []).append(text.strip())
    return captions


def _pairs(path: Path) -> list[list[str]]:
    try:
        lines = [line for line in path.read_text("utf-8-sig").splitlines() if line.strip()]
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"{path} is no text file ({error}).") from error
    return [line.split("\t", 1) for line in lines]
