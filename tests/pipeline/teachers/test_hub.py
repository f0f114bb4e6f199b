"""A hub that does not answer is asked once, and what is on the disk is used as it is."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from huggingface_hub import constants

from phistill.errors import TeacherError
from phistill.pipeline.teachers import spec as spec_module
from phistill.pipeline.teachers.spec import TeacherSpec


@pytest.fixture
def nobody(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A hub at a port where nobody listens."""
    endpoint = "http://127.0.0.1:9"
    monkeypatch.setenv("HF_ENDPOINT", endpoint)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    spec_module.silence.cache_clear()
    yield endpoint
    spec_module.silence.cache_clear()


def test_weights_that_cannot_be_had_say_so_with_what_to_do(nobody: str) -> None:
    spec = TeacherSpec.parse("timm:vit_tiny_patch16_224.augreg_in21k")
    with pytest.raises(TeacherError, match=f"{nobody} does not answer .*not downloaded") as caught:
        spec.build()
    assert "weights=FILE" in str(caught.value)
    assert constants.HF_HUB_OFFLINE is False


def test_inside_the_client_is_offline_and_afterwards_as_before(nobody: str) -> None:
    with spec_module.asked_once() as silence:
        assert silence is not None
        assert nobody in silence
        assert constants.HF_HUB_OFFLINE is True
    assert constants.HF_HUB_OFFLINE is False


@pytest.mark.parametrize(
    ("source", "model", "options", "expected"),
    [
        ("timm", "vit_tiny_patch16_224", {}, True),
        ("timm", "vit_tiny_patch16_224", {"random": "0"}, False),
        ("timm", "vit_tiny_patch16_224", {"weights": "x.pt"}, False),
        ("timm", "local-dir:somewhere", {}, False),
        ("transformers", "org/repo", {"random": "0"}, True),
        ("open_clip", "ViT-B-32/openai", {}, True),
        ("demo", "clip", {}, False),
        ("module", "a:b", {}, False),
    ],
)
def test_only_what_may_be_downloaded_asks_the_hub(
    source: str, model: str, options: dict[str, str], expected: bool
) -> None:
    assert spec_module.needs_hub(source, model, options) is expected
