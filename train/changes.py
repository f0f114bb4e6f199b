"""Which settings a run folder may see changed when it is gone on with, and which are refused."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from phistill.errors import RunMismatch

from .config import SAFE_KEYS, TrainConfig


def differences(stored: Mapping[str, Any], wanted: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
    """Fields that differ between two ``to_dict`` results and may not change on resume.

    A run of an older version lacks the fields that came later; they had no effect but the default.
    """
    stored = TrainConfig().to_dict() | dict(stored)
    keys = sorted((set(stored) | set(wanted)) - SAFE_KEYS)
    return {
        key: (stored.get(key), wanted.get(key))
        for key in keys
        if stored.get(key) != wanted.get(key)
    }


def refuse_changes(run: object, stored: Mapping[str, Any], wanted: Mapping[str, Any]) -> None:
    """RunMismatch with one line per setting that differs from the run folder's own."""
    changed = differences(stored, wanted)
    if changed:
        lines = "".join(f"\n  {key}: {old!r} -> {new!r}" for key, (old, new) in changed.items())
        raise RunMismatch(
            f"{run} was begun with other settings:{lines}\n"
            "Give the same settings to go on, or another --out for a new run."
        )
