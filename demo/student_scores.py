"""The teachers' own tasks, done by a student: retrieval through `clip`'s text tower, mattes through
`mask`'s decoder.

A student that predicts a teacher's features can be used in the teacher's place; these scores say
how well, beside the teacher itself and the student before training.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from phistill.cache import HELDOUT, Cache
from phistill.cache.storage.parquet import read_table
from phistill.display import table_text
from phistill.train import TrainedStudent, load_run

from . import task_scores
from .captions import caption
from .matte import PATCH, cells
from .pictures import BUNDLED, decode_square
from .teachers import matte_decoder, text_summaries

BATCH = 64
SHOWN = ("image to text R@10", "text to image R@10", "matte IoU")


@dataclass(frozen=True, slots=True)
class ScoreTable:
    """Scores by who (teacher, runs, untrained) and task, on the same held-out images."""

    scores: Mapping[str, Mapping[str, task_scores.Score]]

    def rows(self) -> list[list[str]]:
        """A header, then a line per who."""
        head = ["features", *SHOWN]
        return [head, *([who, *(str(s[task]) for task in SHOWN)] for who, s in self.scores.items())]

    def as_text(self) -> str:
        """Aligned columns for a terminal."""
        header, *rows = self.rows()
        num = next(iter(self.scores.values()))[SHOWN[0]].n
        title = f"The teachers' own tasks on {num} held-out images, 95 % interval"
        return f"{title}\n{table_text(header, rows, words=range(len(header)))}"

    def as_report_tables(self) -> list[tuple[str, list[str], list[list[str]], str]]:
        """For the report: title, header, rows, note."""
        head, *rows = self.rows()
        note = (
            "Student features, de-normalised, take the teacher's place: retrieval by cosine with "
            "clip's text tower, mattes through mask's decoder. Brackets: 95 % bootstrap interval."
        )
        return [("The teachers' own tasks", head, rows, note)]


def score_students(cache: Cache, runs: Mapping[str, Path], images: Path = BUNDLED) -> ScoreTable:
    """Scores of the teachers, of each run's student and of an untrained one.

    ``images`` is the table that the cache was made from: it has the words and the alpha.
    """
    judge = Judge(cache, images)
    students = {f"student, {name}": load_run(path) for name, path in runs.items()}
    students["student, untrained"] = load_run(next(iter(runs.values())), untrained=True)
    scores = {"teacher": judge.scores(*judge.teacher())}
    for who, student in students.items():
        scores[who] = judge.scores(*judge.student(student))
    return ScoreTable(scores)


class Judge:
    """Held-out images with their captions and mattes."""

    def __init__(self, cache: Cache, images: Path) -> None:
        self._cache = cache
        self._rows = cache.rows(("clip", "mask"), HELDOUT)
        offsets = np.asarray(cache.index()["offset"].to_numpy())[self._rows].tolist()
        table = read_table(images, ["image", "name", "folders"]).take(offsets).to_pydict()
        side = PATCH * round(cache.teacher("mask").num_tokens ** 0.5)
        squares = np.stack([decode_square(data, side) for data in table["image"]])
        self._alpha = cells(torch.from_numpy(squares[:, 3]).float() / 255).numpy()
        self._captions = [
            caption(name, folders)
            for name, folders in zip(table["name"], table["folders"], strict=True)
        ]
        self._texts = text_summaries(self._captions).numpy()

    def teacher(self) -> tuple[np.ndarray, np.ndarray]:
        """Summaries of clip and patches of mask, from the cache."""
        return (
            self._cache.reader("clip", "summary").read(self._rows),
            self._cache.reader("mask", "patches").read(self._rows),
        )

    def student(self, student: TrainedStudent) -> tuple[np.ndarray, np.ndarray]:
        """What a student says in their place."""
        reader = self._cache.reader("pixels", "pixels")
        summaries, patches = [], []
        for start in range(0, self._rows.size, BATCH):
            answer = student.predict(reader.read(self._rows[start : start + BATCH]))
            summaries.append(answer["clip"]["summary"].numpy())
            patches.append(answer["mask"]["patches"].numpy())
        return np.concatenate(summaries), np.concatenate(patches)

    def scores(self, summaries: np.ndarray, patches: np.ndarray) -> dict[str, task_scores.Score]:
        weight, bias = (tensor.numpy() for tensor in matte_decoder())
        matte = task_scores.decode_matte(patches, weight, bias)
        return {
            **task_scores.text_retrieval(summaries, self._texts, self._captions),
            "matte IoU": task_scores.matte_iou(matte, self._alpha),
        }
