"""A view is a function of seed, image, number and size; nothing else moves it."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from phistill.errors import UsageError
from phistill.pipeline.decode.views import Placement, Rendering, View, render

CROP = View("random-resized-crop")
sizes = st.tuples(st.integers(1, 3000), st.integers(1, 3000))


@given(size=sizes, seed=st.integers(0, 2**40), name=st.text(max_size=8), number=st.integers(0, 9))
def test_a_random_crop_lies_inside_and_has_an_area_and_ratio_in_range(
    size: tuple[int, int], seed: int, name: str, number: int
) -> None:
    placed = CROP.place(size, seed=seed, image_id=name, number=number)
    left, top, right, bottom = placed.box
    width, height = right - left, bottom - top
    assert 0 <= left < right <= size[0]
    assert 0 <= top < bottom <= size[1]
    assert not placed.flip
    if min(size) > 100 and max(size) / min(size) < 1.5:
        # Sides are rounded to pixels: at most 1 % at these sizes.
        assert 0.24 < width * height / (size[0] * size[1]) < 1.01
        assert 0.74 < width / height < 1.35
    assert placed == CROP.place(size, seed=seed, image_id=name, number=number)


def test_seed_image_and_number_each_move_a_random_crop() -> None:
    given = {"seed": 1, "image_id": "a", "number": 0}
    places = {
        CROP.place((640, 480), **{**given, **change}).box  # type: ignore[arg-type]
        for change in ({}, {"seed": 2}, {"image_id": "b"}, {"number": 1})
    }
    assert len(places) == 4


def test_a_random_crop_is_the_same_in_every_version() -> None:
    placed = View("random-resized-crop", flip="random").place(
        (640, 480), seed=7, image_id="cats/001.jpg", number=2
    )
    assert placed == Placement((111, 67, 520, 389), flip=False)


def test_areas_and_positions_of_random_crops_are_spread_evenly() -> None:
    places = [CROP.place((1000, 1000), seed=0, image_id=str(i), number=0).box for i in range(2000)]
    areas = np.array([(r - left) * (b - top) / 1e6 for left, top, r, b in places])
    generator = np.random.default_rng(0)
    share = generator.uniform(0.25, 1.0, 100_000)
    ratio = np.exp(generator.uniform(np.log(0.75), np.log(4 / 3), 100_000))
    fits = (share * ratio <= 1) & (share / ratio <= 1)  # what does not fit is drawn again
    # Four standard errors of 2,000 draws.
    assert abs(areas.mean() - share[fits].mean()) < 4 * share[fits].std() / np.sqrt(2000)
    free = [(left, 1000 - (right - left)) for left, _, right, _ in places if right - left < 990]
    positions = np.array([left / room for left, room in free])
    assert abs(positions.mean() - 0.5) < 0.03


def test_a_random_flip_takes_half_of_the_images() -> None:
    view = View(flip="random")
    flips = [view.place((10, 10), seed=0, image_id=str(i), number=0).flip for i in range(1000)]
    # Four standard deviations of a fair coin.
    assert abs(sum(flips) - 500) < 4 * np.sqrt(250)


def test_a_flip_mirrors_the_rendered_box() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (12, 20, 3), np.uint8)
    image, rendering = Image.fromarray(pixels), Rendering((6, 8), "bicubic")
    plain = render(image, Placement((2, 1, 18, 11)), rendering)
    np.testing.assert_array_equal(
        render(image, Placement((2, 1, 18, 11), flip=True), rendering), plain[:, ::-1]
    )


@pytest.mark.parametrize("kind", ["resize", "center-crop"])
def test_the_fixed_views_depend_on_the_size_alone(kind: str) -> None:
    view = View(kind)
    assert view.to_dict() == {"kind": kind}
    for seed in range(3):
        placed = view.place((30, 20), seed=seed, image_id=str(seed), number=seed)
        assert placed == Placement(view.box((30, 20)), centred=kind == "center-crop")


@pytest.mark.parametrize(
    "text",
    ["resize", "center-crop?flip=yes", "random-resized-crop?scale=0.4,1&ratio=0.7,1.1&flip=random"],
)
def test_a_view_survives_its_dict_and_its_text(text: str) -> None:
    view = View.parse(text)
    assert View.parse(str(view)) == view
    assert View.from_dict(view.to_dict()) == view
    assert "?" not in text or view != View(view.kind)


@pytest.mark.parametrize(
    "text",
    ["zoom", "resize?flip=maybe", "resize?x=1", "random-resized-crop?scale=0,1",
     "random-resized-crop?scale=1", "random-resized-crop?ratio=2,1", "resize?flip"],
)  # fmt: skip
def test_what_is_no_view_is_refused(text: str) -> None:
    with pytest.raises(UsageError):
        View.parse(text)


@pytest.mark.parametrize("size", [(70, 41), (41, 70), (20, 31), (64, 64), (400, 20)])
def test_a_centre_crop_is_that_of_torchvision(size: tuple[int, int]) -> None:
    from torchvision.transforms import v2

    pixels = np.random.default_rng(0).integers(0, 256, (size[1], size[0], 3), np.uint8)
    image, view = Image.fromarray(pixels), View("center-crop")
    found = render(
        image,
        view.place(size, seed=0, image_id="", number=0),
        Rendering((32, 32), "bicubic"),
    )
    if max(size) > 16 * min(size):  # a panorama is cropped first
        assert found.shape == (32, 32, 3)
        return
    theirs = v2.CenterCrop(32)(v2.Resize(32, interpolation=v2.InterpolationMode.BICUBIC)(image))
    np.testing.assert_array_equal(found, np.asarray(theirs))
