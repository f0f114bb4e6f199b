"""A student that leaves phistill behind: the inverse normalizers folded into its heads.

model.safetensors, config.json    the backbone; timm.create_model("local-dir:FOLDER") loads it
heads.safetensors                 a head per target, answering in the teacher's raw space
phistill.json                     what the heads are, the grid rule, and where it all came from
student.py                        the whole student from timm and torch alone, of no plug-in
README.md                         the model card
student.onnx                      backbone and heads as a graph, where asked for
"""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from jaxtyping import Float
from torch import Tensor, nn

from phistill import __version__
from phistill.cache.format import names
from phistill.cache.storage import publish
from phistill.cache.storage.new_folder import filling, require_new
from phistill.stats import Normalizer

from .card import card
from .exported import FORMAT, load_student
from .predict import TrainedStudent, load_run
from .probe import probe
from .standalone import standalone
from .to_onnx import require_onnx, to_onnx

NET = "backbone.net."
"""What the names of the backbone's weights begin with within a student."""


KEPT = (
    *("config", "targets", "image_size", "teachers", "licences", "norms", "num_rows"),
    *("num_steps", "images_digest", "torch", "timm"),
)
"""What an export says of its run; no path of the machine is among it."""


def folded(
    last: nn.Linear, normalizer: Normalizer
) -> tuple[Float[Tensor, "c h"], Float[Tensor, " c"]]:
    """Weight and bias, float64, of the last linear followed by the inverse normalizer.

    W = Theta W', b = Theta b' + mean (arXiv:2410.01680, A.6).
    """
    weight = last.weight.detach().cpu().double().numpy()
    bias = last.bias.detach().cpu().double().numpy()
    new_weight, new_bias = normalizer.fold(weight, bias)
    return torch.from_numpy(new_weight), torch.from_numpy(new_bias)


def fold_heads(student: TrainedStudent) -> None:
    """Fold every normalizer into its head, in place and in the head's own dtype."""
    if student.normalizers is None:
        return
    for target in student.targets:
        last = student.student.head(target).last
        assert isinstance(last, nn.Linear), "heads.make_head checks it"
        weight, bias = folded(last, student.normalizers[target.key])
        with torch.no_grad():
            last.weight.copy_(weight)
            last.bias.copy_(bias)
    student.inverses = nn.ModuleList(nn.Identity() for _ in student.targets)
    student.normalizers = None


def export(
    run: Path | str,
    out: Path | str,
    *,
    which: str = "latest",
    onnx: bool = False,
    metrics: Sequence[Mapping[str, Any]] = (),
) -> Path:
    """Write the student of a run, folded, into a new or empty folder; returns the folder.

    What a stopped call left in the folder is written again. ``metrics`` are lines for the model
    card, with teacher, kind, value, low, high and num_images. ``onnx`` adds student.onnx, compared
    with torch; UsageError where the extra is not installed.
    """
    folder = Path(out)
    require_new(folder)  # loading takes a while
    if onnx:
        require_onnx()
    student = load_run(run, which=which)
    facts = student.facts
    fold_heads(student)
    heads = _weights(student.student.heads.state_dict())
    unused = {name.removeprefix(NET) for name in probe(student.student).unused}
    trained = {
        name: value
        for name, value in student.student.backbone.net.state_dict().items()
        if name not in unused
    }
    record = {"format": FORMAT, "phistill": __version__, **{key: facts[key] for key in KEPT}}
    record["caches"] = [
        {key: one[key] for key in ("pixel_size", "views", "decode", "num_images", "share")}
        for one in facts["caches"]
    ]
    record["untrained"] = sorted(unused)
    record["student_options"] = options = _any_size(student)
    alone = standalone(student)
    with filling(folder):
        publish.publish_bytes(folder / "model.safetensors", _weights(trained))
        publish.publish_bytes(folder / "heads.safetensors", heads)
        publish.publish_bytes(folder / "phistill.json", _json(record))
        publish.publish_bytes(folder / "README.md", card(student, metrics).encode())
        if ":" not in student.config.student:
            config = _timm_config(student, options, unused)
            publish.publish_bytes(folder / "config.json", _json(config))
        if alone is not None:
            publish.publish_bytes(folder / "student.py", alone.encode())
        if onnx:
            graph = to_onnx(load_student(folder))
            publish.publish_bytes(folder / "student.onnx", graph.data)
    return folder


def _any_size(student: TrainedStudent) -> dict[str, Any]:
    """The backbone's options, so that it takes inputs of other sizes where it can: any of whole
    patches. One whose own input is no whole number of patches keeps to that."""
    backbone, options = student.student.backbone, dict(student.student.backbone.options)
    patch = getattr(getattr(backbone.net, "patch_embed", None), "patch_size", None)
    if not hasattr(backbone.net, "dynamic_img_size") or patch is None:
        return options
    if any(student.image_size % int(along) for along in patch):
        return options
    return {"dynamic_img_size": True} | options


def _timm_config(
    student: TrainedStudent, given: Mapping[str, Any], unused: Collection[str]
) -> dict[str, Any]:
    """timm's own form of a model folder, with the input the student was trained on."""
    config = student.config
    side = student.image_size
    options = dict(given)
    if unused:  # timm would otherwise insist on weights that nothing has trained
        options["pretrained_strict"] = False
    return {
        "architecture": config.student.split(".")[0],
        "num_classes": 0,
        "num_features": student.student.backbone.width,
        "model_args": options,
        "pretrained_cfg": {
            "custom_load": False,
            "input_size": [3, side, side],
            # Others take any size, and no such option.
            "fixed_input_size": "img_size" in options,
            "interpolation": names.PIXEL_INTERPOLATION,
            "crop_pct": 1.0,
            "crop_mode": "center" if student.preparation.view == "center-crop" else "squash",
            "mean": list(config.pixel_mean),
            "std": list(config.pixel_std),
            "num_classes": 0,
            "license": "other",
        },
    }


def _weights(weights: Mapping[str, Tensor]) -> bytes:
    tensors = {name: value.detach().cpu().contiguous() for name, value in weights.items()}
    return safetensors.torch.save(tensors, metadata={"format": "pt"})


def _json(value: Any) -> bytes:
    return json.dumps(value, indent=1, sort_keys=True).encode()
