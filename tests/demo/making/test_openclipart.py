"""Reading the package: words, crops, resizing, near-duplicates, on drawings made here."""

from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from phistill.demo.making import openclipart
from phistill.demo.making.build_images import (
    as_table,
    choose,
    held_out_clusters,
    without_duplicates,
)
from phistill.demo.making.duplicates import clusters, perceptual_hash


def disc(colour: tuple[int, int, int], box: tuple[int, int, int, int]) -> Image.Image:
    image = Image.new("RGBA", (64, 64), (0, 0, 0, 0))
    ImageDraw.Draw(image).ellipse(box, fill=(*colour, 255))
    return image


def test_authors_numbers_and_noise_are_not_words() -> None:
    assert openclipart.title_words("bat_orlando_karam_") == ["bat"]
    assert openclipart.title_words("dog_06_drawn_with_strai_02") == ["dog"]
    assert openclipart.title_words("cat_archit_01") == ["cat"]
    assert openclipart.title_words("triumphal_arch_01") == ["triumphal", "arch"]
    assert openclipart.title_words("nicu") == ["nicu"]  # a first word is never an author


def test_cropping_keeps_what_is_visible_and_refuses_what_is_not() -> None:
    cropped = openclipart.crop_to_alpha(disc((255, 0, 0), (10, 20, 40, 50)))
    assert cropped is not None
    assert cropped.size == (31, 31)
    assert openclipart.crop_to_alpha(Image.new("RGBA", (64, 64))) is None
    assert openclipart.crop_to_alpha(disc((9, 9, 9), (10, 10, 14, 14))) is None


def test_shrinking_does_not_let_hidden_colour_bleed_into_the_outline() -> None:
    image = Image.new("RGBA", (400, 400), (0, 255, 0, 0))  # green, but nowhere visible
    ImageDraw.Draw(image).ellipse((40, 40, 360, 360), fill=(255, 0, 0, 255))

    def green_at_the_outline(small: Image.Image) -> int:
        pixels = np.asarray(small).astype(int)
        return int(pixels[..., 1][pixels[..., 3] > 60].max())

    naive = image.split()  # each channel resized by itself, which is what bleeds
    bleeding = Image.merge("RGBA", [c.resize((96, 96), Image.Resampling.LANCZOS) for c in naive])
    assert green_at_the_outline(bleeding) > 100
    assert green_at_the_outline(openclipart.shrink(image)) <= 2  # 8-bit rounding


def test_links_and_stars_are_not_read(tmp_path: Path) -> None:
    for name in ("animals/cat.png", "shapes/stars/star.png", "shapes/ring.png"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        disc((200, 10, 10), (5, 5, 60, 60)).save(tmp_path / name)
    (tmp_path / "shapes/cat.png").symlink_to("../animals/cat.png")
    (tmp_path / "shapes/broken.png").write_bytes(b"no image")
    found = list(openclipart.drawings(tmp_path))
    assert [d.path for d in found] == ["animals/cat.png", "shapes/ring.png"]
    assert (found[0].name, found[0].category) == ("cat", "animals")


def test_the_same_drawing_slightly_changed_hashes_alike_and_another_does_not() -> None:
    one = perceptual_hash(disc((255, 0, 0), (10, 10, 50, 50)))
    near = perceptual_hash(disc((250, 5, 0), (10, 10, 51, 50)))
    far = perceptual_hash(disc((0, 0, 255), (30, 2, 62, 62)))
    assert (one != near).sum() <= 6
    assert (one != far).sum() > 14


def test_clusters_are_transitive_and_numbered_by_first_member() -> None:
    assert clusters(6, iter([(1, 3), (3, 5), (0, 4)])).tolist() == [0, 1, 2, 1, 0, 1]


def test_building_drops_duplicates_and_splits_by_cluster() -> None:
    rng = np.random.default_rng(0)
    boxes = [tuple(int(v) for v in rng.integers(0, 25, 2)) for _ in range(40)]
    found = [
        openclipart.Drawing(
            path=f"a/{i}.png",
            name="disc",
            folders="a",
            category="a",
            rgba=disc((200, 0, 0), (x, y, x + 20 + i % 19, y + 20 + i % 13)),
        )
        for i, (x, y) in enumerate([*boxes, *boxes[:5]])
    ]
    found[40:] = [
        openclipart.Drawing(
            path=f"b/{i}.png", name="disc", folders="b", category="b", rgba=found[i].rgba
        )
        for i in range(5)
    ]
    kept, cluster = without_duplicates(found)
    assert not [d for d in kept if d.path.startswith("b/")]
    chosen = choose(kept, cluster, 20, rng)
    assert chosen.sum() <= 20
    held_out = np.isin(cluster, held_out_clusters(cluster, chosen, 0.3, rng))
    table = as_table(kept, cluster, held_out)
    sides = [
        set(np.array(table["cluster"])[np.array(table["split"]) == s]) for s in ("train", "heldout")
    ]
    assert sides[1]
    assert not sides[0] & sides[1]
