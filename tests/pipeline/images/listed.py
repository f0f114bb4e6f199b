"""What a source lists, a namespace per image: id, uri, offset, length, label, split."""

from __future__ import annotations

from types import SimpleNamespace

from phistill.pipeline import ImageSource


def listed(source: ImageSource) -> list[SimpleNamespace]:
    return [SimpleNamespace(**line) for line in source.records().to_pylist()]
