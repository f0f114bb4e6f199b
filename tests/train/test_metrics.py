"""Where the numbers of a run go."""

from __future__ import annotations

import json
import os
import resource
import signal
import sys
import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from phistill.cache import Cache
from phistill.cache.storage.publish import PublishError
from phistill.compute.signals import Interrupted
from phistill.train import Progress, TrainConfig, train
from phistill.train.metrics import JsonLines, read_metrics

CLIENT = textwrap.dedent("""
    import json, os

    def init(**arguments):
        note("init", {key: arguments[key] for key in ("id", "name", "resume")})
        return Run()

    class Run:
        def log(self, values, step):
            note("log", [step, sorted(values)])

        def finish(self):
            note("finish", None)

    def note(*what):
        with open(os.environ["NOTES"], "a") as file:
            file.write(json.dumps(what) + "\\n")
""")
"""Of W&B, what a run calls, writing down how."""


@pytest.fixture
def notes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str], list[Any]]]:
    (tmp_path / "client").mkdir()
    (tmp_path / "client" / "wandb.py").write_text(CLIENT)
    monkeypatch.syspath_prepend(tmp_path / "client")
    monkeypatch.setenv("NOTES", str(tmp_path / "notes"))

    def of(name: str) -> list[Any]:
        lines = map(json.loads, (tmp_path / "notes").read_text().splitlines())
        return [value for kind, value in lines if kind == name]

    yield of
    sys.modules.pop("wandb", None)


def test_runs_of_one_name_are_not_continued_by_one_another_at_wandb(
    notes: Callable[[str], list[Any]],
    fitted_cache: Cache,
    make_config: Callable[..., TrainConfig],
    tmp_path: Path,
) -> None:
    config = make_config(num_steps=3, wandb=True)

    def stop(at: Progress) -> None:
        if at.step == 2:
            os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(Interrupted):
        train(fitted_cache, tmp_path / "one" / "seed=0", config, progress=stop)
    train(fitted_cache, tmp_path / "one" / "seed=0", config)
    train(fitted_cache, tmp_path / "two" / "seed=0", config)
    first, again, other = notes("init")
    assert first["id"] == again["id"] != other["id"]
    assert {first["name"], other["name"]} == {"seed=0"}
    assert [step for step, names in notes("log") if "train/total" in names] == [1, 2, 3, 1, 2, 3]
    assert len(notes("finish")) == 3


def test_a_log_that_cannot_be_written_names_its_path_and_is_closed(tmp_path: Path) -> None:
    log = JsonLines(tmp_path, first_step=0)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100, before[1]))
    try:
        log.write("train", 1, {"total": 1.0})
        with pytest.raises(PublishError, match=r"metrics\.jsonl could not be written .*bytes"):
            log.write("train", 2, {"text": "x" * 100})
        log.close()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    steps = [line["step"] for line in read_metrics(tmp_path)]
    assert steps == [1]  # the torn second line is left out
