"""A teacher's text tower: texts in the space of its summaries."""

from __future__ import annotations

from typing import Any

import open_clip
import pytest
import torch

from phistill.demo.teachers import text_summaries
from phistill.errors import TeacherError
from phistill.pipeline.teachers.runner import TeacherRunner
from phistill.pipeline.teachers.spec import TeacherSpec

TEXTS = ["a brown cat", "a house"]


def test_texts_are_what_open_clip_itself_makes_of_them() -> None:
    teacher: Any = TeacherSpec.parse("open_clip:ViT-S-32/none?random=3").build()
    found = teacher.text_features(TEXTS)
    with torch.inference_mode():
        tokens = open_clip.get_tokenizer("ViT-S-32")(TEXTS)
        expected = teacher._clip.encode_text(tokens, normalize=True)
    torch.testing.assert_close(found, expected)
    assert found.shape == (2, teacher.features(torch.zeros(1, 3, 224, 224)).summary.shape[1])


def test_a_teacher_with_other_options_has_the_same_texts() -> None:
    teacher = TeacherSpec.parse("demo:clip?grid=2x2").build()
    torch.testing.assert_close(teacher.text_features(TEXTS), text_summaries(TEXTS))


@pytest.mark.parametrize("spec", ["demo:ssl", "timm:test_vit?random=0"])
def test_a_teacher_without_a_text_tower_says_so(spec: str) -> None:
    with pytest.raises(TeacherError, match="has no text tower"):
        TeacherSpec.parse(spec).build().text_features(TEXTS)


def test_an_extraction_does_not_keep_the_text_tower() -> None:
    teacher = TeacherSpec.parse("demo:clip").build()
    TeacherRunner("clip", "demo:clip", teacher, torch.device("cpu"))
    with pytest.raises(TeacherError, match="has no text tower"):
        teacher.text_features(TEXTS)
