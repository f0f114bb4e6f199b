"""The codecs of a teacher: what its group says of them, and their files."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import NamedTuple

from msgspec.structs import replace

from phistill.errors import CorruptCache, UsageError

from ..format.info import StoredCodec, TeacherInfo
from ..storage.files import Files
from .codec import RowCodec


class FittedCodec(NamedTuple):
    """A codec for one array of a teacher, and what it loses."""

    codec: RowCodec
    lost_share: float
    """Of the variance of pilot rows that it was not fitted on."""
    budget: int
    """Bytes of a row that it was allowed."""


def coded_teacher(teacher: TeacherInfo, codecs: Mapping[str, FittedCodec]) -> TeacherInfo:
    """The teacher with these kinds stored as codes; what it is stays the same."""
    entries = {
        kind: StoredCodec(
            sha256=hashlib.sha256(fitted.codec.to_bytes()).hexdigest(),
            budget=fitted.budget,
            num_bytes=fitted.codec.num_bytes,
            lost_share=fitted.lost_share,
        )
        for kind, fitted in codecs.items()
    }
    return replace(teacher, codecs={**teacher.codecs, **entries})


def read_codec(
    files: Files, path: str, stored: StoredCodec, row_shape: tuple[int, ...]
) -> RowCodec:
    """The codec of a teacher's rows of this shape; CorruptCache when its file is missing or not the
    one it names."""
    try:
        data = files.read(path)
        codec = RowCodec.from_bytes(data)
    except FileNotFoundError as error:
        raise _lost(files, path, "It is not there.") from error
    except UsageError as error:
        raise _lost(files, path, str(error)) from error
    if hashlib.sha256(data).hexdigest() != stored.sha256 or codec.num_bytes != stored.num_bytes:
        raise _lost(files, path, "It is another codec than the one that the codes were made with.")
    if codec.row_shape != row_shape:
        raise _lost(files, path, f"It codes rows of {codec.row_shape}, and these are {row_shape}.")
    return codec


def _lost(files: Files, path: str, why: str) -> CorruptCache:
    return CorruptCache(
        f"{files.where(path)}: {why} Codes cannot be read without it. Restore the file from a "
        "copy; without one, `stage --teachers` keeps the other teachers."
    )
