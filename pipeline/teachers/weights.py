"""The weights of a model: their digest, a local file of them, and seeded random ones."""

from __future__ import annotations

import hashlib
import re
from pathlib import Path
from typing import TYPE_CHECKING

from phistill.errors import TeacherError, UsageError

if TYPE_CHECKING:
    import torch
    from torch import nn

MAX_CARD_BYTES = 2**20
WEIGHT_DTYPES = ("float32", "bfloat16", "float16")
WRAPPERS = ("module.", "_orig_mod.")
"""What data parallelism and torch.compile put before every name of a saved model."""


def weights_sha256(model: nn.Module) -> str:
    """sha256 (hex) over name, dtype, shape and bytes of every parameter and buffer, by name."""
    import torch

    total = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        value = tensor.detach().cpu().contiguous()
        total.update(f"{name}|{value.dtype}|{tuple(value.shape)}|".encode())
        total.update(value.reshape(-1).view(torch.uint8).numpy())
    return total.hexdigest()


def read_weights(path: Path) -> dict[str, torch.Tensor]:
    """A state dict from a safetensors file or a weights-only torch file."""
    import torch
    from safetensors.torch import load_file

    if not path.is_file():
        raise UsageError(f"weights file {path} does not exist.")
    if path.suffix == ".safetensors":
        return load_file(path)
    state = torch.load(path, map_location="cpu", weights_only=True)
    for key in ("state_dict", "model", "teacher"):
        if isinstance(state, dict) and isinstance(state.get(key), dict):
            state = state[key]
    if not isinstance(state, dict) or not all(isinstance(v, torch.Tensor) for v in state.values()):
        raise TeacherError(f"{path} holds no state dict of tensors.")
    return {_plain(name): value for name, value in state.items()}


def file_state(path: Path | None) -> tuple[object, ...] | None:
    """What changes when a file does: its path, size and time."""
    if path is None:
        return None
    if not path.is_file():
        raise UsageError(f"weights file {path} does not exist.")
    facts = path.stat()
    return path.absolute(), facts.st_size, facts.st_mtime_ns


def load_weights(model: nn.Module, state: dict[str, torch.Tensor], where: str) -> None:
    """Load every tensor; TeacherError names what is missing or unexpected."""
    missing, unexpected = model.load_state_dict(state, strict=False)
    if missing or unexpected:
        raise TeacherError(
            f"{where} does not fit the model: it lacks {_some(missing)} and holds the unknown "
            f"{_some(unexpected)}."
        )


def cast(model: nn.Module, dtype: str | None) -> nn.Module:
    """The model with its weights in ``dtype``; as it is when None."""
    import torch

    if dtype is None:
        return model
    if dtype not in WEIGHT_DTYPES:
        raise UsageError(f"dtype={dtype!r} is not known; choose one of {', '.join(WEIGHT_DTYPES)}.")
    return model.to(getattr(torch, dtype))


def parameter_dtype(model: nn.Module) -> torch.dtype:
    """The dtype of the model's first floating parameter: what its input must have."""
    import torch

    dtypes = (p.dtype for p in model.parameters() if p.dtype.is_floating_point)
    return next(dtypes, torch.float32)


def _plain(name: str) -> str:
    for wrapper in WRAPPERS:
        name = name.removeprefix(wrapper)
    return name


def _some(names: list[str]) -> str:
    return (", ".join(names[:4]) + (f" and {len(names) - 4} more" if names[4:] else "")) or "none"


def licence_of_card(folder: Path) -> str | None:
    """What the model card in a local folder states: the line ``license:`` in the front matter of
    README.md, and the name given beside it where that is only ``other``."""
    try:
        with (folder / "README.md").open("rb") as file:
            text = file.read(MAX_CARD_BYTES).decode("utf-8", "replace")
    except OSError:
        return None
    front = re.match(r"---\s*\n(.*?)\n---\s*(\n|$)", text, re.DOTALL)
    lines = front[1] if front else ""
    stated = dict(re.findall(r"^(license(?:_name)?):[ \t]*(\S.{,100}?)[ \t]*$", lines, re.M))
    name = stated.get("license", "").strip("'\"")
    if name == "other":
        name = stated.get("license_name", name).strip("'\"")
    return name or None
