"""Every image processor of transformers that needs nothing but a picture: what it does to one is
what we do, or the refusal says why not."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from phistill.errors import UsageError
from phistill.pipeline.decode.views import Placement, Rendering, render
from phistill.pipeline.teachers.models.image_processor import PADS, processing_of

transformers = pytest.importorskip("transformers")
SIDE = 300
OTHERWISE = {"UVDocImageProcessor": "resizes from corner to corner, for documents to be flattened"}
"""Processors that show a picture in a way that we have no name for."""
REASONS = (
    "image in pieces",
    "makes no pixel_values of a picture alone",
    "takes pictures of any size",
    "does more to a colour",
)


def processors() -> list[str]:
    """Classes that are made without arguments, by name."""
    from transformers.models.auto import image_processing_auto

    found = set[str]()
    for classes in vars(image_processing_auto)["IMAGE_PROCESSOR_MAPPING_NAMES"].values():
        several = classes.values() if isinstance(classes, dict) else classes
        found |= {several} if isinstance(several, str) else {name for name in several if name}
    found.discard("TimmWrapperImageProcessor")  # made of a model's own config
    return sorted(name for name in found if not name.endswith("Pil"))


def outcome(name: str, folder: Path) -> str:
    """``same``, ``colours`` where it cuts or pads, a refusal, or what is different."""
    try:
        processor = getattr(transformers, name)()
    except ImportError:
        return "needs another package"
    processor.save_pretrained(folder)
    try:
        found = processing_of(str(folder), {}, None, None)
    except UsageError as error:
        reasons = [reason for reason in REASONS if reason in str(error)]
        return reasons[0] if reasons else f"refused: {error}"
    processor = transformers.AutoImageProcessor.from_pretrained(folder)
    size = found.preprocessing.size
    rendering = Rendering(size, found.preprocessing.interpolation)
    mean = torch.tensor(found.preprocessing.mean).view(3, 1, 1)
    std = torch.tensor(found.preprocessing.std).view(3, 1, 1)

    def both(pixels: np.ndarray) -> tuple[torch.Tensor, torch.Tensor]:
        """The processor's input of the model and ours, as levels of 0 to 255."""
        picture = Image.fromarray(pixels)
        (theirs,) = processor(images=picture, return_tensors="pt")["pixel_values"]
        rendered = render(picture, Placement((0, 0, SIDE, SIDE)), rendering)
        ours = (torch.from_numpy(rendered.copy()).permute(2, 0, 1) / 255 - mean) / std
        if found.bgr:
            theirs = theirs.flip(0)
        return (theirs.float() * std + mean) * 255, (ours * std + mean) * 255

    for colour in ((10, 20, 30), (255, 0, 128), (90, 200, 90)):
        theirs, ours = both(np.full((SIDE, SIDE, 3), colour, np.uint8))
        middle = (slice(None), size[0] // 2, size[1] // 2)
        if theirs.shape != ours.shape or not theirs[middle].allclose(ours[middle], atol=0.6):
            return f"{colour}: {theirs[middle]} {tuple(theirs.shape)}, ours {ours[middle]}"
    slope = np.linspace(0, 255, SIDE).round().astype(np.uint8)
    theirs, ours = both(np.broadcast_to(slope[None, :, None], (SIDE, SIDE, 3)).copy())
    if (theirs - ours).abs().mean() > 1 or PADS in found.notes:
        return "colours"
    noise = np.random.default_rng(0).integers(0, 256, (60, 60, 3), np.uint8)
    theirs, ours = both(np.asarray(Image.fromarray(noise).resize((SIDE, SIDE), 3)))
    difference = float((theirs - ours).abs().mean())
    return "same" if difference < 1 else f"a picture differs by {difference:.2f} levels"


def test_what_every_processor_does_to_a_picture_is_what_we_do(tmp_path: Path) -> None:
    found = {name: outcome(name, tmp_path / name) for name in processors()}
    for name in OTHERWISE:
        assert found.pop(name).startswith("a picture differs by")
    known = (*REASONS, "same", "colours", "needs another package")
    assert {name: what for name, what in found.items() if what not in known} == {}
    counts = {what: list(found.values()).count(what) for what in known}
    assert counts["same"] > 30, counts
    assert counts["colours"] > 3, counts


class Odd:
    """Made as transformers makes a processor, to show that the comparison can fail."""

    image_mean = image_std = None
    resample = 3

    def __init__(self, change: Any) -> None:
        self._change = change

    def __call__(self, images: Image.Image, **_: Any) -> dict[str, torch.Tensor]:
        values = torch.from_numpy(np.asarray(images.resize((32, 32))).copy()).permute(2, 0, 1)
        return {"pixel_values": self._change(values.float() / 255)[None]}


@pytest.mark.parametrize(
    ("change", "what"),
    [
        (lambda image: image**2, "does more to a colour"),
        (lambda image: image - image.mean(), "does more to a colour"),
        (lambda image: image.transpose(1, 2), "does not show a picture as one"),
        (lambda image: image.flip(2), "does not show a picture as one"),
        (lambda image: image[None].expand(4, 3, 32, 32), "image in pieces"),
    ],
)
def test_what_cannot_be_done_here_is_refused(
    change: Any, what: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        transformers.AutoImageProcessor, "from_pretrained", lambda *a, **k: Odd(change)
    )
    with pytest.raises(UsageError, match=what):
        processing_of("odd", {}, None, None)
