"""Embeddings in a file to codes in a file, and back: an npy array of vectors, coded one by one.

The same codec as for features, without a grid. What it loses is measured on vectors that it was not
fitted on, and so is what it does to neighbours.

n vectors, c width.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Float, Int, Shaped

from phistill.cache.codes import RowCodec
from phistill.cache.storage.positional import fsync_folder
from phistill.cache.storage.publish import TEMPORARY_SUFFIX, make_folder, publish_bytes
from phistill.errors import UsageError

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

_SEED = 0


@dataclass(frozen=True, kw_only=True, slots=True)
class QuantizeReport:
    """What was written, and what it loses."""

    num_vectors: int
    width: int
    num_bytes: int
    """Of a vector."""
    num_measured: int
    lost_share: float
    """Of the variance, in vectors that the codec was not fitted on."""
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
    not coded.
    """
    found = dict.fromkeys(ks, 0)
    squares = np.einsum("nc,nc->n", decoded, decoded)
    for start in range(0, len(queries), 256):
        part = slice(start, start + 256)
        distance = squares - 2 * (queries[part] @ decoded.T)
        own = np.take_along_axis(distance, nearest[part, None], axis=1)
        rank = np.sum(distance < own, axis=1)
        for k in ks:
            found[k] += int(np.sum(rank < k))
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

    ``out`` becomes an npy file (n, bytes) of uint8, and ``out`` with the suffix .codec what decodes
    it. ``codec`` is one that was made before, to be used for these vectors too; ``num_bytes``, if
    given, must then be its own. Raises UsageError for files that are something else, for an ``out``
    that would be written over one that is read and for bytes that nothing can be coded in,
    DegenerateMoments for vectors that are all the same.
    """
    vectors = open_vectors(embeddings, 2)
    _refuse_over(embeddings, out, codec_path(out))
    if codec_path(out) == out:
        raise UsageError(f"{out}: the codec gets this name. Call the codes otherwise, as in x.npy.")
    if not np.issubdtype(vectors.dtype, np.floating):
        raise UsageError(f"{embeddings} holds {vectors.dtype}; vectors must be floating-point.")
    order = np.random.default_rng(_SEED).permutation(len(vectors))
    num_measured = min(MEASURED, len(vectors) // 10)
    measured, rest = order[:num_measured], order[num_measured:]
    if codec is not None:
        fitted = load_codec(codec)
        if num_bytes not in (None, fitted.num_bytes):
            raise UsageError(
                f"{codec} codes in {fitted.num_bytes} bytes, and {num_bytes} were asked for."
            )
    elif num_bytes is not None:
        fitted = _fitted(vectors, rest[:FIT_VECTORS], num_bytes)
    else:
        raise UsageError("say how many bytes a vector may take: --bytes 64, or --codec FILE.")
    report = _measure(vectors, measured, rest[:CANDIDATES], fitted)
    publish_bytes(codec_path(out), fitted.to_bytes())
    _write(out, vectors, np.dtype(np.uint8), fitted.num_bytes, fitted.encode, progress)
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
    width = int(np.prod(fitted.row_shape))
    _write(out, data, np.dtype(np.float32), width, fitted.decode, progress)
    return len(data), width


def codec_path(codes: Path) -> Path:
    """Beside a file of codes: what decodes them."""
    return codes.with_suffix(".codec")


def _refuse_over(read: Path, *written: Path) -> None:
    """UsageError where one of those ``written`` is the file that is ``read``."""
    for path in written:
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
        array = np.load(path, mmap_mode="r", allow_pickle=False)
    except (ValueError, OSError, EOFError) as error:
        raise UsageError(f"{path} is not a readable npy file: {error}.") from error
    if not isinstance(array, np.ndarray) or array.ndim != ndim or 0 in array.shape:
        raise UsageError(f"{path} has shape {np.shape(array)}; wanted (vectors, channels).")
    return array


def _fitted(
    vectors: Shaped[np.ndarray, "n c"], chosen: Int[np.ndarray, " m"], num_bytes: int
) -> RowCodec:
    some = vectors[np.sort(chosen)]
    return fit_codec(Moments.of(some), [some], grid=None, num_bytes=num_bytes)


def _measure(
    vectors: Shaped[np.ndarray, "n c"],
    measured: Int[np.ndarray, " q"],
    candidates: Int[np.ndarray, " m"],
    codec: RowCodec,
) -> QuantizeReport:
    queries = vectors[np.sort(measured)].astype(np.float32)
    among = vectors[np.sort(candidates)].astype(np.float32)
    squares = np.einsum("nc,nc->n", among, among)
    parts = [queries[start : start + 256] for start in range(0, len(queries), 256)]
    nearest = [np.argmin(squares - 2 * (part @ among.T), axis=1) for part in parts]
    recall = {}
    if parts:
        recall = neighbour_recall(
            queries, codec.decode(codec.encode(among)), np.concatenate(nearest)
        )
    return QuantizeReport(
        num_vectors=len(vectors),
        width=vectors.shape[1],
        num_bytes=codec.num_bytes,
        num_measured=len(queries),
        lost_share=codec.lost_share(queries),
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
) -> None:
    """An npy file (n, width) of changed blocks, whole or not there."""
    make_folder(out.parent)
    temporary = out.with_name(out.name + TEMPORARY_SUFFIX)
    n = len(source)
    try:
        with temporary.open("wb") as file:
            np.lib.format.write_array_header_1_0(
                file,
                {"descr": dtype.str, "fortran_order": False, "shape": (n, width)},
            )
            for start in range(0, n, BLOCK):
                try:
                    block = change(np.ascontiguousarray(source[start : start + BLOCK]))
                except UsageError as error:
                    raise UsageError(f"Vectors {start:,} and further: {error}") from error
                file.write(block.tobytes())
                if progress is not None:
                    progress(min(n, start + BLOCK), n)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(out)
        fsync_folder(out.parent)
    finally:
        temporary.unlink(missing_ok=True)
