"""Images in tars on a disk, read in place."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

import pyarrow as pa

from phistill.errors import UsageError

from ..local_files import read_part, retried
from ..source import DEFAULTS, NOTHING, SUFFIXES, ImageSource, SourceOptions, left_out_text
from ..splits import splits_of_files
from .members import Member, members
from .samples import Sample, samples_of, table_of


class TarSource(ImageSource):
    """Every image in some tars."""

    kind = "tar"

    def __init__(
        self,
        root: Path,
        tars: Sequence[str],
        options: SourceOptions = DEFAULTS,
        beside: Mapping[str, int] = NOTHING,
    ) -> None:
        """``tars`` are paths below ``root``; ``beside`` is what else lies there."""
        self._root, self._tars, self.options = root, list(tars), options
        self._beside = beside

    def records(self) -> pa.Table:
        self.left_out = left_out = Counter(self._beside)
        tars = {uri: self._samples(uri, left_out) for uri in self._tars}
        if not any(tars.values()):
            raise UsageError(
                f"{self._root}: the tars hold no image ({', '.join(sorted(SUFFIXES))}). "
                f"{left_out_text(left_out)}".rstrip()
            )
        return table_of(tars, splits_of_files(self._tars))

    def _samples(self, uri: str, left_out: Counter[str]) -> list[Sample]:
        tar = self._root / uri
        inside = retried(lambda: list(members(tar, self.options.allow_cut_tars)), tar)

        def read(member: Member) -> bytes:
            return read_part(tar, member.offset, member.length)

        return samples_of(uri, inside, read, self.options, left_out)

    def read(self, uri: str, offset: int, length: int) -> bytes:
        return read_part(self._root / uri, offset, length)
