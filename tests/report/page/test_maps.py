"""PCA maps: one projection for teacher and student."""

from __future__ import annotations

import base64
import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from phistill.cache import Cache
from phistill.report.page.gather import PatchFacts, gather_cache
from phistill.report.page.maps import REACH, SIDE, colours, enlarged, gather_maps, png_uri
from phistill.report.page.settings import settings_of
from phistill.report.page.students import gather_runs


def facts_of(mean: np.ndarray, eigenvalues: np.ndarray, axes: np.ndarray) -> PatchFacts:
    return PatchFacts(
        teacher="t",
        grid=(2, 3),
        mean=mean,
        eigenvalues=eigenvalues,
        axes=axes,
        train={},
        heldout={},
        chance=None,
    )


@pytest.fixture
def facts() -> PatchFacts:
    generator = np.random.default_rng(0)
    axes = np.linalg.qr(generator.standard_normal((5, 5)))[0]
    return facts_of(generator.standard_normal(5) * 1e3, np.array([9.0, 4, 1, 0.5, 0]), axes[:, :3])


def test_the_training_mean_is_grey_and_the_reach_is_full_colour(facts: PatchFacts) -> None:
    tokens = np.tile(facts.mean, (6, 1))
    tokens[1] += REACH * 3.0 * facts.axes[:, 0]
    tokens[2] -= REACH * 2.0 * facts.axes[:, 1]
    tokens[3] += 10 * REACH * 1.0 * facts.axes[:, 2]
    shown = colours(facts, tokens[None]).reshape(6, 3).astype(int)
    # Half of 255 rounds to 127 or 128; one step is what rounding in the projection may add.
    expected = [[128] * 3, [255, 128, 128], [128, 0, 128], [128, 128, 255], [128] * 3, [128] * 3]
    assert np.abs(shown - expected).max() <= 1


def test_what_lies_outside_the_three_components_does_not_show(facts: PatchFacts) -> None:
    generator = np.random.default_rng(1)
    tokens = facts.mean + generator.standard_normal((2, 6, 5))
    other = generator.standard_normal((2, 6, 5))
    other -= other @ facts.axes @ facts.axes.T
    same = np.abs(colours(facts, tokens).astype(int) - colours(facts, tokens + 100 * other))
    assert same.max() <= 1


def test_narrow_and_flat_teachers_have_maps_too() -> None:
    narrow = facts_of(np.zeros(2), np.array([1.0, 0.0]), np.eye(2))
    shown = colours(narrow, np.full((1, 6, 2), 5.0)).reshape(6, 3)
    assert shown[0].tolist() == [255, 128, 128]


def test_a_picture_survives_its_uri() -> None:
    picture = np.random.default_rng(2).integers(0, 256, (4, 6, 3), np.uint8)
    head, _, body = png_uri(enlarged(picture)).partition(",")
    assert head == "data:image/png;base64"
    found = np.asarray(Image.open(io.BytesIO(base64.b64decode(body))))
    assert found.shape == (SIDE, SIDE * 6 // 4, 3)
    factor = SIDE // 4
    np.testing.assert_array_equal(found[::factor, ::factor], picture)


def test_every_teacher_shows_images_itself_and_every_setting(
    cache: Cache, runs: tuple[Path, Path]
) -> None:
    found = gather_cache(cache, methods=(), max_heldout_rows=8)
    students = settings_of(
        gather_runs(cache, runs, evaluations={}, can_evaluate=False, device="cpu")
    )
    rows = cache.rows(split="heldout")[:3]
    maps = gather_maps(cache, found.patches, students, rows)
    assert [one.teacher for one in maps] == ["loud", "quiet"]
    for one, facts in zip(maps, found.patches, strict=True):
        assert [(s.label, s.setting) for s in one.strips] == [
            ("image", ""),
            ("teacher", ""),
            ("student", "balanced"),
            ("student", "raw"),
        ]
        assert all(picture.shape == (*facts.grid, 3) for picture in one.strips[2].pictures)
        raw = cache.reader(facts.teacher, "patches").read(rows)
        np.testing.assert_array_equal(one.strips[1].pictures, colours(facts, raw))
        predicted = students[0].middle.student.predict(cache.reader("pixels", "pixels").read(rows))
        expected = colours(facts, predicted[facts.teacher]["patches"].numpy())
        np.testing.assert_array_equal(one.strips[2].pictures, expected)
    assert gather_maps(cache, found.patches, students, rows[:0]) == ()
