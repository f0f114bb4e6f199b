"""Makes the golden codes of this folder: run it when the format of codes changes, and say so."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from phistill.stats import Moments
from phistill.stats.codes import fit_codec
from tests.stats.codes.conftest import features

HERE = Path(__file__).parent


def main() -> None:
    patches = features(300, (5, 3), 20)
    summaries = features(300, (1, 1), 33, dtype=np.float32).reshape(300, 33)
    fine = features(300, (2, 3), 24)
    for name, rows, grid, num_bytes in (
        ("patches", patches, (5, 3), 160),
        ("summary", summaries, None, 12),
        ("fine", fine, (2, 3), 152),  # bands of 9 bits and more
    ):
        codec = fit_codec(Moments.of(rows), [rows], grid=grid, num_bytes=num_bytes)
        (HERE / f"{name}.codec.safetensors").write_bytes(codec.to_bytes())
        codes = codec.encode(rows[:8])
        decoded, unbiased = codec.decode(codes), codec.decode(codes, unbiased=True)
        np.savez(
            HERE / f"{name}.npz", rows=rows[:8], codes=codes, decoded=decoded, unbiased=unbiased
        )


if __name__ == "__main__":
    main()
