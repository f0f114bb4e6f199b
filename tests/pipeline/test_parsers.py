"""Whatever text is given, our parsers refuse it with a UsageError or understand it."""

from __future__ import annotations

import contextlib
import os

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from phistill.errors import UsageError
from phistill.pipeline.decode.views import View
from phistill.pipeline.teachers.spec import TeacherSpec
from phistill.pipeline.teachers.wrapper import WrapperOptions

EXAMPLES = 15_000 if os.environ.get("PHISTILL_FULL") == "1" else 300
TEXT = st.text(alphabet=st.one_of(st.sampled_from("a1:=?&/.,x-%[]"), st.characters()), max_size=40)


@pytest.mark.guarantee("G20", f"{EXAMPLES:,} fuzzed texts: parsed or refused")
@settings(max_examples=EXAMPLES, deadline=None)
@given(TEXT)
@example("a=b:c?d=%ff")
@example("a:b?" + "&" * 10_000)
def test_a_teacher_is_parsed_or_refused(text: str) -> None:
    with contextlib.suppress(UsageError):
        spec = TeacherSpec.parse(text)
        assert spec.source
        assert spec.model
        WrapperOptions.take(dict(spec.options))


@pytest.mark.guarantee("G20", f"{EXAMPLES:,} fuzzed texts: parsed or refused")
@settings(max_examples=EXAMPLES, deadline=None)
@given(st.one_of(TEXT, TEXT.map(lambda text: f"random-resized-crop?{text}")))
@example("random-resized-crop?scale=nan,1")
@example("random-resized-crop?ratio=1,inf")
def test_a_view_is_parsed_or_refused(text: str) -> None:
    with contextlib.suppress(UsageError):
        view = View.parse(text)
        placed = view.place((30, 20), seed=0, image_id=text, number=0)
        assert placed.box[2] > placed.box[0]


@pytest.mark.guarantee("G20", f"{EXAMPLES:,} fuzzed texts: parsed or refused")
@settings(max_examples=EXAMPLES, deadline=None)
@given(st.sampled_from(["mean", "std", "grid", "pad_from", "interpolation", "resample"]), TEXT)
@example("mean", "nan")
@example("grid", "9" * 5000)
def test_an_option_is_parsed_or_refused(key: str, text: str) -> None:
    with contextlib.suppress(UsageError):
        WrapperOptions.take({key: text})
