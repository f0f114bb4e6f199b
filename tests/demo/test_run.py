"""The demo runs from images to report, and a second call does nothing again."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
from msgspec.structs import replace

from phistill.cache.storage.parquet import read_table
from phistill.demo.pictures import BUNDLED
from phistill.demo.run import STUDENT, demo, unexplained_table
from phistill.report.terminal import progress_bar


def some_images(path: Path) -> Path:
    """Every tenth bundled image, both splits among them."""
    table = read_table(BUNDLED)
    pq.write_table(table.take(pa.array(range(0, table.num_rows, 10))), path)
    return path


def test_the_demo_goes_from_images_to_a_report(tmp_path: Path) -> None:
    images = some_images(tmp_path / "images.parquet")
    config = replace(STUDENT, num_steps=30, tensorboard=False, validate_every=0)
    run = partial(demo, tmp_path / "out", say=print, progress=progress_bar)
    result = run(config=config, images=images)
    assert result.cache.teachers == ("clip", "ssl", "mask")
    page = result.report.read_text("utf-8")
    assert len(page) > 100_000
    for name in ("phi-s", "raw"):
        assert name in page
    table = unexplained_table(result.lines)
    assert [line.split()[0] for line in table.splitlines()[1:] if line[0] != "-"] == [
        "teacher",
        "clip",
        "ssl",
        "mask",
    ]
    clip = {
        name: line.unexplained
        for name, lines in result.lines.items()
        for line in lines
        if (line.student, line.teacher, line.kind) == ("trained", "clip", "patches")
    }
    # The point of the paper, already after 30 steps: raw targets starve the quietest teacher.
    assert clip["phi-s"] is not None
    assert clip["raw"] is not None
    assert clip["phi-s"] < clip["raw"]
    matte = {who: scores["matte IoU"].value for who, scores in result.scores.scores.items()}
    assert matte["teacher"] > matte["student, untrained"]
    before = result.cache.digest()
    again = run(config=config, images=images)
    assert again.cache.digest() == before
