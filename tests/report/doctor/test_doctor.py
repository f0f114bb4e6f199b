"""The doctor finds what is wrong, says what to do, and touches no network by itself."""

from __future__ import annotations

import json
import os
import socket
import subprocess
from pathlib import Path
from typing import Any

import pytest

from phistill.cache import TeacherInfo
from phistill.report.doctor.examination import doctor
from phistill.report.doctor.findings import Finding, render, to_json
from phistill.report.doctor.installation import _answer


@pytest.fixture(autouse=True)
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: Any) -> None:
        raise AssertionError("the doctor opened a connection")

    monkeypatch.setattr(socket.socket, "connect", refuse)


def problems(found: tuple[Finding, ...]) -> list[Finding]:
    return [one for one in found if one.state == "problem"]


def test_this_installation_is_in_order() -> None:
    found = doctor()
    assert problems(found) == []
    assert {"python", "packages", "device", "cpu", "disk", "decoding", "teachers", "hub"} <= {
        one.topic for one in found
    }
    assert render(found).endswith("Nothing is wrong.")
    assert len(json.loads(to_json(found))) == len(found)


def test_a_cache_without_statistics_names_the_command(make_cache: Any) -> None:
    cache = make_cache(rejects=(3,))
    found = problems(doctor(cache.path))
    assert len(found) == 3
    assert all("phistill fit-stats" in one.text for one in found)
    assert "rejected rows: 1" in render(doctor(cache.path))


def test_missing_shards_and_cut_files_are_found(make_cache: Any) -> None:
    cache = make_cache()
    record = cache.commits("a")[0]
    first = cache.path / next(iter(record.files))
    first.write_bytes(first.read_bytes()[:-1])
    cache.forget_shard("b", 1)
    text = render(doctor(cache.path))
    assert "a: gone or cut: 1 file, " in text
    assert "--repair" in text
    assert "b: 1 of 4 shards are missing" in text


def test_missing_shards_of_imported_features_are_to_be_imported(make_cache: Any) -> None:
    identity = {"source": "imported"}
    a = TeacherInfo(name="a", grid=(2, 2), widths={"patches": 4}, identity=identity)
    cache = make_cache(teachers=[a])
    cache.forget_shard("a", 1)
    (advice,) = (one.advice for one in doctor(cache.path) if "are missing" in one.text)
    assert advice == f"phistill import-features FEATURES --cache {cache.path}"


def test_the_doctor_takes_no_lock_and_writes_nothing_into_a_cache(make_cache: Any) -> None:
    cache = make_cache()
    (cache.path / ".lock").unlink(missing_ok=True)
    before = sorted(path for path in cache.path.rglob("*"))
    doctor(cache.path)
    assert sorted(path for path in cache.path.rglob("*")) == before


def test_who_is_writing_is_named_and_not_disturbed(make_cache: Any) -> None:
    cache = make_cache()
    with cache.writing([0]):
        text = render(doctor(cache.path))
    assert f"it is being written by process {os.getpid()}" in text
    assert "has its statistics" in text or "fit-stats" in text


@pytest.mark.root
@pytest.mark.skipif(os.geteuid() != 0, reason="needs root to mount a folder read-only")
def test_what_is_missing_from_a_read_only_cache_is_found(make_cache: Any) -> None:
    cache = make_cache()
    first = cache.path / next(iter(cache.commits("a")[0].files))
    first.unlink()
    place = str(cache.path)
    if subprocess.run(["mount", "--bind", place, place], check=False).returncode:
        pytest.skip("mounting is not permitted here")
    try:
        subprocess.run(["mount", "-o", "remount,ro,bind", place], check=True)
        text = render(doctor(cache.path))
    finally:
        subprocess.run(["umount", place], check=True)
    assert "cannot be written" in text
    assert "a: gone or cut: 1 file, " in text
    assert "phistill fit-stats" in text


def test_a_part_of_a_cache_that_cannot_be_read_hides_no_other(make_cache: Any) -> None:
    cache = make_cache()
    (index,) = cache.path.rglob("*.parquet")
    index.write_bytes(index.read_bytes()[:-1])
    first = cache.path / next(iter(cache.commits("a")[0].files))
    first.write_bytes(first.read_bytes()[:-1])
    text = render(doctor(cache.path))
    assert f"`phistill verify {cache.path}` lists all of it" in text
    assert "a: gone or cut: 1 file, " in text


def test_what_is_no_cache_and_no_run_is_said(tmp_path: Path) -> None:
    found = problems(doctor(tmp_path / "none", tmp_path))
    assert {one.topic for one in found} == {"cache", "run"}


def test_a_run_that_learnt_from_another_teacher_does_not_fit(
    make_cache: Any, tmp_path: Path
) -> None:
    cache = make_cache()
    run = tmp_path / "run"
    run.mkdir()
    for name, text in (("z", "has no teacher 'z'"), ("a", "is not the one")):
        (run / "config.json").write_text(json.dumps({"teachers": {name: {"grid": [9, 9]}}}))
        assert text in render(doctor(cache.path, run))
    (run / "config.json").write_text(
        json.dumps({"teachers": {"a": cache.teacher("a").fingerprint}})
    )
    assert "holds the teachers it was trained on" in render(doctor(cache.path, run))


def test_a_hub_that_does_not_answer_is_a_problem(monkeypatch: pytest.MonkeyPatch) -> None:
    # A port of this machine that nobody listens on.
    with socket.socket() as reserved:
        reserved.bind(("127.0.0.1", 0))
        monkeypatch.undo()
        found = _answer(f"http://127.0.0.1:{reserved.getsockname()[1]}")
    assert found.state == "problem"
    assert "does not answer" in found.text
