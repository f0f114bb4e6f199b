"""Embeddings in a file to codes in a file, and back: an npy array of vectors, coded one by one.

The same codec as for features, without a grid. What it loses is measured on vectors that it was not
fitted on, and so is what it does to neighbours.

n vectors, c width.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Float, Int, Shaped

from phistill.cache.codes import RowCodec
from phistill.cache.storage.positional import fsync_folder
from phistill.cache.storage.publish import (
    TEMPORARY_SUFFIX,
    explained,
    make_folder,
    publish_bytes,
)
from phistill.errors import DegenerateMoments, UsageError, counted

from ..moments.moments import Moments
from .fit import fit_codec

FIT_VECTORS = 65_536
"""Vectors that a codec is fitted on, at most: 64 of each of 1,024 channels."""

MEASURED = 1_000
"""Vectors that are kept out of the fit to be measured, at most, and a tenth of all at most."""

CANDIDATES = 20_000
"""Vectors that neighbours are looked for among, at most."""

BLOCK = 8_192
"""Vectors that are read and written at once."""

SUFFIX = ".npy"
"""Of files of codes, so that each has a codec of its own."""

_SEED = 0


@dataclass(frozen=True, kw_only=True, slots=True)
class QuantizeReport:
    """What was written, and what it loses."""

    num_vectors: int
    width: int
    num_bytes: int
    """Of a vector."""
    num_fitted: int
    """Vectors that the codec was fitted on; 0 for one that was made before."""
    num_measured: int
    """Vectors that what follows was measured on, none of which the codec was fitted on here."""
    lost_share: float | None
    """Of their variance; None where none was measured."""
    num_candidates: int
    recall: Mapping[int, float]
    """recall@k by k: `neighbour_recall` of the measured vectors among the candidates."""


def neighbour_recall(
    queries: Float[np.ndarray, "q c"],
    decoded: Float[np.ndarray, "n c"],
    nearest: Int[np.ndarray, " q"],
    ks: Sequence[int] = (1, 10),
) -> dict[int, float]:
    """Share of the queries whose nearest vector is among the k nearest of the decoded ones.

    ``nearest`` are numbers of vectors, by squared distance to the vectors themselves. Queries are
    not coded. Of vectors that are decoded alike any may come first, with equal chances.
    """
    found = dict.fromkeys(ks, 0.0)
    squares = np.einsum("nc,nc->n", decoded, decoded)
    for start in range(0, len(queries), 256):
        part = slice(start, start + 256)
        distance = squares - 2 * (queries[part] @ decoded.T)
        own = np.take_along_axis(distance, nearest[part, None], axis=1)
        nearer, alike = (np.sum(which, axis=1) for which in (distance < own, distance == own))
        for k in ks:
            found[k] += float(np.sum(np.clip((k - nearer) / alike, 0, 1)))
    return {k: count / len(queries) for k, count in found.items()}


def quantize(
    embeddings: Path,
    out: Path,
    *,
    num_bytes: int | None = None,
    codec: Path | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> QuantizeReport:
    """Code the vectors of an npy file (n, c) in at most ``num_bytes`` each.

    ``out``, X.npy, becomes an npy file (n, bytes) of uint8, X.codec what decodes it: codes never
    lie beside another codec. ``codec`` is one that was made before, to be used for these vectors
    too; ``num_bytes``, if given, must then be its own. Raises UsageError for files that are
    something else, NaN or infinity, an ``out`` that would be written over what is read or is no
    file, and bytes that nothing can be coded in, DegenerateMoments for vectors that are all the
    same.
    """
    vectors = open_vectors(embeddings, 2)
    if out.suffix != SUFFIX:
        raise UsageError(f"{out}: codes are an npy file. Name it so: codes{SUFFIX}.")
    _refuse_over(embeddings, out, codec_path(out))
    if not np.issubdtype(vectors.dtype, np.floating):
        raise UsageError(f"{embeddings} holds {vectors.dtype}; vectors must be floating-point.")
    _require_finite(vectors, embeddings)
    order = np.random.default_rng(_SEED).permutation(len(vectors))
    num_measured = min(MEASURED, len(vectors) // 10)
    measured, rest = order[:num_measured], order[num_measured:]
    num_fitted = 0
    if codec is not None:
        fitted = load_codec(codec)
        if num_bytes not in (None, fitted.num_bytes):
            raise UsageError(
                f"{codec} codes in {fitted.num_bytes} bytes, and {num_bytes} were asked for."
            )
    elif num_bytes is not None:
        fitted = _fitted(embeddings, vectors, rest[:FIT_VECTORS], num_bytes)
        num_fitted = len(rest[:FIT_VECTORS])
    else:
        raise UsageError("say how many bytes a vector may take: --bytes 64, or --codec FILE.")
    if vectors.shape[1:] != fitted.row_shape:
        raise UsageError(
            f"{embeddings} holds vectors of {vectors.shape[1]} channels; {codec} codes those of "
            f"{fitted.row_shape[0]}."
        )
    report = _measure(vectors, measured, rest[:CANDIDATES], fitted, num_fitted)

    ready = out.with_name(f"{codec_path(out).name}.ready")

    def place_codec() -> None:
        out.unlink(missing_ok=True)  # codes never lie beside a codec that is not theirs
        ready.replace(codec_path(out))

    try:
        publish_bytes(ready, fitted.to_bytes())
        _write(
            out, vectors, np.dtype(np.uint8), fitted.num_bytes, fitted.encode, progress, place_codec
        )
    finally:
        with contextlib.suppress(OSError):
            ready.unlink()
    return report


def dequantize(
    codes: Path,
    out: Path,
    *,
    codec: Path | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> tuple[int, int]:
    """Write the vectors of a file of codes as npy, (n, c) float32; its shape is returned."""
    data = open_vectors(codes, 2)
    fitted = load_codec(codec or codec_path(codes))
    for read in (codes, codec or codec_path(codes)):
        _refuse_over(read, out)
    if data.dtype != np.uint8 or data.shape[1] != fitted.num_bytes:
        raise UsageError(
            f"{codes} holds {data.dtype} {data.shape}; {codec or codec_path(codes)} decodes uint8 "
            f"(n, {fitted.num_bytes})."
        )
    width = int(np.prod(fitted.row_shape))
    _write(out, data, np.dtype(np.float32), width, fitted.decode, progress)
    return len(data), width


def codec_path(codes: Path) -> Path:
    """Beside a file of codes: what decodes them."""
    return codes.with_suffix(".codec")


def _refuse_over(read: Path, *written: Path) -> None:
    """UsageError where one of those ``written`` is the file that is ``read``, or is no file."""
    for path in written:
        if path.exists() and not path.is_file():
            raise UsageError(f"{path} is there and is not a file. Name another.")
        if path.exists() and path.samefile(read):
            raise UsageError(f"{path} is read, and would be written over. Name another file.")


def load_codec(path: Path) -> RowCodec:
    """UsageError naming the file when it holds no codec of single vectors."""
    try:
        codec = RowCodec.from_bytes(path.read_bytes())
    except FileNotFoundError as error:
        raise UsageError(f"{path} is not there. Name the codec with --codec.") from error
    except UsageError as error:
        raise UsageError(f"{path}: {error}") from error
    if len(codec.row_shape) != 1:
        raise UsageError(f"{path} codes rows of shape {codec.row_shape}, not single vectors.")
    return codec


def open_vectors(path: Path, ndim: int) -> Shaped[np.ndarray, "n c"]:
    """Map an npy file; UsageError unless it holds vectors."""
    try:
        array = np.lib.format.open_memmap(path, mode="r")
    except FileNotFoundError as error:
        raise UsageError(f"{path} is not there.") from error
    except (ValueError, OSError, EOFError) as error:
        raise UsageError(f"{path} is not a readable npy file ({error}).") from error
    if not isinstance(array, np.ndarray) or array.ndim != ndim or 0 in array.shape:
        raise UsageError(f"{path} has shape {np.shape(array)}; wanted (vectors, channels).")
    return array


def _require_finite(vectors: Shaped[np.ndarray, "n c"], path: Path) -> None:
    for start in range(0, len(vectors), BLOCK):
        with np.errstate(over="ignore"):
            block = vectors[start : start + BLOCK].astype(np.float32)
        finite = np.isfinite(block).all(axis=1)
        if not finite.all():
            number = start + int(np.argmin(finite))
            raise UsageError(
                f"{path}: vector {number:,}, counted from 0, holds NaN, infinity or more than "
                "float32 can. Only finite vectors can be coded."
            )


def _fitted(
    path: Path, vectors: Shaped[np.ndarray, "n c"], chosen: Int[np.ndarray, " m"], num_bytes: int
) -> RowCodec:
    if len(chosen) < 2:
        raise UsageError(
            f"{path} holds {counted(len(vectors), 'vector')}, and a codec is fitted on two at "
            "least. Use one that was made before: --codec FILE."
        )
    some = vectors[np.sort(chosen)]
    try:
        moments = Moments.of(some)
        return fit_codec(moments, [some], grid=None, num_bytes=num_bytes)
    except DegenerateMoments as error:
        raise DegenerateMoments(
            f"{path}: its vectors are all the same: there is nothing to code."
        ) from error


def _measure(
    vectors: Shaped[np.ndarray, "n c"],
    measured: Int[np.ndarray, " q"],
    candidates: Int[np.ndarray, " m"],
    codec: RowCodec,
    num_fitted: int,
) -> QuantizeReport:
    # float64, or squares of large and small vectors are none
    queries = vectors[np.sort(measured)].astype(np.float64)
    among = vectors[np.sort(candidates)].astype(np.float64)
    squares = np.einsum("nc,nc->n", among, among)
    parts = [queries[start : start + 256] for start in range(0, len(queries), 256)]
    nearest = [np.argmin(squares - 2 * (part @ among.T), axis=1) for part in parts]
    recall = {}
    if parts:
        recall = neighbour_recall(
            queries, codec.decode(codec.encode(among)).astype(np.float64), np.concatenate(nearest)
        )
    return QuantizeReport(
        num_vectors=len(vectors),
        width=vectors.shape[1],
        num_bytes=codec.num_bytes,
        num_fitted=num_fitted,
        num_measured=len(queries),
        lost_share=codec.lost_share(queries) if parts else None,
        num_candidates=len(among),
        recall=recall,
    )


def _write(
    out: Path,
    source: Shaped[np.ndarray, "n k"],
    dtype: np.dtype[np.uint8] | np.dtype[np.float32],
    width: int,
    change: Callable[[Shaped[np.ndarray, "b k"]], Shaped[np.ndarray, "b w"]],
    progress: Callable[[int, int], None] | None,
    before: Callable[[], None] | None = None,
) -> None:
    """An npy file (n, width) of changed blocks, whole or as it was; ``before`` is called when all
    is written and has yet to get its name.

    Raises PublishError where the file system refuses it.
    """
    temporary = out.with_name(out.name + TEMPORARY_SUFFIX)
    n = len(source)
    try:
        with explained(out, n * width * dtype.itemsize):
            make_folder(out.parent)
            with temporary.open("wb") as file:
                np.lib.format.write_array_header_1_0(
                    file,
                    {"descr": dtype.str, "fortran_order": False, "shape": (n, width)},
                )
                for start in range(0, n, BLOCK):
                    file.write(
                        change(np.ascontiguousarray(source[start : start + BLOCK])).tobytes()
                    )
                    if progress is not None:
                        progress(min(n, start + BLOCK), n)
                file.flush()
                os.fsync(file.fileno())
            if before is not None:
                before()
            temporary.replace(out)
            fsync_folder(out.parent)
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink()
