"""The weights of a model: where they come from, what of a file was used, and their digest."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Self

from phistill.errors import TeacherError, UsageError

from ..options import integer
from .weights_file import ChosenWeights, read_weights

if TYPE_CHECKING:
    import torch
    from torch import nn

    Convert = Callable[[nn.Module, dict[str, torch.Tensor]], dict[str, torch.Tensor]]

MAX_CARD_BYTES = 2**20
RANDOM = "the weights are random."
WEIGHT_DTYPES = ("float32", "bfloat16", "float16")


def weights_sha256(model: nn.Module) -> str:
    """sha256 (hex) over name, dtype, shape and bytes of every parameter and buffer, by name."""
    import torch

    total = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        value = tensor.detach().cpu().contiguous()
        total.update(f"{name}|{value.dtype}|{tuple(value.shape)}|".encode())
        total.update(value.reshape(-1).view(torch.uint8).numpy())
    return total.hexdigest()


@dataclass(frozen=True, kw_only=True, slots=True)
class WeightOptions:
    """Where a model's weights come from, and in which dtype they are; the hub by default."""

    seed: int | None = None
    """Of random weights."""
    path: Path | None = None
    key: str = ""
    prefix: str | None = None
    dtype: str | None = None

    @classmethod
    def of(cls, options: Mapping[str, str]) -> Self:
        """From a teacher's options; UsageError for two sources."""
        found = cls(
            seed=integer(options, "random"),
            path=Path(options["weights"]) if "weights" in options else None,
            key=options.get("key", ""),
            prefix=options.get("prefix"),
            dtype=options.get("dtype"),
        )
        if found.seed is not None and found.path is not None:
            raise UsageError("options weights and random exclude each other; give one.")
        if found.path is None and (found.key or found.prefix is not None):
            raise UsageError("options key and prefix say where in a file; give weights=FILE too.")
        return found

    @property
    def from_hub(self) -> bool:
        return self.seed is None and self.path is None

    def file_facts(self) -> tuple[object, ...] | None:
        """What changes when the file does: its path, size and time."""
        if self.path is None:
            return None
        if not self.path.is_file():
            raise UsageError(f"weights file {self.path} does not exist.")
        facts = self.path.stat()
        return self.path.absolute(), facts.st_size, facts.st_mtime_ns

    def load(self, model: nn.Module, convert: Convert | None = None) -> tuple[str, ...]:
        """Load the file where one is named, converted to the model's own layout; what is worth
        knowing of the weights."""
        if self.path is None:
            return () if self.seed is None else (RANDOM,)
        chosen = read_weights(self.path, model.state_dict(), self.key, self.prefix)
        state = chosen.state if convert is None else convert(model, chosen.state)
        left = load_weights(model, state, self.path.name)
        return (_used(model, chosen, state, left, self.path.name),)


def _used(
    model: nn.Module,
    chosen: ChosenWeights,
    state: Mapping[str, torch.Tensor],
    left: list[str],
    name: str,
) -> str:
    """What was used of a file and what was left, in words; ``state`` is what was loaded."""
    choice = chosen.choice
    where = f" ({choice})" if choice.key or choice.prefix else ""
    if any(name not in chosen.state for name in state):
        where += " from another layout"
    else:
        left = [*left, *(name for name in chosen.state if name not in state)]
    text = f"weights of {name}: {len(model.state_dict())} keys used{where}, left "
    text += _some([*left, *chosen.left])
    dtypes = {str(v.dtype) for v in chosen.state.values() if v.dtype.is_floating_point}
    if kinds := sorted(kind.removeprefix("torch.") for kind in dtypes - {"torch.float32"}):
        text += f"; stored as {', '.join(kinds)}"
    if chosen.others:
        text += f"; as many are in {', '.join(map(str, chosen.others[:4]))}"
    return f"{text}."


def load_weights(model: nn.Module, state: dict[str, torch.Tensor], where: str) -> list[str]:
    """Load every tensor of the model; the names that were left.

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
    _check_numbers(state, wanted, where)
    if missing or unexpected or shapes:
        part = re.search(r"-(\d+)-of-(\d+)\.", where)
        raise TeacherError(
            f"{where} does not fit the model: it lacks {_some(missing)}, holds the unknown "
            f"{_some(unexpected)}, and has other shapes: {_some(shapes)}. "
            + (
                f"It is one of {int(part[2])} parts; name their index, *.index.json."
                if part
                else "Options prefix= and key= say where the weights are in the file."
            )
        )
    model.load_state_dict({name: state[name] for name in wanted})
    return left


def _check_numbers(
    state: Mapping[str, torch.Tensor], wanted: Mapping[str, torch.Tensor], where: str
) -> None:
    """TeacherError where weights are no plain floats: integers and 8 bits are quantized, and mean
    nothing without their scales."""
    import torch

    plain = (torch.float64, torch.float32, torch.bfloat16, torch.float16)
    for name, value in state.items():
        if name not in wanted or not wanted[name].dtype.is_floating_point:
            continue
        if value.is_meta or value.layout != torch.strided or value.dtype not in plain:
            kind = "no data" if value.is_meta else f"{value.dtype} ({value.layout})"
            raise TeacherError(
                f"{where}: {name} is {kind.replace('torch.', '')}, where plain floats are wanted. "
                "Save the model unquantized, in float32, bfloat16 or float16."
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
