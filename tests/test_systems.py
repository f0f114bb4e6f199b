"""What works without the calls that macOS and Windows do not have: each command in a process from
which they are taken (tests/systems/sitecustomize.py). That is not those systems, but what of them
this project uses by name. README.md has the table of what was tried how."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from phistill.cache import Cache
from phistill.cache import open as open_cache

CacheFactory = Callable[..., Cache]
HERE = Path(__file__).parent
BOTH = pytest.mark.parametrize("system", ["macos", "windows"])
STUDENT = "student_options={patch_size=4, depth=1, embed_dim=24, num_heads=2}"


def phistill(system: str, *arguments: object) -> subprocess.CompletedProcess[str]:
    """A command as ``system`` would run it."""
    path = os.pathsep.join([str(HERE / "systems"), str(HERE / "pipeline")])
    environment = {**os.environ, "PYTHONPATH": path, "PHISTILL_TEST_SYSTEM": system}
    return subprocess.run(
        [sys.executable, "-m", "phistill", *map(str, arguments)],
        env=environment, capture_output=True, text=True, check=False,
    )  # fmt: skip


@pytest.fixture
def fitted(make_cache: CacheFactory) -> Cache:
    from phistill.stats import fit_stats

    cache = make_cache()
    fit_stats(cache)
    return cache


@BOTH
def test_the_calls_are_really_gone(system: str) -> None:
    code = "import os; print(hasattr(os, 'preadv'), hasattr(os, 'posix_fadvise'))"
    environment = {**os.environ, "PYTHONPATH": str(HERE / "systems")}
    for there, name in (("True True", ""), ("False False", system)):
        given = environment | {"PHISTILL_TEST_SYSTEM": name} if name else dict(os.environ)
        done = subprocess.run(
            [sys.executable, "-c", code], env=given, capture_output=True, text=True, check=True
        )
        assert done.stdout.strip() == there


@BOTH
def test_a_cache_is_looked_at_checked_and_read(fitted: Cache, system: str) -> None:
    done = phistill(system, "inspect", fitted.path, "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["complete"]
    done = phistill(system, "verify", fitted.path)
    assert done.returncode == 0, done.stderr
    assert "is whole" in done.stdout
    shard = next(path for path in (fitted.path / "teachers").rglob("c/0/*") if path.is_file())
    shard.write_bytes(shard.read_bytes()[:-1] + b"x")
    assert phistill(system, "verify", fitted.path).returncode == 1


def train(system: str, cache: Cache, run: Path) -> subprocess.CompletedProcess[str]:
    options = ["--set", STUDENT, "--set", "head_width=16", "--set", "tensorboard=false"]
    options += ["--student", "vit_tiny_patch16_224", "--epochs", "1", "--batch-size", "8"]
    return phistill(system, "train", cache.path, "--out", run, "--device", "cpu", *options)


def test_a_student_is_trained_on_macos_and_evaluated_and_exported_on_both(
    fitted: Cache, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    done = train("macos", fitted, run)
    assert done.returncode == 0, done.stderr
    for system in ("macos", "windows"):
        done = phistill(system, "evaluate", run, "--json", "--device", "cpu")
        assert done.returncode == 0, done.stderr
        assert json.loads(done.stdout)
        done = phistill(system, "export", run, tmp_path / system)
        assert done.returncode == 0, done.stderr
        assert (tmp_path / system / "model.safetensors").exists()


@BOTH
def test_the_doctor_answers_and_says_what_the_system_lacks(fitted: Cache, system: str) -> None:
    done = phistill(system, "doctor", "--cache", fitted.path, "--json")
    findings = json.loads(done.stdout)
    assert done.returncode == 0, findings
    said = [line["text"] for line in findings if line["topic"] == "system"]
    assert any("no file locks" in text for text in said) == (system == "windows")
    assert any("has its statistics" in line["text"] for line in findings)


@pytest.mark.parametrize(
    "command",
    [
        ("fit-stats", "CACHE", "--max-images", "8"),
        ("remove-images", "CACHE", "image-00003"),
        ("remove-teacher", "CACHE", "a"),
        ("extract", "IMAGES", "--cache", "NEW", "--teacher", "module:tiny_teacher:build"),
    ],
)
def test_what_would_write_a_cache_says_what_is_missing(
    fitted: Cache, tmp_path: Path, command: tuple[str, ...]
) -> None:
    from PIL import Image

    images = tmp_path / "images"
    images.mkdir()
    Image.new("RGB", (32, 32)).save(images / "x.png")
    places = {"CACHE": fitted.path, "IMAGES": images, "NEW": tmp_path / "new"}
    done = phistill("windows", *(places.get(word, word) for word in command))
    assert done.returncode == 1, done.stderr
    assert "no file locks (fcntl)" in done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "new").exists()
    assert open_cache(fitted.path).teachers == fitted.teachers


def test_a_run_needs_locks_too(fitted: Cache, tmp_path: Path) -> None:
    done = train("windows", fitted, tmp_path / "run")
    assert done.returncode == 1
    assert "no file locks (fcntl)" in done.stderr


def test_macos_extracts_and_fits(tmp_path: Path) -> None:
    from PIL import Image

    images = tmp_path / "images"
    images.mkdir()
    for number in range(6):
        Image.new("RGB", (32, 32), (40 * number, 10, 10)).save(images / f"{number}.png")
    new = tmp_path / "new.cache"
    options = ["--teacher", "t=module:tiny_teacher:build", "--pixel-size", "16"]
    for decode in ("threads", "processes"):
        cache = f"{new}-{decode}"
        done = phistill("macos", "extract", images, "--cache", cache, *options, "--decode", decode)
        assert done.returncode == 0, done.stderr
        assert phistill("macos", "verify", cache).returncode == 0
