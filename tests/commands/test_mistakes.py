"""Mistakes of typing cost no import of torch, and the nearest name is suggested."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from phistill.cache import Cache
from phistill.stats import fit_stats
from phistill.train import TrainConfig, train

CacheFactory = Callable[..., Cache]

TINY: dict[str, Any] = {
    "student_options": {"depth": 1, "embed_dim": 12, "num_heads": 1, "patch_size": 8},
    "head_width": 8,
    "num_steps": 1,
    "tensorboard": False,
}
WITHOUT_TORCH = """
import sys
from phistill.__main__ import main
sys.argv = ["phistill", *{arguments!r}]
try:
    main()
finally:
    print(sorted({{"torch", "timm"}} & set(sys.modules)))
"""


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ("train CACHES --out NEW", "is not a cache: nothing is there. Did you mean cache?"),
        ("train CACHE --out NEW --teachers aa", "it has: a, b. Did you mean a?"),
        ("train CACHE --out NEW --normalizer phis", "Did you mean phi-s?"),
        ("train CACHE --out NEW --set epoch=3", "Did you mean epochs?"),
        ("train CACHE --out NEW --set learning_rate=1", "Did you mean lr or"),
        ("train CACHE --out NEW --set summary_loss=cosin", "Did you mean cosine?"),
        ("train CACHE --out NEW --epoch 3", "Did you mean --epochs?"),
        ("train CACHE --out NEW --student vit_tinyy_patch16_224", "mean vit_tiny_patch16_224"),
        ("train CACHE --out NEW --device cudaa", "write auto, cpu, cuda, cuda:1 or mps"),
        ("extract IMAGEZ --cache NEW --teacher demo:clip", "do not exist"),
        ("extract IMAGES --cache NEW --teacher demo:clp", "Did you mean clip?"),
        ("extract IMAGES --cache NEW --teacher tim:vit_small_patch16_224", "Did you mean timm?"),
        ("extract IMAGES --cache NEW --teacher timm:vit_smal_patch16_224", "vit_small_patch16_224"),
        ("extract IMAGES --cache NEW --teacher demo:clip --view resise", "Did you mean resize?"),
        ("check-teacher timm:vit_smal_patch16_224", "vit_small_patch16_224"),
        ("evaluate RUNS", "no checkpoint: nothing is there. Did you mean run?"),
        ("evaluate CACHE", "no checkpoint: it is a cache"),
        ("export CACHE NEW", "no checkpoint: it is a cache"),
        ("train CACHE CACHE --out NEW", "is given twice"),
        ("train CACHE --out NEW --set patch_loss=nomod:fn", "there is no module 'nomod'"),
        ("extract IMAGES --cache NEW --teacher module:nomod:fn", "there is no module 'nomod'"),
        ("extract IMAGES --cache NEW --teacher open_clip:ViT-B-33/x", "Did you mean ViT-B-32"),
        ("export RUNS NEW", "no checkpoint: nothing is there"),
        ("report CACHE RUNS", "no checkpoint: nothing is there"),
        ("fit-stats CACHES", "Did you mean cache?"),
        ("trian CACHE", "Did you mean 'train'?"),
        ("extract IMAGEZ --cache NEW --teacher demo:clip", "Did you mean images?"),
        ("extract CACHE --cache NEW --teacher demo:clip", "is a cache, where images are wanted"),
        ("extract EMPTY --cache NEW --teacher demo:clip", "empty holds no image"),
        ("extract IMAGES --cache NEW --teacher clip", "Did you mean demo:clip?"),
        ("extract IMAGES --cache NEW --teacher a=vit_tiny_patch16_224", "a=timm:vit_tiny_patch"),
        ("extract IMAGES --cache NEW --teacher timm/resnet18.a1", "Did you mean timm:resnet18.a1?"),
        ("extract IMAGES --cache NEW --teacher ViT-B-32/openai", "mean open_clip:ViT-B-32/openai?"),
        ("extract IMAGES --cache NEW --teacher demo:clip?rando=1", "Did you mean random?"),
        ("extract IMAGES --cache NEW --teacher timm:resnet18?siz=64", "Did you mean size?"),
        ("plan IMAGEZ --teacher demo:clip", "Did you mean images?"),
        ("train CACHE --out NEW --learning-rate 1", "Did you mean --lr or --set warmup=VALUE?"),
        ("train CACHE --out NEW --patch-loss mse", "Did you mean --set patch_loss=VALUE"),
        ("train CACHE --out NEW --student dinov2", "Did you mean vit_base_patch14_dinov2 or"),
        ("train CACHE --out CACHE", "cache is a cache. Choose another --out"),
        ("train IMAGES --out NEW", "make a cache of them first"),
    ],
)  # fmt: skip
def test_what_is_misspelt_is_refused_before_torch_is_loaded(
    make_cache: CacheFactory, tmp_path: Path, arguments: str, words: str
) -> None:
    cache = make_cache().path.rename(tmp_path / "cache")
    for folder in ("images", "run", "empty"):
        (tmp_path / folder).mkdir()
    (tmp_path / "images" / "x.png").write_bytes(b"x")
    places = {
        name: tmp_path / name.lower()
        for name in ("CACHES", "NEW", "IMAGES", "IMAGEZ", "RUNS", "EMPTY")
    }
    places["CACHE"] = cache
    assert_refused([str(places.get(word, word)) for word in arguments.split()], 2, words)


def assert_refused(typed: list[str], exit_code: int, words: str, missing: str = "") -> None:
    """The command ends so, with ``words`` on stderr, and neither torch nor timm is loaded."""
    hidden = f"import sys; sys.modules.update(dict.fromkeys({missing.split()!r}))\n"
    ended = subprocess.run(
        [sys.executable, "-c", hidden + WITHOUT_TORCH.format(arguments=typed)],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert ended.returncode == exit_code, ended.stderr
    assert words in ended.stderr
    assert ended.stdout.splitlines()[-1] == "[]"


def test_a_forgotten_fit_stats_is_told_before_torch_is_loaded(make_cache: CacheFactory) -> None:
    path = str(make_cache().path)
    words = f"has no statistics of a patches yet. Run `phistill fit-stats {path}`."
    assert_refused(["train", path, "--out", f"{path}.run"], 1, words)


def test_a_cache_that_holds_nothing_out_is_told_before_torch_is_loaded(
    make_cache: CacheFactory, tmp_path: Path
) -> None:
    cache = make_cache(holdout=0.0)
    fit_stats(cache)
    with pytest.warns(UserWarning, match="holds no image out"):
        train(cache, tmp_path / "run", TrainConfig(student="vit_tiny_patch16_224", **TINY))
    words = "has no heldout row of a, b. Add --split train"
    assert_refused(["evaluate", str(tmp_path / "run")], 1, words)
    assert_refused(["evaluate", str(tmp_path / "run"), "--cache", "c"], 2, "c is not a cache")


@pytest.mark.parametrize("command", ["report CACHE", "demo"])
def test_a_plain_install_says_before_the_work_what_a_report_needs(
    make_cache: CacheFactory, tmp_path: Path, command: str
) -> None:
    typed = [str(make_cache().path) if word == "CACHE" else word for word in command.split()]
    words = "needs matplotlib and jinja2. Install the extra: pip install 'phistill[report]'."
    out = tmp_path / "out"
    assert_refused([*typed, "--out", str(out)], 2, words, missing="matplotlib jinja2")
    assert not out.exists()


def test_an_export_into_a_folder_of_other_things_is_refused_before_torch_is_loaded(
    make_cache: CacheFactory, tmp_path: Path
) -> None:
    (tmp_path / "run" / "checkpoints").mkdir(parents=True)
    assert_refused(
        ["export", str(tmp_path / "run"), str(make_cache().path)], 2, "is not an empty folder"
    )
