"""What a run writes down while it trains: one JSON object per line, and what else was asked for.

A resumed run drops the lines after the step it goes on from, so that the file reads like that of
an uninterrupted run.
"""

from __future__ import annotations

import importlib.util
import json
import os
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from phistill.cache.storage import publish
from phistill.errors import UsageError

from .config import TrainConfig

FILE = "metrics.jsonl"

Values = Mapping[str, Any]
"""Numbers by name, and mappings of them."""


class Logger(ABC):
    """Where the numbers of a run go."""

    @abstractmethod
    def write(self, event: str, step: int, values: Values) -> None:
        """The event's name (``train``, ``validate``), the step, and the values."""

    @abstractmethod
    def close(self) -> None:
        """Flush to where it is kept."""


class JsonLines(Logger):
    """metrics.jsonl in the run folder."""

    def __init__(self, run: Path, first_step: int) -> None:
        _drop_after(run / FILE, first_step)
        self._path = run / FILE
        self._file = self._path.open("ab", buffering=0)

    def write(self, event: str, step: int, values: Values) -> None:
        line = (json.dumps({"event": event, "step": step, **values}) + "\n").encode()
        with publish.explained(self._path, len(line)):
            publish.write_all(self._file.fileno(), [memoryview(line)])

    def close(self) -> None:
        with self._file, publish.explained(self._path, 0):
            os.fsync(self._file.fileno())


class TensorBoard(Logger):
    """The same as events below ``tensorboard/``."""

    def __init__(self, run: Path, first_step: int) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self._writer: Any = SummaryWriter(str(run / "tensorboard"), purge_step=first_step + 1)

    def write(self, event: str, step: int, values: Values) -> None:
        for name, value in _flat(values):
            self._writer.add_scalar(f"{event}/{name}", value, step)

    def close(self) -> None:
        self._writer.close()


class WeightsAndBiases(Logger):
    """The same to Weights & Biases; a run that goes on goes on there too."""

    def __init__(self, run: Path, run_id: str, config: TrainConfig) -> None:
        import wandb  # type: ignore[import-not-found,unused-ignore]

        self._run: Any = wandb.init(
            dir=str(run), name=run.name, config=config.to_dict(), resume="allow", id=run_id
        )

    def write(self, event: str, step: int, values: Values) -> None:
        self._run.log({f"{event}/{name}": value for name, value in _flat(values)}, step=step)

    def close(self) -> None:
        self._run.finish()


def open_loggers(run: Path, config: TrainConfig, *, first_step: int, run_id: str) -> list[Logger]:
    """Those a config asks for; metrics.jsonl is always one of them.

    ``run_id`` is unlike that of any other run, whatever its folder is called.
    """
    loggers: list[Logger] = [JsonLines(run, first_step)]
    if config.tensorboard and _is_installed("tensorboard"):
        loggers.append(TensorBoard(run, first_step))
    if config.wandb:
        loggers.append(WeightsAndBiases(run, run_id, config))
    return loggers


def refuse_missing_loggers(config: TrainConfig) -> None:
    """UsageError when W&B is asked for and not installed."""
    if config.wandb and not _is_installed("wandb"):
        raise UsageError("wandb=true, but wandb is not installed: pip install wandb.")


def read_metrics(run: Path, event: str | None = None) -> list[dict[str, Any]]:
    """The lines of a run's log, of one event when named; a torn last line is left out."""
    path = run / FILE
    if not path.exists():
        return []
    lines = [line for line in map(_parsed, path.read_text(encoding="utf-8").splitlines()) if line]
    return [line for line in lines if event is None or line.get("event") == event]


def _is_installed(package: str) -> bool:
    return importlib.util.find_spec(package) is not None


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


def _flat(values: Values, prefix: str = "") -> Iterator[tuple[str, float]]:
    for name, value in values.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{name}/")
        elif isinstance(value, int | float):
            yield f"{prefix}{name}", value
