"""A local file of weights as training programs and hubs write it: which of its dictionaries, under
which prefix, and what of it was used.

A file holds dictionaries of tensors inside one another; each, with a prefix of its names, is a
*choice*. The one with most of the model's names is taken; of equals, averaged weights (EMA) come
first, as timm has it, and a student last. What else would do is said.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from phistill.errors import TeacherError, UsageError

if TYPE_CHECKING:
    import torch

MAX_DEPTH = 5
MIN_SHARE = 0.25
"""Of the model's names: a prefix with fewer is a coincidence, and the names are of another layout
that timm perhaps converts."""

INDEX_SUFFIX = ".index.json"
LFS_POINTER = b"version https://git-lfs"
RANKS = (
    *(("ema", "averaged", "swa"), ("teacher", "target_"), ()),
    ("student", "momentum_encoder", "predictor", "decoder"),
)
NO_WEIGHTS = re.compile("optim|exp_avg|grad|momentum_buffer")
"""Keys of what an optimizer holds: of the weights' names and shapes, and no weights."""
"""Words in a key or prefix, from the first to be taken to the last."""


@dataclass(frozen=True, slots=True)
class Choice:
    """The tensors of one dictionary of a file whose names begin with ``prefix``."""

    key: str
    """Of the dictionary, ``a.b`` for one inside another; "" for the file's own."""
    prefix: str
    num_wanted: int
    """Names of the model among them."""

    @property
    def rank(self) -> int:
        words = f"{self.key}.{self.prefix}".lower()
        for rank, ours in enumerate(RANKS):
            if any(word in words for word in ours):
                return rank
        return RANKS.index(())

    def __str__(self) -> str:
        parts = (self.key and f"key={self.key}", self.prefix and f"prefix={self.prefix}")
        return " ".join(part for part in parts if part) or "the names without a prefix"


@dataclass(frozen=True, eq=False, slots=True)
class ChosenWeights:
    """What was taken of a file."""

    state: dict[str, torch.Tensor]
    """Without the prefix."""
    choice: Choice
    others: tuple[Choice, ...]
    """That would have done as well."""
    left: tuple[str, ...]
    """Names of the same dictionary without the prefix."""


def read_weights(
    path: Path, wanted: Collection[str], key: str = "", prefix: str | None = None
) -> ChosenWeights:
    """The tensors of a file that the ``wanted`` names are among, under ``key`` and ``prefix`` where
    these are given.

    UsageError for what is no such file, TeacherError where there are no tensors or where the file
    holds code.
    """
    tree = _read(path)
    for part in key.split(".") if key else ():
        if not isinstance(tree, dict) or part not in tree:
            inside = ", ".join(map(str, tree)) if isinstance(tree, dict) else "no dictionary"
            raise UsageError(f"{path} has no key {part!r}; it holds {inside[:300]}.")
        tree = tree[part]
    states = dict(_state_dicts(tree, key))
    if not states:
        raise TeacherError(f"{path} holds no state dict of tensors. Name one with key=.")
    choices = [choice for at, state in states.items() for choice in _choices(at, state, wanted)]
    if prefix is not None:
        choices = [
            Choice(at, prefix, sum(name.startswith(prefix) for name in state))
            for at, state in states.items()
        ]
    best = max(choices, key=lambda one: (one.num_wanted, -one.rank, len(states[one.key])))
    num = len(best.prefix)
    return ChosenWeights(
        state={
            name[num:]: value
            for name, value in states[best.key].items()
            if name.startswith(best.prefix)
        },
        choice=best,
        others=tuple(c for c in choices if c != best and c.num_wanted == best.num_wanted > 0),
        left=tuple(name for name in states[best.key] if not name.startswith(best.prefix)),
    )


def _choices(key: str, state: dict[str, torch.Tensor], wanted: Collection[str]) -> list[Choice]:
    """The prefixes under which enough of the wanted names are; else the state as it is."""
    counts: Counter[str] = Counter()
    for name in state:
        for start in (0, *(at + 1 for at, letter in enumerate(name) if letter == ".")):
            if name[start:] in wanted:
                counts[name[:start]] += 1
    enough = [
        Choice(key, prefix, count)
        for prefix, count in counts.items()
        if count >= MIN_SHARE * len(wanted)
    ]
    return enough or [Choice(key, "", 0)]


def _state_dicts(
    tree: Any, key: str, depth: int = 0
) -> Iterator[tuple[str, dict[str, torch.Tensor]]]:
    """Every dictionary with tensors under names, by its key; optimizers number theirs."""
    import torch

    if not isinstance(tree, dict) or depth > MAX_DEPTH:
        return
    named = {name: value for name, value in tree.items() if isinstance(name, str)}
    tensors = {n: value for n, value in named.items() if isinstance(value, torch.Tensor)}
    if tensors:
        yield key, tensors
    for name, value in named.items():
        if not NO_WEIGHTS.search(name):
            yield from _state_dicts(value, f"{key}.{name}" if key else name, depth + 1)


def _read(path: Path) -> Any:
    """What a file holds: tensors alone, in dictionaries."""
    if path.is_dir():
        raise UsageError(f"{path} is a folder; weights= names a file in it.")
    if not path.is_file():
        raise UsageError(f"weights file {path} does not exist.")
    with path.open("rb") as file:
        begins = file.read(len(LFS_POINTER))
    if begins == LFS_POINTER:
        raise UsageError(f"{path} is git-lfs's word for the file; fetch it with git lfs pull.")
    if path.name.endswith(INDEX_SUFFIX):
        return _of_shards(path)
    if path.suffix == ".safetensors" or begins[8:9] == b"{":
        from safetensors import SafetensorError
        from safetensors.torch import load_file

        try:
            return load_file(path)
        except SafetensorError as error:
            raise UsageError(f"{path} is no safetensors file ({error}).") from error
    return _torch_file(path)


def _of_shards(path: Path) -> dict[str, torch.Tensor]:
    """The files that an index names, beside it."""
    try:
        files = sorted(set(json.loads(path.read_bytes())["weight_map"].values()))
        if any(Path(name).name != name or name.endswith(INDEX_SUFFIX) for name in files):
            raise ValueError("a name of another folder's file, or of an index")
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise UsageError(f"{path} is no index of weights files ({error!r}).") from error
    state: dict[str, torch.Tensor] = {}
    for name in files:
        part = _read(path.with_name(name))
        if not isinstance(part, dict):
            raise UsageError(f"{path.with_name(name)} holds no dictionary of tensors.")
        state |= part
    return state


def _torch_file(path: Path) -> Any:
    """A file of torch.save, weights alone: code inside is never run."""
    import argparse
    import pickle

    import torch

    try:
        with torch.serialization.safe_globals([argparse.Namespace]):
            return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        named = re.search(r"GLOBAL ([\w.]+)", str(error))
        if named is None:
            raise UsageError(f"{path} is no file of torch.save, or is cut.") from error
        raise TeacherError(
            f"{path} cannot be loaded as weights alone: it holds {named[1]}, which is code. If you "
            "trust it, convert it once: x = torch.load(FILE, weights_only=False); "
            "torch.save(x['model'], 'weights.pth'), with the key that holds the weights, or "
            "x.state_dict() where it is a model."
        ) from error
    except Exception as error:  # an unpickler meets anything in a file that is none
        raise UsageError(
            f"{path} is no file of torch.save, or is cut ({type(error).__name__})."
        ) from error
