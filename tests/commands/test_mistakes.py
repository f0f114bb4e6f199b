"""Mistakes of typing cost no import of torch, and the nearest name is suggested."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from phistill.cache import Cache
from phistill.stats import fit_stats
from phistill.train import TrainConfig, train
from tests.conftest import build_cache

CacheFactory = Callable[..., Cache]

TINY: dict[str, Any] = {
    "student_options": {"depth": 1, "embed_dim": 12, "num_heads": 1, "patch_size": 8},
    "head_width": 8,
    "num_steps": 1,
    "tensorboard": False,
}
SET = {
    "student_options": "{depth=1,embed_dim=12,num_heads=1,patch_size=8}",
    "head_width": 8,
    "num_steps": 1,
}
"""The same on the command line."""

PAGE = Path(__file__).parents[2] / "docs/reference/commands.md"
WITHOUT_TORCH = """
import sys
from phistill.__main__ import main
sys.argv = ["phistill", *{arguments!r}]
try:
    main()
finally:
    print(sorted({{"torch", "timm", "transformers"}} & set(sys.modules)))
"""


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ("train CACHE --out NEW --set epoch=3", "Did you mean epochs?"),
        ("train CACHE --out NEW --set learning_rate=1", "Did you mean lr or"),
        ("train CACHE --out NEW --set summary_loss=cosin", "Did you mean cosine?"),
        ("train CACHE --out NEW --epoch 3", "Did you mean --epochs?"),
        ("train CACHE --out NEW --student vit_tinyy_patch16_224", "mean vit_tiny_patch16_224"),
        ("train CACHE --out NEW --device cudaa", "write auto, cpu, cuda, cuda:1 or mps"),
        ("extract IMAGEZ --cache NEW --teacher demo:clip", "do not exist"),
        ("extract IMAGES --cache NEW --teacher demo:clp", "Did you mean clip?"),
        ("extract IMAGES --cache NEW --teacher tim:vit_small_patch16_224", "Did you mean timm?"),
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
        ("trian CACHE", "Did you mean 'train'?"),
        ("extract CACHE --cache NEW --teacher demo:clip", "is a cache, where images are wanted"),
        ("extract EMPTY --cache NEW --teacher demo:clip", "empty holds no image"),
        ("extract IMAGES --cache NEW --teacher clip", "Did you mean demo:clip?"),
        ("extract IMAGES --cache NEW --teacher a=vit_tiny_patch16_224", "a=timm:vit_tiny_patch"),
        ("extract IMAGES --cache NEW --teacher timm/resnet18.a1", "Did you mean timm:resnet18.a1?"),
        ("extract IMAGES --cache NEW --teacher ViT-B-32/openai", "mean open_clip:ViT-B-32/openai?"),
        ("extract IMAGES --cache NEW --teacher demo:clip?rando=1", "Did you mean random?"),
        ("extract IMAGES --cache NEW --teacher timm:resnet18?siz=64", "Did you mean size?"),
        ("plan IMAGEZ --teacher demo:clip", "Did you mean images?"),
        ("train CACHE --out NEW --patch-loss mse", "Did you mean --set patch_loss=VALUE"),
        ("train CACHE --out NEW --student dinov2", "Did you mean vit_base_patch14_dinov2 or"),
        ("train CACHE --out CACHE", "cache is a cache. Choose another --out"),
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


TEN = re.findall(r"^\| `phistill ([^`]+)` \| `([^`]+)` \|", PAGE.read_text("utf-8"), re.MULTILINE)


@pytest.fixture(scope="module")
def desk(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the page's mistakes are made beside: images, notes, two caches and a run."""
    desk = tmp_path_factory.mktemp("desk")
    for name in ("photos/a.png", "notes/a.txt"):
        (desk / name).parent.mkdir()
        (desk / name).write_bytes(b"x")
    build_cache(desk / "unfitted.cache")
    cache = build_cache(desk / "my.cache")
    fit_stats(cache)
    train(cache, desk / "runs/a", TrainConfig(student="vit_tiny_patch16_224", **TINY))
    return desk


def test_the_page_has_ten_mistakes() -> None:
    assert len(TEN) == 10


@pytest.mark.parametrize(("typed", "words"), TEN)
def test_the_commonest_mistakes_are_answered_with_the_next_step_and_without_torch(
    desk: Path, typed: str, words: str
) -> None:
    before = sorted(desk.rglob("*"))
    set_so = " ".join(f"--set {key}={value}" for key, value in SET.items())
    of_the_run = f" --student vit_tiny_patch16_224 {set_so}" if "runs/a" in typed else ""
    codes = {"unfitted.cache": 1, "runs/a": 1}
    code = next((code for word, code in codes.items() if word in typed), 2)
    assert_refused((typed + of_the_run).split(), code, words, folder=desk)
    assert sorted(desk.rglob("*")) == before


def assert_refused(
    typed: list[str], exit_code: int, words: str, missing: str = "", folder: Path | None = None
) -> None:
    """The command ends so, with ``words`` on stderr, and none of the large libraries is loaded."""
    hidden = f"import sys; sys.modules.update(dict.fromkeys({missing.split()!r}))\n"
    ended = subprocess.run(
        [sys.executable, "-c", hidden + WITHOUT_TORCH.format(arguments=typed)],
        capture_output=True, text=True, check=False, cwd=folder,
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
