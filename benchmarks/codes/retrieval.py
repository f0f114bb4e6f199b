"""Nearest neighbours among coded embeddings, beside faiss at equal bytes.

Embeddings are 512 wide: tokens of EfficientNet-Lite0 (trained on ImageNet, 1,280 wide), projected
by a fixed random orthonormal matrix, mean taken off and scaled to length 1. Codecs are fitted on
tokens of some images; database and queries are tokens of others. recall@k: the share of queries
whose exact nearest neighbour is among the k nearest decoded vectors (queries are not coded).
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable

import numpy as np
from rivals import OPQ_ROUNDS

from phistill import cache as store
from phistill.stats import Moments
from phistill.stats.codes import fit_codec
from phistill.stats.codes.embeddings import neighbour_recall

WIDTH = 512
BYTES = (64, 32, 16)
NUM_FIT, NUM_DATABASE, NUM_QUERIES = 10_000, 10_000, 1_000

Coder = Callable[[np.ndarray], np.ndarray]
"""Database to decoded database."""


def embeddings(options: argparse.Namespace) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """To fit on, database, queries: (n, 512) float32 each, of different images."""
    cache = store.open(options.cache)
    rows = cache.rows(["lite0"], "train")
    tokens = cache.reader("lite0", "patches").read(rows).astype(np.float32)
    random = np.random.default_rng(0)
    axes = np.linalg.qr(random.normal(size=(tokens.shape[-1], WIDTH)))[0].astype(np.float32)
    fit, rest, asked = (
        random.permutation(part.reshape(-1, tokens.shape[-1]) @ axes)
        for part in np.split(tokens, [len(tokens) // 2, len(tokens) - 100])
    )
    mean = fit.mean(0)
    parts = (fit[:NUM_FIT], rest[:NUM_DATABASE], asked[:NUM_QUERIES])
    found = [(part - mean) / np.linalg.norm(part - mean, axis=1, keepdims=True) for part in parts]
    return found[0], found[1], found[2]


def ours(fit: np.ndarray, num_bytes: int) -> tuple[int, Coder]:
    codec = fit_codec(Moments.of(fit), [fit], grid=None, num_bytes=num_bytes)
    return codec.num_bytes, lambda x: codec.decode(codec.encode(x))


def of_faiss(fit: np.ndarray, factory: str) -> tuple[int, Coder]:
    import faiss

    index = faiss.index_factory(WIDTH, factory)
    if factory.startswith("OPQ"):
        turn = faiss.downcast_VectorTransform(index.chain.at(0))
        turn.niter, turn.niter_pq, turn.niter_pq_0 = OPQ_ROUNDS, 2, 8
    index.train(fit)

    def through(x: np.ndarray) -> np.ndarray:
        return index.sa_decode(index.sa_encode(x))

    return index.sa_code_size(), through


def factories(num_bytes: int) -> dict[str, str]:
    """Strings of faiss.index_factory; RaBitQ keeps two float32 beside its bits."""
    return {
        "PQ": f"PQ{num_bytes}x8",
        "OPQ": f"OPQ{num_bytes},PQ{num_bytes}x8",
        "SQ4 after PCA": f"PCAR{2 * num_bytes},SQ4",
        "RaBitQ after PCA": f"PCAR{8 * (num_bytes - 8)},RaBitQ",
    }


def retrieval(options: argparse.Namespace) -> list[str]:
    import faiss

    faiss.omp_set_num_threads(options.threads)
    fit, database, queries = embeddings(options)
    exact = np.argmax(queries @ database.T, axis=1)
    lines = [
        f"{NUM_DATABASE:,} vectors of {WIDTH}, {NUM_QUERIES:,} queries; fitted on {NUM_FIT:,} "
        f"others. faiss {faiss.__version__}.",
        "",
        "| bytes | codes | their bytes | lost dB | recall@1 | recall@10 | fit s | us a vector |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for num_bytes in BYTES:
        names: dict[str, Callable[[], tuple[int, Coder]]] = {
            "ours": lambda n=num_bytes: ours(fit, n)
        } | {
            name: (lambda f=factory: of_faiss(fit, f))
            for name, factory in factories(num_bytes).items()
        }
        for name, make in names.items():
            begin = time.process_time()
            size, coder = make()
            fitted = time.process_time() - begin
            begin = time.process_time()
            decoded = coder(database)
            coding = (time.process_time() - begin) / len(database)
            lost = np.square(decoded - database).sum() / np.square(database).sum()
            recall = neighbour_recall(queries, decoded, exact, ks=(1, 10))
            lines.append(
                f"| {num_bytes} | {name} | {size} | {-10 * np.log10(lost):.2f} | {recall[1]:.3f} | "
                f"{recall[10]:.3f} | {fitted:.1f} | {coding * 1e6:.0f} |"
            )
            print(lines[-1], flush=True)
    return lines
