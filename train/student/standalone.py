"""The file student.py of an export: the student from timm and torch alone, equal to the bit."""

from __future__ import annotations

from typing import Any

from ..targets import SUMMARY, Target
from .backbone import module_name
from .predict import TrainedStudent

HEADER = '''"""A student of {teachers}, without phistill: timm, torch and the files beside this one.

student(images) takes (b, 3, H, W) in 0 to 1; preprocess(picture) makes one of a PIL picture.
It gives, by teacher and kind, patches (b, T, C) and summary (b, D) in the teacher's own space.
"""
from pathlib import Path

import numpy as np
import timm
import torch
from PIL import Image
from safetensors.torch import load_file
from torch.nn.functional import gelu, interpolate, layer_norm, linear, normalize

here = Path(__file__).parent
net = timm.create_model(f"local-dir:{{here}}", pretrained=True).eval()
# Aligned parameters: torch takes other kernels for plain or unaligned tensors, and their last bit
# differs.
weights = load_file(here / "heads.safetensors")
weights = {{name: torch.nn.Parameter(value.clone()) for name, value in weights.items()}}
mean, std = torch.tensor({mean}).view(1, 3, 1, 1), torch.tensor({std}).view(1, 3, 1, 1)


def dense(x, name):
    return linear(x, weights[name + ".weight"], weights[name + ".bias"])

'''

HEADS = {
    "linear": """
def head(x, name):
    return dense(x, name + ".last")

""",
    "mlp": """
def act(x, name):
    return gelu(layer_norm(x, x.shape[-1:], weights[name + ".weight"], weights[name + ".bias"]))


def head(x, name):
    x = dense(x, name + ".first")
    x = x + dense(act(x, name + ".block.0"), name + ".block.2")
    return dense(act(x, name + ".before_last.0"), name + ".last")

""",
}

TO_GRID = """
def to_grid(x, grid):
    if x.shape[1:3] != grid:
        x = interpolate(x.permute(0, 3, 1, 2), grid, mode={mode!r}, align_corners={align})
        x = x.permute(0, 2, 3, 1)
    return x.flatten(1, 2)

"""

CENTRE = """\
    w, h = picture.size
    longer = int({side} * max(w, h) / min(w, h))
    w, h = (longer, {side}) if w > h else ({side}, longer)
    picture = picture.resize((w, h), Image.Resampling.BICUBIC)
    left, top = round((w - {side}) / 2), round((h - {side}) / 2)
    picture = picture.crop((left, top, left + {side}, top + {side}))"""

PREPROCESS = '''
def preprocess(picture):
    """An upright picture of 8 bits a channel, as the student has seen its own."""
    picture = picture.convert("RGBA")
    behind = Image.new("RGBA", picture.size, {background})
    picture = Image.alpha_composite(behind, picture).convert("RGB")
{squeeze}
    picture = picture.resize({shown}, Image.Resampling.BICUBIC)
    return torch.from_numpy(np.array(picture)).permute(2, 0, 1).float() / 255
'''


def standalone(student: TrainedStudent) -> str | None:
    """The file's text; None for a student or head of a plug-in, whose code is needed."""
    config = student.config
    if ":" in config.student or config.head not in HEADS:
        return None
    align = None if config.grid_interpolation == "nearest" else config.grid_align_corners
    teachers = list(dict.fromkeys(target.teacher for target in student.targets))
    return (
        HEADER.format(
            teachers=", ".join(teachers), mean=list(config.pixel_mean), std=list(config.pixel_std)
        )
        + HEADS[config.head]
        + TO_GRID.format(mode=config.grid_interpolation, align=align)
        + _forward(student)
        + _preprocess(student)
    )


def _forward(student: TrainedStudent) -> str:
    backbone = student.student.backbone
    lines = ["", "def student(images):", "    x = net.forward_features((images - mean) / std)"]
    if not backbone.gives_maps:
        embed: Any = backbone.net.patch_embed
        if hasattr(embed, "dynamic_feat_size"):
            grid = "net.patch_embed.dynamic_feat_size(images.shape[2:])"
        else:
            p, q = (int(side) for side in embed.patch_size)
            grid = f"(images.shape[2] // {p}, images.shape[3] // {q})"
        n = backbone.num_prefix
        lines.append(f"    prefix, tokens = x[:, :{n}], x[:, {n}:].unflatten(1, {grid})")
    elif getattr(backbone.net, "output_fmt", "NCHW") == "NCHW":
        lines.append("    tokens = x.permute(0, 2, 3, 1)")
    else:
        lines.append("    tokens = x")
    lines.append("    return {")
    for teacher in dict.fromkeys(target.teacher for target in student.targets):
        kinds = [t for t in student.targets if t.teacher == teacher]
        lines.append(f"        {teacher!r}: {{")
        lines += [f"            {t.kind!r}: {_answer(student, t)}," for t in kinds]
        lines.append("        },")
    return "\n".join([*lines, "    }", "", ""])


def _answer(student: TrainedStudent, target: Target) -> str:
    name = repr(module_name(target))
    if target.kind != SUMMARY:
        return f"to_grid(head(tokens, {name}), {target.grid})"
    source = student.student.summary_from
    if source == "mean":
        read = "tokens.mean((1, 2))"
    else:
        slot = student.student.summary_slot[target.key] if source == "class-per-teacher" else 0
        read = f"prefix[:, {slot}]"
    value = f"head({read}, {name})"
    norm = student.norms.get(target.key)
    return value if norm is None else f"normalize({value}, dim=-1) * {norm!r}"


def _preprocess(student: TrainedStudent) -> str:
    made = student.preparation
    side = made.pixel_size
    squeeze = f"    picture = picture.resize(({side}, {side}), Image.Resampling.BICUBIC)"
    if made.view == "center-crop":
        squeeze = CENTRE.format(side=side)
    return PREPROCESS.format(
        background=(*made.background, 255),
        squeeze=squeeze,
        shown=(made.image_size, made.image_size),
    )
