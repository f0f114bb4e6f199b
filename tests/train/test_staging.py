"""A run that reads from a near disk is the same run."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import CliRunner

import phistill.cache as store
from phistill.cache import Cache
from phistill.cache.upkeep.remove import remove_images
from phistill.cli import main
from phistill.stats import fit_stats
from phistill.train import TrainConfig, evaluate, train
from phistill.train import checkpoint as checkpoints

Config = Callable[..., TrainConfig]


def test_a_staged_run_ends_in_the_same_bits_and_remembers_the_cache(
    fitted_cache: Cache, make_config: Config, tmp_path: Path
) -> None:
    config = make_config(num_steps=4, teachers=("a", "c"), memory_bytes=0)
    plain = train(fitted_cache, tmp_path / "plain", config)
    staged = train(fitted_cache, tmp_path / "staged", config, stage=tmp_path / "near")
    assert staged.losses == plain.losses
    (near,) = (tmp_path / "near").iterdir()
    assert store.open(near).teachers == ("a", "c")
    facts = checkpoints.load(tmp_path / "staged", 4).facts
    assert [one["path"] for one in facts["caches"]] == [str(fitted_cache.path.resolve())]
    assert evaluate(tmp_path / "staged", untrained=False)


def test_the_rows_are_read_from_the_near_disk(
    make_cache: Callable[..., Cache], make_config: Config, tmp_path: Path
) -> None:
    caches = [make_cache(name=name, seed=n) for n, name in enumerate(("one", "two"))]
    for cache in caches:
        fit_stats(cache)
    seen = []

    def cut_the_source(done: int, total: int) -> None:
        seen.append(done)
        if done == total:
            for cache in caches[: 1 + (len(seen) > 12)]:
                for path in (cache.path / "pixels" / "c").rglob("0"):
                    if path.is_file():
                        path.unlink()

    config = make_config(num_steps=3, memory_bytes=0)
    with pytest.warns(UserWarning, match="another of the caches"):
        result = train(
            [cache.path for cache in caches],
            tmp_path / "run",
            config,
            stage=tmp_path / "near",
            stage_progress=cut_the_source,
        )
    assert result.losses
    assert len(list((tmp_path / "near").iterdir())) == 2
    # A finished run reads nothing, so nothing is copied for it.
    for path in (tmp_path / "near").iterdir():
        path.rename(tmp_path / path.name)
    with pytest.warns(UserWarning, match="another of the caches"):
        train([cache.path for cache in caches], tmp_path / "run", config, stage=tmp_path / "near")
    assert not list((tmp_path / "near").iterdir())


def test_what_comes_next_is_fit_stats_while_statistics_are_missing_or_stale(
    make_cache: Callable[..., Cache], tmp_path: Path
) -> None:
    cache = make_cache(num_rows=60)

    def next_step(dest: str) -> str:
        arguments = ["stage", str(cache.path), str(tmp_path / dest)]
        return CliRunner().invoke(main, arguments).output.splitlines()[-1]

    assert "Next: phistill fit-stats" in next_step("never")
    fit_stats(cache)
    assert "Next: phistill train" in next_step("fitted")
    remove_images(cache, ["image-00007"])
    assert "Next: phistill fit-stats" in next_step("stale")


def test_the_command_stages_whole_caches_and_parts(
    make_cache: Callable[..., Cache], tmp_path: Path
) -> None:
    cache = make_cache(num_rows=60)
    fit_stats(cache)

    def run(*args: str) -> tuple[int, str]:
        result = CliRunner().invoke(main, list(args))
        return result.exit_code, result.output

    whole, part = str(tmp_path / "whole"), str(tmp_path / "part")
    code, text = run("stage", str(cache.path), whole, "--teachers", "a")
    assert code == 0, text
    assert "kB copied" in text
    assert "phistill train" in text
    assert "nothing to do" in run("stage", str(cache.path), whole, "--teachers", "a")[1]
    code, text = run("stage", str(cache.path), part, "--max-bytes", "20kB")
    assert code == 0, text
    assert "phistill fit-stats" in text
    assert run("fit-stats", part)[0] == 0
    for wrong in ("20 elephants", "-5", "1.2.3G"):
        code, text = run("stage", str(cache.path), str(tmp_path / "x"), "--max-bytes", wrong)
        assert code == 2, text
        assert "--max-bytes" in text
