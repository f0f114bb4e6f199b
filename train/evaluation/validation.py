"""The label score that a run writes down while it trains."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray

from phistill.cache.joined import JoinedCaches
from phistill.compute.precision import full_float32

from ..data.source import PIXELS, Source
from ..data.stream import Rows
from ..student.predict import TrainedStudent
from .fidelity import BATCH_ROWS
from .index import labels_of
from .probes import knn_hits

MAX_TAUGHT = 2048
"""Training rows whose labels vote: for watching a run, not for a verdict."""


def knn_accuracy(
    student: TrainedStudent, source: Source, taught: Rows, asked: Rows
) -> float | None:
    """Share of ``asked`` rows whose label the nearest of ``taught`` name, by the backbone's mean
    token; None where there are not two labels that both sides have."""
    usable = shared_labels(source.caches, taught, asked)
    if not usable.any():
        return None
    taught = taught[:MAX_TAUGHT]
    known = labels_of(source.caches, taught)
    has = np.array([label is not None for label in known], bool)
    taught, known = taught[has], known[has].astype(str)
    asked = asked[usable]
    classes, wanted = np.unique(known), labels_of(source.caches, asked)
    labels, answers = (
        torch.from_numpy(np.searchsorted(classes, values.astype(str))).to(student.device)
        for values in (known, wanted)
    )
    x, test = _features(student, source, taught), _features(student, source, asked)
    return float(knn_hits(x, labels, test, answers).double().mean())


def shared_labels(caches: JoinedCaches, taught: Rows, asked: Rows) -> NDArray[np.bool_]:
    """Whether each of ``asked`` has a label that one of the first MAX_TAUGHT of ``taught`` has;
    False for all where these have fewer than two."""
    known = {label for label in labels_of(caches, taught[:MAX_TAUGHT]) if label is not None}
    wanted = labels_of(caches, asked)
    return np.array([len(known) > 1 and label in known for label in wanted], bool)


def _features(student: TrainedStudent, source: Source, rows: Rows) -> torch.Tensor:
    parts = []
    for start in range(0, len(rows), BATCH_ROWS):
        pixels = source.readers[PIXELS].read(rows[start : start + BATCH_ROWS])
        with full_float32():
            parts.append(student.features(torch.from_numpy(pixels))[1])
    return torch.cat(parts)
