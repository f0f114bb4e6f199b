"""The bundled thumbnails: what the file promises."""

import io

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

from phistill.demo.making.build_images import PACKAGE, category_limits
from phistill.demo.making.openclipart import LONG_SIDE
from phistill.demo.pictures import BUNDLED, GREY, composite, read_pictures

TABLE = pq.read_table(BUNDLED)


def test_the_file_has_the_promised_columns_and_says_where_it_comes_from() -> None:
    assert TABLE.column_names[:2] == ["image", "name"]
    assert {"folders", "category", "cluster", "split"} <= set(TABLE.column_names)
    metadata = TABLE.schema.metadata
    assert metadata[b"package"].decode() == PACKAGE
    assert metadata[b"version"] not in (b"", b"unknown")
    assert b"public domain" in metadata[b"licence"]


def test_the_file_is_small_and_holds_about_two_thousand_images() -> None:
    assert BUNDLED.stat().st_size < 6_000_000
    assert 1900 <= len(TABLE) <= 2100


def test_no_cluster_of_near_duplicates_is_on_both_sides_of_the_split() -> None:
    cluster = np.array(TABLE["cluster"])
    held_out = np.array(TABLE["split"]) == "heldout"
    assert 0.12 < held_out.mean() < 0.18
    assert not set(cluster[held_out]) & set(cluster[~held_out])


def test_no_category_is_more_than_a_tenth_of_the_images() -> None:
    counts = np.unique(np.array(TABLE["category"]), return_counts=True)[1]
    assert counts.max() <= 0.1 * len(TABLE)


def test_thumbnails_have_alpha_and_fit_their_box() -> None:
    for data in TABLE["image"].to_pylist()[::50]:
        with Image.open(io.BytesIO(data)) as image:
            assert image.format == "WEBP"
            assert max(image.size) <= LONG_SIDE
    modes = [Image.open(io.BytesIO(d)).mode for d in TABLE["image"].to_pylist()[::10]]
    # WebP drops an alpha channel that is fully opaque, as that of a flag is.
    assert modes.count("RGBA") > 0.7 * len(modes)


def test_every_image_has_words() -> None:
    assert all(name.strip() for name in TABLE["name"].to_pylist())


def test_squares_are_premultiplied() -> None:
    squares = read_pictures(BUNDLED, split="heldout", side=24).squares
    excess = (squares[:, :3].int() - squares[:, 3:].int()).max()
    assert excess <= 16  # colour and alpha overshoot differently under bicubic resizing
    over_grey = composite(squares.float() / 255, GREY)
    assert 0 <= over_grey.min() <= over_grey.max() <= 1 + 16 / 255


@pytest.mark.parametrize("total", [3, 10, 40])
def test_categories_fill_up_evenly(total: int) -> None:
    sizes = {"large": 50, "middle": 6, "small": 2}
    limits = category_limits(sizes, total)
    assert sum(limits.values()) == min(total, sum(sizes.values()))
    assert all(limits[name] <= sizes[name] for name in sizes)
    assert limits["large"] >= limits["middle"] >= limits["small"]
