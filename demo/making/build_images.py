"""Makes the bundled thumbnails, `images.parquet`, from Debian's openclipart-png.

    python -m phistill.demo.making.build_images --out demo/images.parquet --full openclipart.parquet

`--full` also writes every usable drawing, from which the demo teachers are trained; in that file
the split is the same: a drawing of a held-out cluster is held out whether or not it is bundled.
"""

from __future__ import annotations

import argparse
import subprocess
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from jaxtyping import Bool, Int
from PIL import Image

from .duplicates import (
    CLUSTER_BITS,
    close_pairs,
    clusters,
    colour_sketch,
    duplicate_pairs,
    perceptual_hash,
)
from .openclipart import Drawing, drawings, encode_webp

PACKAGE = "openclipart-png"
LICENCE = "public domain (Open Clip Art Library)"
NUM_IMAGES = 2000
HELD_OUT = 0.15
"""Fraction of the bundled clusters, and so nearly of the bundled images, that is held out."""

PER_CLUSTER = 2
"""Bundled drawings of one cluster: more would be the same drawing again."""


def package_version(package: str = PACKAGE) -> str:
    """Version of an installed Debian package, or "unknown" where dpkg does not know it."""
    command = ["dpkg-query", "--show", "--showformat=${Version}", package]
    try:
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def without_duplicates(all_drawings: list[Drawing]) -> tuple[list[Drawing], Int[np.ndarray, " n"]]:
    """Keep the first of each set of duplicates; return the kept drawings and their clusters."""
    hashes = np.array([perceptual_hash(d.rgba) for d in all_drawings])
    sketches = np.array([colour_sketch(d.rgba) for d in all_drawings])
    same = clusters(len(all_drawings), duplicate_pairs(hashes, sketches))
    first = np.unique(same, return_index=True)[1]
    kept = np.sort(first)
    cluster = clusters(len(kept), close_pairs(hashes[kept], CLUSTER_BITS))
    return [all_drawings[i] for i in kept], cluster


def category_limits(sizes: dict[str, int], total: int) -> dict[str, int]:
    """Fill the categories evenly up to `total`: small ones give all, large ones an equal share."""
    limits: dict[str, int] = {}
    left = total
    for i, name in enumerate(sorted(sizes, key=lambda n: (sizes[n], n))):
        limits[name] = min(sizes[name], left // (len(sizes) - i))
        left -= limits[name]
    return limits


def choose(
    kept: list[Drawing], cluster: Int[np.ndarray, " n"], total: int, rng: np.random.Generator
) -> Bool[np.ndarray, " n"]:
    """Choose about `total` drawings, even over categories, at most PER_CLUSTER of a cluster."""
    order = rng.permutation(len(kept))
    used: dict[int, int] = {}
    eligible: dict[str, list[int]] = {}
    for i in order:
        count = used[int(cluster[i])] = used.get(int(cluster[i]), 0) + 1
        if count <= PER_CLUSTER:
            eligible.setdefault(kept[i].category, []).append(int(i))
    limits = category_limits({name: len(members) for name, members in eligible.items()}, total)
    chosen = np.zeros(len(kept), dtype=bool)
    for name, members in eligible.items():
        chosen[members[: limits[name]]] = True
    return chosen


def held_out_clusters(
    cluster: Int[np.ndarray, " n"],
    chosen: Bool[np.ndarray, " n"],
    fraction: float,
    rng: np.random.Generator,
) -> Int[np.ndarray, " m"]:
    """Hold out this fraction of the clusters that have a chosen drawing."""
    candidates = np.unique(cluster[chosen])
    return np.sort(rng.permutation(candidates)[: round(fraction * len(candidates))])


def as_table(
    kept: list[Drawing], cluster: Int[np.ndarray, " n"], held_out: Bool[np.ndarray, " n"]
) -> pa.Table:
    """Columns image, name, folders, category, cluster, split, path, with the package's version."""
    table = pa.table(
        {
            "image": pa.array([encode_webp(d.rgba) for d in kept], pa.binary()),
            "name": [d.name or d.folders for d in kept],
            "folders": [d.folders for d in kept],
            "category": [d.category for d in kept],
            "cluster": pa.array(cluster, pa.int64()),
            "split": ["heldout" if h else "train" for h in held_out],
            "path": [d.path for d in kept],
        }
    )
    return table.replace_schema_metadata(
        {"package": PACKAGE, "version": package_version(), "licence": LICENCE}
    )


def build(all_drawings: list[Drawing], seed: int) -> tuple[pa.Table, pa.Table]:
    """Return (the bundled table, the table of every usable drawing)."""
    rng = np.random.default_rng(seed)
    kept, cluster = without_duplicates(all_drawings)
    chosen = choose(kept, cluster, NUM_IMAGES, rng)
    held_out = np.isin(cluster, held_out_clusters(cluster, chosen, HELD_OUT, rng))
    full = as_table(kept, cluster, held_out)
    return full.filter(pa.array(chosen)), full


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--source", type=Path, default=Path("/usr/share/openclipart/png"))
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--full", type=Path)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    Image.MAX_IMAGE_PIXELS = None  # a trusted package with a few drawings above 100 megapixels
    bundled, full = build(list(drawings(args.source)), args.seed)
    pq.write_table(bundled, args.out, compression="none", row_group_size=len(bundled))
    if args.full is not None:
        pq.write_table(full, args.full, compression="none")
    print(f"{len(full)} usable drawings, {len(bundled)} bundled in {args.out}")


if __name__ == "__main__":
    main()
