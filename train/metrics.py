"""What a run writes down while it trains: one JSON object per line, and TensorBoard events.

A resumed run drops the lines after the step it goes on from, so that the file reads like that of
an uninterrupted run.
"""

from __future__ import annotations

import importlib.util
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from phistill.cache.storage import publish
from phistill.errors import UsageError

FILE = "metrics.jsonl"


class MetricsLog:
    """Appends to metrics.jsonl, and to TensorBoard and W&B where asked for and installed."""

    def __init__(
        self, run: Path, *, first_step: int, tensorboard: bool, wandb: bool, config: Any
    ) -> None:
        _drop_after(run / FILE, first_step)
        self._file = (run / FILE).open("a", encoding="utf-8")
        self._board: Any = None
        self._wandb: Any = None
        if tensorboard and importlib.util.find_spec("tensorboard") is not None:
            from torch.utils.tensorboard import SummaryWriter

            self._board = SummaryWriter(str(run / "tensorboard"), purge_step=first_step + 1)
        if wandb:
            import wandb as client  # type: ignore[import-not-found,unused-ignore]

            self._wandb = client.init(dir=str(run), config=config, resume="allow", id=run.name)

    def write(self, event: str, step: int, values: Mapping[str, Any]) -> None:
        """One line: the event's name, the step, and the values (numbers or mappings of them)."""
        self._file.write(json.dumps({"event": event, "step": step, **values}) + "\n")
        self._file.flush()
        flat = dict(_flatten(values))
        if self._board is not None:
            for name, value in flat.items():
                self._board.add_scalar(f"{event}/{name}", value, step)
        if self._wandb is not None:
            self._wandb.log({f"{event}/{name}": v for name, v in flat.items()}, step=step)

    def close(self) -> None:
        """Flush to the disk and close."""
        os.fsync(self._file.fileno())
        self._file.close()
        if self._board is not None:
            self._board.close()
        if self._wandb is not None:
            self._wandb.finish()


def read_metrics(run: Path, event: str | None = None) -> list[dict[str, Any]]:
    """The lines of a run's log, of one event when named; a torn last line is left out."""
    path = run / FILE
    if not path.exists():
        return []
    lines = [line for line in map(_parsed, path.read_text(encoding="utf-8").splitlines()) if line]
    return [line for line in lines if event is None or line.get("event") == event]


def refuse_missing_wandb(wanted: bool) -> None:
    """UsageError when W&B is wanted and not installed."""
    if wanted and importlib.util.find_spec("wandb") is None:
        raise UsageError("wandb=True, but wandb is not installed: pip install wandb.")


def _drop_after(path: Path, step: int) -> None:
    if not path.exists():
        return
    lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
    kept = [line for line in lines if (parsed := _parsed(line)) and int(parsed["step"]) <= step]
    if kept != lines:
        publish.publish_bytes(path, "".join(kept).encode())


def _parsed(line: str) -> dict[str, Any] | None:
    """A line's object, or None for one that a killed run left unfinished."""
    try:
        value = json.loads(line)
    except ValueError:
        return None
    return value if isinstance(value, dict) else None


def _flatten(values: Mapping[str, Any], prefix: str = "") -> Any:
    for name, value in values.items():
        if isinstance(value, Mapping):
            yield from _flatten(value, f"{prefix}{name}/")
        elif isinstance(value, int | float):
            yield f"{prefix}{name}", value
