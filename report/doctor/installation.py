"""What is installed: packages, extras, sources of teachers, and the model hub."""

from __future__ import annotations

import platform
import sys
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from phistill.errors import counted
from phistill.plugins import TEACHERS, registered

from .findings import Finding

NEEDED = (
    *("torch", "torchvision", "timm", "open_clip_torch", "zarr", "numpy", "pillow", "pyarrow"),
    *("dask", "safetensors", "awscrt"),
)
EXTRAS = {
    "matplotlib": ("reports", "report"),
    "jinja2": ("reports", "report"),
    "tensorboard": ("TensorBoard events", "tensorboard"),
    "wandb": ("runs at Weights & Biases", "wandb"),
    "mlflow-skinny": ("runs at MLflow", "mlflow"),
    "distributed": ("dask clusters", "distributed"),
    "transformers": ("teachers from transformers", "transformers"),
    "obstore": ("caches on object stores", "object-stores"),
}
HUB_TIMEOUT_S = 10.0


def versions() -> Iterator[Finding]:
    yield Finding("python", "ok", f"{platform.python_version()} at {sys.executable}")
    installed, missing = [], []
    for package in NEEDED:
        try:
            installed.append(f"{package} {version(package)}")
        except PackageNotFoundError:
            missing.append(package)
    yield Finding("packages", "ok", ", ".join(installed))
    if missing:
        yield Finding(
            "packages", "problem", f"not installed: {', '.join(missing)}", "pip install phistill"
        )


def extras() -> Iterator[Finding]:
    for package, (purpose, extra) in EXTRAS.items():
        try:
            version(package)
        except PackageNotFoundError:
            yield Finding(
                "packages", "note", f"{package} is not installed ({purpose})",
                f"If you want them: pip install 'phistill[{extra}]'",
            )  # fmt: skip


def torch_fits() -> Iterator[Finding]:
    try:
        from torchvision.ops import nms
    except (ImportError, RuntimeError) as error:
        yield Finding(
            "torch", "problem", f"torch and torchvision do not fit together: {error}",
            "Install both from the same index, in matching versions.",
        )  # fmt: skip
        return
    del nms
    yield Finding("torch", "ok", "torch and torchvision fit together")


def teacher_sources() -> Iterator[Finding]:
    entries = registered(TEACHERS)
    yield Finding("teachers", "ok", f"sources: {', '.join(sorted(entries))}, module")
    for entry in entries.values():
        if entry.value.startswith("phistill."):
            continue
        try:
            entry.load()
        except Exception as error:  # somebody else's package
            yield Finding(
                "teachers", "problem", f"source {entry.name} ({entry.value}) fails: {error}",
                "Mend or remove the package that offers it.",
            )  # fmt: skip


def hub(*, network: bool) -> Iterator[Finding]:
    try:
        from huggingface_hub import constants
    except ImportError:
        yield Finding("hub", "problem", "huggingface_hub is not installed", "pip install phistill")
        return
    place = Path(constants.HF_HUB_CACHE)
    models = sorted(path.name for path in place.glob("models--*")) if place.is_dir() else []
    yield Finding("hub", "ok", f"{counted(len(models), 'model')} downloaded to {place}")
    if constants.HF_HUB_OFFLINE:
        yield Finding(
            "hub", "note", "HF_HUB_OFFLINE is set: only downloaded weights can be used",
            "Unset it to download others.",
        )  # fmt: skip
    if network:
        yield _answer(constants.ENDPOINT)


def _answer(endpoint: str) -> Finding:
    from urllib.parse import urlsplit
    from urllib.request import Request, urlopen

    if urlsplit(endpoint).scheme not in ("http", "https"):
        return Finding("hub", "problem", f"HF_ENDPOINT={endpoint!r} is no web address", "Unset it.")
    try:
        with urlopen(Request(endpoint, method="HEAD"), timeout=HUB_TIMEOUT_S) as reply:  # noqa: S310
            return Finding("hub", "ok", f"{endpoint} answers ({reply.status})")
    except OSError as error:
        return Finding(
            "hub", "problem", f"{endpoint} does not answer: {error}",
            "Set a proxy, or download the weights elsewhere and give weights=FILE.",
        )  # fmt: skip
