"""Checkpoints: published whole, named by their digest, believed only when it fits.

STEP.safetensors holds every tensor (weights, optimizer, random state, normalizer matrices);
STEP.json, written after it, holds the rest, the sha256 of the tensors and a digest of itself. A
checkpoint without its JSON does not exist.

What a run folder's config.json says is here too. torch is imported where tensors are written or
read: a run that is none, or another one, is refused without it.
"""

from __future__ import annotations

import hashlib
import json
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from phistill import cache as store
from phistill.cache.format import names
from phistill.cache.format.json_document import decode, parse, with_digest
from phistill.cache.storage import publish
from phistill.errors import CorruptCache, CorruptCheckpoint, RunMismatch, UsageError

from .config import SAFE_KEYS, TrainConfig

if TYPE_CHECKING:
    from torch import Tensor

FORMAT = 1
"""Version of the layout, raised when its tensors or fields change their meaning."""

FOLDER = "checkpoints"

_DTYPES = {
    **{f"float{bits}": f"F{bits}" for bits in (16, 32, 64)},
    **{f"int{bits}": f"I{bits}" for bits in (8, 16, 32, 64)},
    **{f"uint{bits}": f"U{bits}" for bits in (8, 16, 32, 64)},
    "bfloat16": "BF16",
    "bool": "BOOL",
}
"""Names of torch's dtypes in safetensors' header."""


@dataclass(frozen=True, eq=False)
class Checkpoint:
    """Everything a run needs to go on, or a student to be built from."""

    step: int
    tensors: Mapping[str, Tensor]
    facts: Mapping[str, Any]
    """JSON values: config, targets, normalizers, state, score, ..."""


def path_of(run: Path, step: int) -> Path:
    """Where the tensors of a checkpoint lie; its JSON lies beside them."""
    return run / FOLDER / f"{step:08d}.safetensors"


def save(run: Path, checkpoint: Checkpoint) -> Path:
    """Publish a checkpoint below a run folder; returns the path of its tensors."""
    chunks = tensor_chunks(checkpoint.tensors)
    path = path_of(run, checkpoint.step)
    publish.publish_chunks(path, chunks)
    digest = hashlib.sha256()
    for chunk in chunks:
        digest.update(chunk)
    record = with_digest(
        {
            "format": FORMAT,
            "step": checkpoint.step,
            "sha256": digest.hexdigest(),
            "num_bytes": sum(chunk.nbytes for chunk in chunks),
            "facts": dict(checkpoint.facts),
        }
    )
    publish.publish_bytes(path.with_suffix(".json"), _as_json(record))
    return path


def tensor_chunks(tensors: Mapping[str, Tensor]) -> list[memoryview]:
    """A safetensors file in pieces: its header, then the bytes of each tensor where they lie.

    ``safetensors.torch.save`` copies everything twice, which is four times a student's weights.
    """
    import torch

    header: dict[str, Any] = {}
    chunks, stop = [], 0
    aligned = sorted(tensors.items(), key=lambda item: (-item[1].element_size(), item[0]))
    for name, value in aligned:
        # Bytes of torch before they are NumPy's, which has no bfloat16.
        flat = value.detach().cpu().contiguous().reshape(-1).view(torch.uint8)
        start, stop = stop, stop + flat.numel()
        kind = _DTYPES[str(value.dtype).removeprefix("torch.")]
        offsets = [start, stop]
        header[name] = {"dtype": kind, "shape": list(value.shape), "data_offsets": offsets}
        chunks.append(flat.numpy().data)
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return [memoryview(len(text).to_bytes(8, "little") + text), *chunks]


def tensors_below(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """Those whose name begins with ``prefix``, without it."""
    return {k[len(prefix) :]: v for k, v in tensors.items() if k.startswith(prefix)}


def steps(run: Path) -> list[int]:
    """Steps that have a checkpoint, ascending; damaged ones too."""
    folder = run / FOLDER
    if not folder.is_dir():
        return []
    return sorted(int(path.stem) for path in folder.glob("*.json") if path.stem.isdigit())


def load(run: Path, step: int) -> Checkpoint:
    """One checkpoint; CorruptCheckpoint when a byte of it is not what was written."""
    from safetensors.torch import load as decode_tensors

    path = path_of(run, step)
    record = _record(path.with_suffix(".json"))
    try:
        data = path.read_bytes()
    except OSError as error:
        raise CorruptCheckpoint(f"{path} cannot be read ({error.strerror or error}).") from error
    if len(data) != record["num_bytes"] or hashlib.sha256(data).hexdigest() != record["sha256"]:
        raise CorruptCheckpoint(f"{path} does not match the digest in its JSON.")
    if record["format"] != FORMAT:
        raise UsageError(
            f"{path} has checkpoint format {record['format']}, this version reads {FORMAT}."
        )
    return Checkpoint(int(record["step"]), decode_tensors(data), record["facts"])


def load_latest(run: Path) -> Checkpoint | None:
    """The latest checkpoint that is whole, or None when there is none at all.

    Warns about damaged ones that it passes over; CorruptCheckpoint when all are damaged.
    """
    there = steps(run)
    for step in reversed(there):
        try:
            return load(run, step)
        except CorruptCheckpoint as error:
            warnings.warn(f"{error} The checkpoint before it is used.", stacklevel=2)
    if there:
        raise CorruptCheckpoint(
            f"none of the {len(there)} checkpoints in {run / FOLDER} is whole. "
            "Remove the run folder and train again."
        )
    return None


def load_best(run: Path) -> Checkpoint:
    """The checkpoint with the lowest validation score; the latest when none was scored."""
    scored = _scores(run)
    if scored:
        return load(run, min(scored, key=lambda step: (scored[step], -step)))
    latest = load_latest(run)
    if latest is None:
        raise nothing_in(run)
    return latest


def nothing_in(run: Path) -> UsageError:
    """The error for what has no checkpoint, by what it is: a sweep's folder holds runs but is none,
    and a cache is easily given in the place of a run."""
    cells = sorted(path.parent.name for path in run.glob("*/config.json"))
    if cells and not (run / "config.json").exists():
        return UsageError(
            f"{run} is not a run but holds {len(cells)} of them; give one, such as "
            f"{run / cells[0]}."
        )
    subject = f"{run} has no checkpoint"
    if store.exists(run):
        return UsageError(
            f"{subject}: it is a cache. Train a student on it with `phistill train {run} --out "
            "RUN`, and give RUN."
        )
    if (run / "config.json").exists():
        return UsageError(f"{subject} yet. Run its `phistill train` again to go on.")
    why = "it is no run" if run.exists() else "nothing is there"
    return UsageError(f"{subject}: {why}. Make one with `phistill train CACHE --out {run}`.")


def caches_of_run(facts: Mapping[str, Any]) -> list[str]:
    """Paths of the caches a run was trained on; UsageError when one is not there any more."""
    paths = [str(entry["path"]) for entry in facts["caches"]]
    for path in paths:
        if not store.exists(path):
            raise UsageError(
                f"the cache of this run, {path}, is not there any more. "
                "Say where it is now with --cache" + (", once for each." if paths[1:] else ".")
            )
    return paths


def prune(run: Path, keep: int) -> None:
    """Keep the last ``keep`` checkpoints and the best; the JSON goes first, then the tensors.

    Tensors without a JSON and parts of files are what a kill left behind; they go too.
    """
    there, scored = steps(run), _scores(run)
    kept = set(there[-keep:])
    if scored:
        kept.add(min(scored, key=lambda step: (scored[step], -step)))
    for step in set(there) - kept:
        path_of(run, step).with_suffix(".json").unlink()
    for path in (run / FOLDER).glob("*.safetensors"):
        if not path.with_suffix(".json").exists():
            path.unlink()
    for path in publish.leftovers(run / FOLDER):
        path.unlink()


def best_score(run: Path) -> float | None:
    """The lowest validation score of the checkpoints that are there; None where none was scored."""
    return min(_scores(run).values(), default=None)


def _scores(run: Path) -> dict[int, float]:
    """Validation score by step, of those whose JSON is whole and has one."""
    scores = {}
    for step in steps(run):
        try:
            score = _record(path_of(run, step).with_suffix(".json"))["facts"].get("score")
        except CorruptCheckpoint:
            continue
        if score is not None:
            scores[step] = float(score)
    return scores


def _record(path: Path) -> dict[str, Any]:
    try:
        data = path.read_bytes()
        document = parse(data, str(path))
        record = decode(document, dict[str, Any], str(path))
    except OSError as error:
        raise CorruptCheckpoint(f"{path} cannot be read ({error.strerror or error}).") from error
    except (CorruptCache, ValueError) as error:  # ValueError: a flip spelt NaN or a wrong byte
        raise CorruptCheckpoint(f"{path} is damaged.") from error
    if _as_json(document) != data:  # a flipped space would change no value, yet is damage
        raise CorruptCheckpoint(f"{path} is damaged.")
    return record


def _as_json(record: Mapping[str, Any]) -> bytes:
    return json.dumps(record, indent=1, allow_nan=False).encode()


def stored_facts(path: Path) -> dict[str, Any] | None:
    """What a run folder's config.json says; None where there is none yet."""
    stored = path / "config.json"
    try:
        facts = json.loads(stored.read_bytes())
        if not isinstance(facts["config"], dict):
            raise TypeError("config is not a table")
    except FileNotFoundError:
        return None
    except (ValueError, KeyError, TypeError) as error:
        raise RunMismatch(f"{stored} cannot be read ({error}). Choose another --out.") from error
    return dict(facts)


def facts_of_the_run(
    path: Path, config: TrainConfig, *, extend: bool = False
) -> dict[str, Any] | None:
    """What the run folder says that is begun or goes on with ``config``; None for a new one.

    RunMismatch when it has other settings, UsageError for what is no run folder.
    """
    if path.is_file():
        raise UsageError(f"{path} is a file, not a run folder. Choose another --out.")
    facts = stored_facts(path)
    if facts is not None:
        refuse_changes(path, facts["config"], config, extend=extend)
    elif path.exists() and any(not _is_leftover(entry) for entry in path.iterdir()):
        raise UsageError(f"{path} is not empty and not a run. Choose another --out.")
    return facts


LENGTH = frozenset({"num_steps", "epochs"})
"""Settings that say how long a run is."""


def gets_more(stored: Mapping[str, Any], config: TrainConfig) -> bool:
    """Whether a config asks for another length than the stored one."""
    before, wanted = TrainConfig().to_dict() | dict(stored), config.to_dict()
    return any(before[key] != wanted[key] for key in LENGTH)


def refuse_changes(
    path: Path, stored: Mapping[str, Any], config: TrainConfig, *, extend: bool = False
) -> None:
    """RunMismatch with one line per setting that differs from the run folder's own.

    Settings of ``SAFE_KEYS`` may differ, and with ``extend`` the length; one that the folder does
    not name had its default.
    """
    before = TrainConfig().to_dict() | dict(stored)
    wanted = config.to_dict()
    free = SAFE_KEYS | LENGTH if extend else SAFE_KEYS
    differing = [
        key for key in sorted({*before, *wanted} - free) if before.get(key) != wanted.get(key)
    ]
    if differing:
        lines = "".join(
            f"\n  {key}: {before.get(key)!r} -> {wanted.get(key)!r}" for key in differing
        )
        longer = " --extend gives it more steps." if LENGTH.issuperset(differing) else ""
        raise RunMismatch(
            f"{path} was begun with other settings:{lines}\n"
            f"Give the same settings to go on, or another --out for a new run.{longer}"
        )


def _is_leftover(entry: Path) -> bool:
    """What a run that was killed before it published its settings may have written."""
    return entry.name == names.LOCK or entry.name.endswith(publish.TEMPORARY_SUFFIX)
