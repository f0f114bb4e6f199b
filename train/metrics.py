"""What a run writes down while it trains: one JSON object per line, and what else was asked for.

A resumed run drops the lines after the step it goes on from, so that the file reads like that of
an uninterrupted run.
"""

from __future__ import annotations

import importlib.util
import json
import os
import re
import time
import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from phistill import plugins
from phistill.cache.storage import publish
from phistill.errors import UsageError

from .config import TrainConfig

FILE = "metrics.jsonl"

Values = Mapping[str, Any]
"""Numbers by name, and mappings of them."""


PROJECT = "phistill"
"""Of W&B, and experiment of MLflow, where the environment names none."""

_RUN_ID = "phistill.run_id"


@dataclass(frozen=True, kw_only=True, slots=True)
class LoggedRun:
    """What a logger is told of its run."""

    path: Path
    config: TrainConfig
    first_step: int
    """The run goes on from here; 0 for a new one."""

    run_id: str
    """Kept when a run goes on, and unlike that of any other run."""


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

    def __init__(self, about: LoggedRun) -> None:
        from torch.utils.tensorboard import SummaryWriter

        folder = str(about.path / "tensorboard")
        self._writer: Any = SummaryWriter(folder, purge_step=about.first_step + 1)

    def write(self, event: str, step: int, values: Values) -> None:
        for name, value in _flat(values):
            self._writer.add_scalar(f"{event}/{name}", value, step)

    def close(self) -> None:
        self._writer.close()


class WeightsAndBiases(Logger):
    """The same to Weights & Biases, each run of a sweep as one of its own.

    What a run that goes on repeats since its checkpoint is dropped there: steps only rise.
    """

    def __init__(self, about: LoggedRun) -> None:
        import wandb

        self._run = wandb.init(
            project=os.environ.get("WANDB_PROJECT", PROJECT),
            dir=str(about.path),
            name=about.path.name,
            group=about.path.absolute().parent.name,
            config=about.config.to_dict(),
            resume="allow",
            id=about.run_id,
            reinit="create_new",  # or cells of a sweep, which are open at once, would be one run
            settings=wandb.Settings(console="off"),
        )

    def write(self, event: str, step: int, values: Values) -> None:
        self._run.log({f"{event}/{name}": value for name, value in _flat(values)}, step=step)

    def close(self) -> None:
        self._run.finish()


class MLflow(Logger):
    """The same to MLflow, at MLFLOW_TRACKING_URI, in the experiment MLFLOW_EXPERIMENT_NAME.

    A run is found again by its tag ``phistill.run_id``; steps that it has are not sent twice.
    """

    def __init__(self, about: LoggedRun) -> None:
        from mlflow import MlflowClient
        from mlflow.entities import Metric, Param

        self._metric, self._client = Metric, MlflowClient()
        name = os.environ.get("MLFLOW_EXPERIMENT_NAME", PROJECT)
        stored = self._client.get_experiment_by_name(name)
        experiment = stored.experiment_id if stored else self._client.create_experiment(name)
        same = f"tags.`{_RUN_ID}` = '{about.run_id}'"
        begun = self._client.search_runs([experiment], same, max_results=1)
        self._last: dict[str, int] = {}
        if begun:
            self._run = begun[0].info.run_id
            self._client.update_run(self._run, status="RUNNING")
            for event, key in (("train", "train/total"), ("validate", "validate/score")):
                history = self._client.get_metric_history(self._run, key)
                self._last[event] = max((one.step for one in history), default=0)
            return
        tags = {_RUN_ID: about.run_id, "phistill.folder": str(about.path)}
        created = self._client.create_run(experiment, run_name=about.path.name, tags=tags)
        self._run = created.info.run_id
        settings = about.config.to_dict().items()
        self._client.log_batch(
            self._run, params=[Param(key, str(value)) for key, value in settings]
        )

    def write(self, event: str, step: int, values: Values) -> None:
        if step <= self._last.get(event, 0):
            return
        now = round(1000 * time.time())
        metrics = [
            self._metric(re.sub(r"[^\w./ -]", "_", f"{event}/{name}"), value, now, step)
            for name, value in _flat(values)
        ]
        self._client.log_batch(self._run, metrics=metrics)

    def close(self) -> None:
        self._client.set_terminated(self._run)


class _Afar(Logger):
    """A logger whose failures are said once and end nothing: metrics.jsonl has every number."""

    def __init__(self, name: str, logger: Logger) -> None:
        self._name, self._logger = name, logger
        self._lost = False

    def write(self, event: str, step: int, values: Values) -> None:
        if not self._lost:
            self._try(self._logger.write, event, step, values)

    def close(self) -> None:
        self._try(self._logger.close)

    def _try(self, call: Callable[..., None], *arguments: Any) -> None:
        try:
            call(*arguments)
        except Exception as error:  # somebody else's client, and what lies behind it
            if not self._lost:
                warnings.warn(
                    f"{self._name} takes no more numbers ({_one_line(error)}); the run goes on, "
                    f"and {FILE} has them all.",
                    stacklevel=2,
                )
            self._lost = True


_LOGGERS: dict[str, type[TensorBoard] | type[WeightsAndBiases] | type[MLflow]] = {
    "tensorboard": TensorBoard,
    "wandb": WeightsAndBiases,
    "mlflow": MLflow,
}
"""By the name of a setting, which is the package's and the extra's too."""


def open_loggers(run: Path, config: TrainConfig, *, first_step: int, run_id: str) -> list[Logger]:
    """Those a config asks for; metrics.jsonl is always one of them.

    ``run_id`` is unlike that of any other run, whatever its folder is called. UsageError where one
    cannot be begun.
    """
    about = LoggedRun(path=run, config=config, first_step=first_step, run_id=run_id)
    loggers: list[Logger] = [JsonLines(run, first_step)]
    unasked = ["tensorboard"] if config.tensorboard and _is_installed("tensorboard") else []
    for name in dict.fromkeys([*unasked, *config.loggers]):
        try:
            logger = (plugins.load(name, "loggers") if ":" in name else _LOGGERS[name])(about)
        except Exception as error:  # somebody else's client, and what lies behind it
            for one in loggers:
                one.close()
            raise UsageError(
                f"loggers: {name} cannot be begun: {_one_line(error)}.{_ADVICE.get(name, '')}"
            ) from error
        loggers.append(_Afar(name, logger))
    return loggers


_ADVICE = {
    "wandb": " Log in with `wandb login`, or set WANDB_MODE=offline.",
    "mlflow": " Set MLFLOW_TRACKING_URI to the server or database it should write to.",
}


def refuse_missing_loggers(config: TrainConfig) -> None:
    """UsageError naming the extra when a logger's package is not installed."""
    for name in config.loggers:
        if ":" in name:
            plugins.load(name, "loggers")
        elif not _is_installed(name):
            raise UsageError(
                f"loggers: {name} is not installed. Install the extra: "
                f"pip install 'phistill[{name}]'."
            )


def read_metrics(run: Path, event: str | None = None) -> list[dict[str, Any]]:
    """The lines of a run's log, of one event when named; a torn last line is left out."""
    path = run / FILE
    if not path.exists():
        return []
    lines = [line for line in map(_parsed, path.read_text(encoding="utf-8").splitlines()) if line]
    return [line for line in lines if event is None or line.get("event") == event]


def _is_installed(package: str) -> bool:
    return importlib.util.find_spec(package) is not None


def _one_line(error: Exception) -> str:
    text = str(error).strip().splitlines()
    return (text[0] if text else type(error).__name__).rstrip(".")


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
