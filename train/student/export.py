"""A student that leaves phistill behind: the inverse normalizers folded into its heads.

model.safetensors, config.json    the backbone; timm.create_model("local-dir:FOLDER") loads it
heads.safetensors                 a head per target, answering in the teacher's raw space
phistill.json                     what the heads are, the grid rule, and where it all came from
"""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import msgspec
import safetensors.torch
import torch
from jaxtyping import Float
from torch import Tensor, nn

from phistill import __version__
from phistill.cache.storage import publish
from phistill.cache.storage.new_folder import filling, require_new
from phistill.errors import CorruptCheckpoint, UsageError
from phistill.stats import Normalizer

from ..config import TrainConfig
from ..targets import Target
from .backbone import build_student
from .predict import TrainedStudent, load_run
from .probe import probe

FORMAT = 1
NET = "backbone.net."
"""What the names of the backbone's weights begin with within a student."""


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


def export(run: Path | str, out: Path | str, *, which: str = "latest") -> Path:
    """Write the student of a run, folded, into a new or empty folder; returns the folder.

    What a stopped call left in the folder is written again.
    """
    folder = Path(out)
    require_new(folder)  # loading takes a while
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
    kept = ("config", "targets", "image_size", "teachers", "torch", "timm", "num_steps", "num_rows")
    record = {"format": FORMAT, "phistill": __version__, **{key: facts[key] for key in kept}}
    record["untrained"] = sorted(unused)
    with filling(folder):
        publish.publish_bytes(folder / "model.safetensors", _weights(trained))
        publish.publish_bytes(folder / "heads.safetensors", heads)
        publish.publish_bytes(folder / "phistill.json", _json(record))
        publish.publish_bytes(folder / "config.json", _json(_timm_config(student, unused)))
    return folder


def load_export(folder: Path | str) -> TrainedStudent:
    """The student that ``export`` wrote, as ``load_run`` gives it."""
    path = Path(folder)
    try:
        record = json.loads((path / "phistill.json").read_bytes())
        backbone = safetensors.torch.load_file(path / "model.safetensors")
        heads = safetensors.torch.load_file(path / "heads.safetensors")
    except FileNotFoundError as error:
        raise UsageError(
            f"{path} is not an exported student: {error.filename} is missing."
        ) from error
    except (ValueError, safetensors.SafetensorError) as error:
        raise CorruptCheckpoint(f"{path} cannot be read ({error}). Export it again.") from error
    if record.get("format") != FORMAT:
        raise UsageError(f"{path} has export format {record.get('format')!r}; wanted {FORMAT}.")
    config = TrainConfig.from_dict({**record["config"], "pretrained": False})
    targets = msgspec.convert(record["targets"], tuple[Target, ...])
    student = build_student(config, targets, int(record["image_size"]))
    missing, unexpected = student.backbone.net.load_state_dict(backbone, strict=False)
    if unexpected or set(missing) != set(record["untrained"]):
        raise CorruptCheckpoint(f"{path} lacks weights of its student. Export it again.")
    student.heads.load_state_dict(heads)
    return TrainedStudent(student, config, None, record)


def _timm_config(student: TrainedStudent, unused: Collection[str]) -> dict[str, Any]:
    """timm's own form of a model folder, with the input the student was trained on."""
    config = student.config
    side = student.image_size
    options = dict(student.student.backbone.options)
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
            "fixed_input_size": "img_size" in options,  # others take any size, and no such option
            "interpolation": "bilinear",
            "crop_pct": 1.0,
            "crop_mode": "squash",  # the whole image, as the cache has shown it
            "mean": list(config.pixel_mean),
            "std": list(config.pixel_std),
            "num_classes": 0,
            "license": "unknown",
        },
    }


def _weights(weights: Mapping[str, Tensor]) -> bytes:
    tensors = {name: value.detach().cpu().contiguous() for name, value in weights.items()}
    return safetensors.torch.save(tensors, metadata={"format": "pt"})


def _json(value: Any) -> bytes:
    return json.dumps(value, indent=1, sort_keys=True).encode()
