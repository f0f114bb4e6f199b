"""Reading what ``export`` wrote: a student in someone's hands, with or without training to come."""

from __future__ import annotations

import json
from pathlib import Path

import msgspec
import safetensors.torch

from phistill.errors import CorruptCheckpoint, UsageError

from ..config import TrainConfig
from ..targets import Target
from .backbone import build_student
from .predict import TrainedStudent

FORMAT = 1


def load_student(folder: Path | str) -> TrainedStudent:
    """The student in a folder that ``export`` wrote, on the CPU, in evaluation mode.

    An ``nn.Module``: images (b, 3, H, W), uint8 or floating in 0 to 1, to ``{teacher: (summary,
    patches)}`` in the teachers' own spaces. ``preprocess`` makes an image of a PIL picture. Every
    parameter can be trained on. Needs neither run nor cache; a student or head of a plug-in needs
    its code. Raises UsageError for a folder that is no export, CorruptCheckpoint for a damaged one.
    """
    path = Path(folder)
    try:
        record = json.loads((path / "phistill.json").read_bytes())
        backbone = safetensors.torch.load_file(path / "model.safetensors")
        heads = safetensors.torch.load_file(path / "heads.safetensors")
    except FileNotFoundError as error:
        raise UsageError(
            f"{path} is not an exported student: {error.filename} is missing. "
            "Make one with `phistill export RUN FOLDER`."
        ) from error
    except NotADirectoryError as error:
        raise UsageError(f"{path} is a file, not the folder of an exported student.") from error
    except (ValueError, safetensors.SafetensorError) as error:
        raise CorruptCheckpoint(f"{path} cannot be read ({error}). Export it again.") from error
    if record.get("format") != FORMAT:
        raise UsageError(f"{path} has export format {record.get('format')!r}; wanted {FORMAT}.")
    config = TrainConfig.from_dict({**record["config"], "pretrained": False})
    config = msgspec.structs.replace(config, student_options=record["student_options"])
    targets = msgspec.convert(record["targets"], tuple[Target, ...])
    student = build_student(config, targets, int(record["image_size"]))
    missing, unexpected = student.backbone.net.load_state_dict(backbone, strict=False)
    if unexpected or set(missing) != set(record["untrained"]):
        raise CorruptCheckpoint(f"{path} lacks weights of its student. Export it again.")
    student.heads.load_state_dict(heads)
    return TrainedStudent(student, config, None, record)
