"""The weights of a model: their digest, a local file of them, and seeded random ones."""

from __future__ import annotations

import hashlib
import re
from collections import Counter
from collections.abc import Collection
from pathlib import Path
from typing import TYPE_CHECKING, Any

from phistill.errors import TeacherError, UsageError

if TYPE_CHECKING:
    import torch
    from torch import nn

MAX_CARD_BYTES = 2**20
RANDOM = "the weights are random."
WEIGHT_DTYPES = ("float32", "bfloat16", "float16")
NESTED = (
    *("state_dict", "model", "teacher", "model_state_dict", "state_dict_ema", "model_ema", "ema"),
    *("ema_state_dict", "module", "student", "net", "network", "backbone", "encoder", "params"),
)
"""Keys under which training programs keep the weights, in the order in which they are tried."""


def weights_sha256(model: nn.Module) -> str:
    """sha256 (hex) over name, dtype, shape and bytes of every parameter and buffer, by name."""
    import torch

    total = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        value = tensor.detach().cpu().contiguous()
        total.update(f"{name}|{value.dtype}|{tuple(value.shape)}|".encode())
        total.update(value.reshape(-1).view(torch.uint8).numpy())
    return total.hexdigest()


def read_weights(path: Path, key: str = "") -> dict[str, torch.Tensor]:
    """A state dict from a safetensors file or a weights-only torch file.

    ``key`` names the dictionary inside, ``a.b`` for one inside another; by default the first of
    NESTED that is there. TeacherError where there is none, or where the file holds code.
    """
    import argparse
    import pickle

    import torch
    from safetensors.torch import load_file

    if not path.is_file():
        raise UsageError(f"weights file {path} does not exist.")
    with path.open("rb") as file:
        begins = file.read(9)
    if path.suffix == ".safetensors" or begins[8:] == b"{":
        state: Any = load_file(path)
    else:
        try:
            with torch.serialization.safe_globals([argparse.Namespace]):
                state = torch.load(path, map_location="cpu", weights_only=True)
        except (pickle.UnpicklingError, RuntimeError, EOFError) as error:
            raise TeacherError(
                f"{path} cannot be loaded as weights alone ({_first_line(error)}). If you trust "
                "it, convert it once: torch.save(torch.load(FILE, weights_only=False)['model'], "
                "'weights.pth'), with the key that holds the weights."
            ) from error
    for part in key.split(".") if key else ():
        if not isinstance(state, dict) or part not in state:
            inside = ", ".join(map(str, state)) if isinstance(state, dict) else "no dictionary"
            raise UsageError(f"{path} has no key {part!r}; it holds {inside[:300]}.")
        state = state[part]
    while not key and isinstance(state, dict):
        inner = next((state[name] for name in NESTED if isinstance(state.get(name), dict)), None)
        if inner is None:
            break
        state = inner
    if isinstance(state, dict):
        state = {name: value for name, value in state.items() if isinstance(value, torch.Tensor)}
    if not isinstance(state, dict) or not state:
        raise TeacherError(f"{path} holds no state dict of tensors. Name one with key=.")
    return state


def without_prefix(
    state: dict[str, torch.Tensor], wanted: Collection[str], prefix: str | None = None
) -> dict[str, torch.Tensor]:
    """The tensors under a prefix, named without it: ``prefix``, or the one under which most of the
    ``wanted`` names are. The state itself where none is."""
    if prefix is None:
        found: Counter[str] = Counter()
        for name in state:
            for start in (0, *(at + 1 for at, letter in enumerate(name) if letter == ".")):
                if name[start:] in wanted:
                    found[name[:start]] += 1
        prefix = max(found, key=lambda one: (found[one], -len(one)), default="")
    return {name[len(prefix) :]: value for name, value in state.items() if name.startswith(prefix)}


def file_state(path: Path | None) -> tuple[object, ...] | None:
    """What changes when a file does: its path, size and time."""
    if path is None:
        return None
    if not path.is_file():
        raise UsageError(f"weights file {path} does not exist.")
    facts = path.stat()
    return path.absolute(), facts.st_size, facts.st_mtime_ns


def load_weights(model: nn.Module, state: dict[str, torch.Tensor], where: str) -> str:
    """Load every tensor of the model; what was used and what was left, in words.

    What only training needs (``mask_token``, heads) is left. TeacherError names what is missing,
    what belongs to a part of the model and is not in it, and what has another shape.
    """
    wanted = model.state_dict()
    parts = {name.partition(".")[0] for name in wanted}
    missing = [name for name in wanted if name not in state]
    left = [name for name in state if name not in wanted]
    unexpected = [name for name in left if name.partition(".")[0] in parts]
    shapes = [
        f"{name} {tuple(state[name].shape)} for {tuple(value.shape)}"
        for name, value in wanted.items()
        if name in state and state[name].shape != value.shape
    ]
    if missing or unexpected or shapes:
        raise TeacherError(
            f"{where} does not fit the model: it lacks {_some(missing)}, holds the unknown "
            f"{_some(unexpected)}, and has other shapes: {_some(shapes)}. Options prefix= and key= "
            "say where the weights are in the file."
        )
    model.load_state_dict({name: state[name] for name in wanted})
    return f"weights of {where}: {len(wanted)} keys used, left {_some(left)}."


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


def _first_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return lines[0].partition(". ")[0][:200]


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
