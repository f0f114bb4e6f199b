"""A teacher that breaks its contract is told how; one that keeps it is described."""

from __future__ import annotations

import json

import pytest

from phistill.pipeline.teachers.check import check_teacher, render


def test_a_teacher_is_described_with_its_shapes_and_bytes() -> None:
    report = check_teacher("timm:vit_tiny_patch16_224?random=0&size=64x96", "cpu")
    assert report.problems == ()
    assert report.grid == (4, 6)
    assert [(kind.kind, kind.row_shape) for kind in report.kinds] == [
        ("patches", (24, 192)), ("summary", (192,)),
    ]  # fmt: skip
    assert report.row_bytes == 24 * 192 * 2 + 192 * 4
    text = render(report)
    assert "patches    24 x 192 float32" in text
    assert "Ready to be used." in text
    json.dumps(report.to_dict())


@pytest.mark.parametrize(
    ("how", "problem"),
    [
        ("random", "not deterministic"),
        ("nan", "NaN or infinite"),
        ("large", "more than float16 holds"),
        ("blind", "the same values"),
        ("identity", "differs from call to call"),
        ("pair", "one image alone fails"),
    ],
)
def test_what_breaks_the_contract_is_a_problem_with_a_remedy(
    tiny: str, how: str, problem: str
) -> None:
    report = check_teacher(f"module:bad_teachers:build?how={how}", "cpu")
    assert any(problem in text for text in report.problems), report.problems
    assert "Not ready." in render(report)
