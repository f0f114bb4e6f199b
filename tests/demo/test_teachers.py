"""The bundled teachers: they load, have the promised shapes, and do what they were trained for."""

import numpy as np
import pytest
import torch

from phistill.demo import task_scores
from phistill.demo.captions import Tokenizer, caption, vocabulary
from phistill.demo.making.train_ssl import vicreg_loss
from phistill.demo.matte import PATCH, cells
from phistill.demo.pictures import BUNDLED, GREY, Augmentation, augmented, read_pictures
from phistill.demo.teachers import (
    FOLDER,
    NAMES,
    build,
    matte_decoder,
    read_settings,
    text_summaries,
)
from phistill.errors import UsageError
from phistill.pipeline.teachers.contract import Teacher

HELD_OUT = read_pictures(BUNDLED, split="heldout", side=60)
SHAPES = {"clip": ((6, 6, 128), 128), "ssl": ((6, 6, 160), 160), "mask": ((12, 12, 188), None)}


def images_for(teacher: Teacher, n: int) -> torch.Tensor:
    """The first n held-out drawings over grey, normalised as the teacher wants them."""
    preprocessing = teacher.preprocessing()
    side = preprocessing.size[0]
    squares = read_pictures(BUNDLED, split="heldout", side=side).squares[:n].float() / 255
    x = squares[:, :3] + (1 - squares[:, 3:]) * GREY
    mean, std = torch.tensor(preprocessing.mean), torch.tensor(preprocessing.std)
    return (x - mean[:, None, None]) / std[:, None, None]


@pytest.mark.parametrize("name", NAMES)
def test_each_teacher_has_its_grid_width_and_summary(name: str) -> None:
    teacher = build(name, {})
    features = teacher.features(images_for(teacher, 4))
    grid, summary = SHAPES[name]
    assert features.patches.shape == (4, *grid)
    assert (features.summary is None) == (summary is None)
    assert features.summary is None or features.summary.shape == (4, summary)
    assert features.registers is None


def test_the_registers_of_ssl_come_when_asked_for() -> None:
    teacher = build("ssl", {"registers": "true"})
    registers = teacher.features(images_for(teacher, 4)).registers
    assert registers is not None
    assert registers.shape == (4, 4, 160)
    with pytest.raises(UsageError, match="registers"):
        build("mask", {"registers": "true"})


def test_clip_lives_on_the_unit_sphere_in_patches_and_summary() -> None:
    teacher = build("clip", {})
    features = teacher.features(images_for(teacher, 4))
    assert features.summary is not None
    for x in (features.patches, features.summary):
        np.testing.assert_allclose(x.norm(dim=-1), 1, atol=1e-5)  # float32 normalisation


def test_the_teachers_differ_in_size_mean_std_and_by_ten_in_spread() -> None:
    teachers = [build(name, {}) for name in NAMES]
    assert len({t.preprocessing().size for t in teachers}) == 3
    assert len({t.preprocessing().mean for t in teachers}) == 3
    assert len({t.preprocessing().std for t in teachers}) == 3
    phi = []
    for teacher in teachers:
        patches = teacher.features(images_for(teacher, 64)).patches.flatten(0, 2)
        phi.append(float(patches.var(dim=0).mean().sqrt()))
    assert max(phi) / min(phi) > 10


@pytest.mark.parametrize("name", NAMES)
def test_random_weights_are_another_teacher_and_the_same_for_the_same_seed(name: str) -> None:
    trained, one, again = (
        build(name, {}),
        build(name, {"random": "1"}),
        build(name, {"random": "1"}),
    )
    assert one.identity() == again.identity()
    assert one.identity()["weights_sha256"] != trained.identity()["weights_sha256"]
    assert trained.identity()["source"] == "demo"


def test_an_unknown_teacher_or_option_is_named() -> None:
    with pytest.raises(UsageError, match="demo:dino does not exist; choose one of clip, ssl, mask"):
        build("dino", {})
    with pytest.raises(UsageError, match="size"):
        build("clip", {"size": "96"})


def test_the_shipped_weights_stay_within_twelve_megabytes() -> None:
    assert sum(f.stat().st_size for f in FOLDER.glob("*.safetensors")) < 12_000_000


@pytest.mark.parametrize("name", NAMES)
def test_the_settings_say_what_was_done(name: str) -> None:
    settings = read_settings(name)
    assert settings["background"] == [128, 128, 128]
    assert settings["training"]["seconds"] > 60
    assert settings["training"]["images"] > 4000


def test_clip_finds_the_words_of_held_out_drawings_far_better_than_chance() -> None:
    teacher = build("clip", {})
    summary = teacher.features(images_for(teacher, 150)).summary
    assert summary is not None
    captions = [caption(n, f) for n, f in zip(HELD_OUT.names, HELD_OUT.folders, strict=True)][:150]
    scores = task_scores.text_retrieval(summary.numpy(), text_summaries(captions).numpy(), captions)
    assert scores["image to text R@10"].low > 0.15  # chance is below 0.1


def test_mask_decodes_held_out_mattes_better_than_calling_everything_foreground() -> None:
    teacher = build("mask", {})
    patches = teacher.features(images_for(teacher, 100)).patches.flatten(1, 2).numpy()
    weight, bias = (t.numpy() for t in matte_decoder())
    alpha = cells(HELD_OUT.squares[:100, 3].float() / 255).numpy()
    decoded = task_scores.matte_iou(task_scores.decode_matte(patches, weight, bias), alpha)
    everything = task_scores.matte_iou(np.ones_like(alpha), alpha)
    assert decoded.low > everything.high


def test_ssl_recognises_changed_drawings() -> None:
    teacher = build("ssl", {})
    side = teacher.preprocessing().size[0]
    changes = Augmentation(scale=(0.7, 1.0), flip=True, random_background=0.5)
    squares = read_pictures(BUNDLED, split="heldout", side=side).squares[:100]
    views, _ = augmented(squares, side, changes, torch.Generator().manual_seed(0))
    mean, std = (
        torch.tensor(v)[:, None, None]
        for v in (teacher.preprocessing().mean, teacher.preprocessing().std)
    )
    changed = teacher.features((views - mean) / std).summary
    original = teacher.features(images_for(teacher, 100)).summary
    assert changed is not None
    assert original is not None
    centre = original.mean(dim=0)
    scores = task_scores.view_matching((changed - centre).numpy(), (original - centre).numpy())
    assert scores["R@10"].low > 0.3  # chance is 0.1


def test_captions_become_ids_and_unknown_words_are_left_out() -> None:
    words = vocabulary(["red cat", "red dog", "red cat"], min_count=2)
    tokenizer = Tokenizer(tuple(words), context=4)
    assert words == ["cat", "red"]
    assert tokenizer(["red zebra cat", ""]).tolist() == [[2, 1, 3, 0], [3, 0, 0, 0]]
    assert tokenizer(["red cat red cat red"]).tolist() == [[2, 1, 2, 3]]
    assert int(tokenizer(["red cat"]).max()) == tokenizer.vocab_size - 1


def test_augmentation_without_changes_returns_the_drawing_over_grey() -> None:
    still = Augmentation(random_background=0.0)
    images, alpha = augmented(HELD_OUT.squares[:3], 60, still, torch.Generator().manual_seed(0))
    squares = HELD_OUT.squares[:3].float() / 255
    # grid_sample interpolates at pixel centres up to float32 rounding of the coordinates
    torch.testing.assert_close(alpha, squares[:, 3], atol=1e-4, rtol=0)
    wanted = squares[:, :3] + (1 - squares[:, 3:]) * GREY
    torch.testing.assert_close(images, wanted, atol=1e-4, rtol=0)


def test_vicreg_of_two_views_is_the_paper_s_loss_up_to_the_factor_on_the_spread_terms() -> None:
    rng = torch.Generator().manual_seed(0)
    a, b = (torch.randn(32, 8, generator=rng, dtype=torch.float64) for _ in range(2))

    def variance(z: torch.Tensor) -> torch.Tensor:
        return torch.relu(1 - (z.var(dim=0) + 1e-4).sqrt()).mean()

    def covariance(z: torch.Tensor) -> torch.Tensor:
        c = torch.cov(z.T)
        return (c.square().sum() - c.diagonal().square().sum()) / z.shape[1]

    spread = [25 * variance(z) + covariance(z) for z in (a, b)]
    wanted = 25 * (a - b).square().mean() + (spread[0] + spread[1]) / 2
    torch.testing.assert_close(vicreg_loss([a, b]), wanted)


def test_the_decoder_fits_the_tokens_of_mask() -> None:
    weight, bias = matte_decoder()
    assert weight.shape == (PATCH * PATCH, 188)
    assert bias.shape == (PATCH * PATCH,)
