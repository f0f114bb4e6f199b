"""The licence of a teacher's weights is recorded where something states it, and never guessed."""

from __future__ import annotations

from pathlib import Path

import pytest
from msgspec.structs import replace

from phistill.cache import TeacherInfo
from phistill.errors import UsageError
from phistill.pipeline import CacheSettings, extract
from phistill.pipeline.teachers.models.weights import licence_of_card
from phistill.pipeline.teachers.spec import TeacherSpec
from phistill.report.inspection import describe, render
from phistill.report.terminal import licences_text

SETTINGS = CacheSettings(pixel_size=0, shard_rows=8)


def test_a_cache_records_what_the_source_or_the_user_states(
    folder: Path, tiny: str, tmp_path: Path
) -> None:
    teachers = ["demo:mask", f"own={tiny}?licence=mit", f"mute={tiny}"]
    cache = extract(folder, tmp_path / "c", teachers, settings=SETTINGS).cache
    found = {name: cache.teacher(name).licence for name in cache.teachers}
    assert found == {"mask": "apache-2.0", "own": "mit", "mute": ""}
    text = render(describe(cache))
    assert "licence: apache-2.0" in text
    assert "licence: unknown: check the model card" in text


def test_a_licence_is_no_part_of_what_a_teacher_is(folder: Path, tiny: str, tmp_path: Path) -> None:
    extract(folder, tmp_path / "c", [f"t={tiny}?licence=mit"], settings=SETTINGS)
    again = extract(folder, tmp_path / "c", [f"t={tiny}"])
    assert again.num_shards == 0
    assert again.cache.teacher("t").licence == "mit"


@pytest.mark.parametrize(
    ("card", "expected"),
    [
        ("---\nlicense: mit\ntags: [a]\n---\n# A model\n", "mit"),
        ("---\nlicense: other\nlicense_name: dinov3-license\n---\n", "dinov3-license"),
        ("---\nlicense: 'apache-2.0'\n---\n", "apache-2.0"),
        ("# A model\nlicense: mit\n", None),
        ("---\nbroken", None),
        ("", None),
    ],
)
def test_a_model_card_states_it_in_its_front_matter_only(
    tmp_path: Path, card: str, expected: str | None
) -> None:
    (tmp_path / "README.md").write_text(card)
    assert licence_of_card(tmp_path) == expected
    assert licence_of_card(tmp_path / "missing") is None


def test_the_bundled_teachers_have_the_licence_of_the_project() -> None:
    for name in ("clip", "ssl", "mask"):
        assert TeacherSpec.parse(f"demo:{name}?random=0").build().licence == "apache-2.0"


def test_the_line_for_a_person_names_every_teacher() -> None:
    text = licences_text({"a": "mit", "b": None})
    assert text == "Licences: mit (a), unknown (b): check the model card."


def test_a_licence_as_long_as_a_text_is_refused() -> None:
    info = TeacherInfo(name="t", grid=(1, 1), widths={"patches": 4})
    with pytest.raises(UsageError, match="a name of at most 200 letters"):
        replace(info, licence="x" * 201)
