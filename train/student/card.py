"""The model card of an export: README.md in the form that the Hugging Face hub reads."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ..targets import SUMMARY
from .predict import TrainedStudent

UNKNOWN = "unknown: check the teacher's own card"

LOADING = """## Loading it

With phistill, every teacher's features:

```python
import torch
from PIL import Image
from phistill import load_student

student = load_student("path/to/this/folder")
picture = student.preprocess(Image.open("photo.jpg"))
with torch.inference_mode():
    answers = student(picture[None])
answers["{teacher}"].{kind}  # {shape}
```
"""

STANDALONE = """
Without phistill, the same numbers: `student.py` in this folder needs timm and torch alone.

The backbone by itself, in timm and in transformers:

```python
net = timm.create_model("local-dir:path/to/this/folder", pretrained=True)
transform = timm.data.create_transform(**timm.data.resolve_model_data_config(net))

net = transformers.AutoModel.from_pretrained("path/to/this/folder")
processor = transformers.AutoImageProcessor.from_pretrained("path/to/this/folder")
```
"""


def card(student: TrainedStudent, metrics: Sequence[Mapping[str, Any]]) -> str:
    """README.md. ``metrics`` are lines with student, teacher, kind, figure, low and high."""
    facts, config = student.facts, student.config
    first = student.targets[0]
    shape = f"(1, {first.width})"
    if first.kind != SUMMARY:
        shape = f"(1, {first.grid[0] * first.grid[1]}, {first.width})"
    is_timm = ":" not in config.student
    parts = [
        _front_matter(is_timm),
        f"# A student of {', '.join(facts['teachers'])}\n",
        f"`{config.student}`, distilled with phistill {facts['phistill']} "
        "(PHI-S, arXiv:2410.01680).\n",
        _teachers(student),
        _made(student),
        _metrics(metrics),
        LOADING.format(teacher=first.teacher, kind=first.kind, shape=shape),
    ]
    if is_timm:
        parts.append(STANDALONE)
    return "\n".join(parts)


def _front_matter(is_timm: bool) -> str:
    library = "library_name: timm\n" if is_timm else ""
    return f"---\n{library}tags:\n- image-feature-extraction\n- distillation\n- phistill\n---\n"


def _teachers(student: TrainedStudent) -> str:
    """Who was learnt from, under which licence; what the student may be used for follows."""
    facts = student.facts
    lines = ["## Teachers", "", "| teacher | model | licence | learnt |", "|---|---|---|---|"]
    for name, fingerprint in facts["teachers"].items():
        kinds = ", ".join(
            f"{target.kind} {target.width}" for target in student.targets if target.teacher == name
        )
        model = fingerprint.get("model") or fingerprint.get("source", "unknown")
        lines.append(f"| {name} | {model} | {facts['licences'].get(name) or UNKNOWN} | {kinds} |")
    lines += ["", "The student may be bound by the licences of its teachers and of its images.", ""]
    return "\n".join(lines)


def _made(student: TrainedStudent) -> str:
    facts, config, made = student.facts, student.config, student.preparation
    view = "squeezed whole" if made.view == "resize" else "cropped to the largest centred square"
    size = f"{made.image_size} x {made.image_size}"
    rows = [
        ("images", f"{facts['num_rows']:,}, sha256 of their ids `{facts['images_digest']}`"),
        ("normalizer", f"{config.normalizer}, inverted inside the heads"),
        ("steps", f"{facts['num_steps']:,} of {config.batch_size} rows"),
        ("input", f"{view} to {size} pixels, bicubic"),
        ("behind transparency", str(made.background)),
        ("summaries learnt by direction", ", ".join(student.norms) or "none"),
        ("versions", f"torch {facts['torch']}, timm {facts['timm']}"),
    ]
    table = "\n".join(f"| {name} | {value} |" for name, value in rows)
    return f"## Made from\n\n| | |\n|---|---|\n{table}\n"


def _metrics(metrics: Sequence[Mapping[str, Any]]) -> str:
    if not metrics:
        return "## How good it is\n\nNot measured when it was exported: `phistill evaluate RUN`.\n"
    lines = [
        "## How good it is",
        "",
        "Error on held-out images over that of a constant, the mean of the training images: 0 is "
        "the teacher itself, 1 no better than the constant.",
        "",
        "| teacher | kind | error | 95 % interval | images |",
        "|---|---|---|---|---|",
    ]
    for line in metrics:
        low, high = line["low"], line["high"]
        spread = "too few images" if low is None else f"{low:.3f} to {high:.3f}"
        lines.append(
            f"| {line['teacher']} | {line['kind']} | {line['value']:.3f} | {spread} | "
            f"{line['num_images']:,} |"
        )
    return "\n".join([*lines, ""])
