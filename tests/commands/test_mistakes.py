"""Mistakes of typing cost no import of torch, and the nearest name is suggested."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from phistill.cache import Cache

CacheFactory = Callable[..., Cache]

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
        ("train CACHE --out NEW --epoch 3", "Did you mean '--epochs'?"),
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
    ],
)  # fmt: skip
def test_what_is_misspelt_is_refused_before_torch_is_loaded(
    make_cache: CacheFactory, tmp_path: Path, arguments: str, words: str
) -> None:
    cache = make_cache().path.rename(tmp_path / "cache")
    for folder in ("images", "run"):
        (tmp_path / folder).mkdir()
    (tmp_path / "images" / "x.png").write_bytes(b"x")
    places = {
        name: tmp_path / name.lower() for name in ("CACHES", "NEW", "IMAGES", "IMAGEZ", "RUNS")
    }
    places["CACHE"] = cache
    typed = [str(places.get(word, word)) for word in arguments.split()]
    ended = subprocess.run(
        [sys.executable, "-c", WITHOUT_TORCH.format(arguments=typed)],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert ended.returncode == 2, ended.stderr
    assert words in ended.stderr
    assert ended.stdout.splitlines()[-1] == "[]"
