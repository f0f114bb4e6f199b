"""What is installed here, which devices there are, and whether a cache and a run are in order.

Each finding says what is, and what to do about it. Nothing touches the network unless asked.
"""

from __future__ import annotations

import json
import os
import platform
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Literal

from phistill.cache import Cache, CommitRecord
from phistill.cache import open as open_cache
from phistill.cache.storage.files import LocalFiles, open_files
from phistill.errors import (
    CorruptCache,
    LockHeld,
    MissingMoments,
    PhistillError,
    StaleMoments,
    StoreError,
    counted,
)
from phistill.pipeline.decode.image import DecodeSetup
from phistill.pipeline.decode.pool import DecodePool
from phistill.pipeline.decode.rgb import DecodeRules
from phistill.pipeline.decode.shards import num_cores
from phistill.pipeline.decode.views import Rendering, View
from phistill.plugins import TEACHERS, registered

from .terminal import bytes_text

State = Literal["ok", "note", "problem"]
NEEDED = (
    *("torch", "torchvision", "timm", "open_clip_torch", "zarr", "numpy", "pillow", "pyarrow"),
    *("dask", "safetensors", "awscrt"),
)
EXTRAS = {
    "matplotlib": ("reports", "report"),
    "jinja2": ("reports", "report"),
    "tensorboard": ("TensorBoard events", "tensorboard"),
    "distributed": ("dask clusters", "distributed"),
    "transformers": ("teachers from transformers", "transformers"),
    "obstore": ("caches on object stores", "s3"),
}
LITTLE_SPACE = 10 * 10**9
HUB_TIMEOUT_S = 10.0


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that was looked at."""

    topic: str
    state: State
    text: str
    """What is."""
    advice: str = ""
    """What to do; empty where nothing is to be done."""


def doctor(
    cache: Path | str | None = None, run: Path | None = None, *, network: bool = False
) -> tuple[Finding, ...]:
    """Look at versions, devices, disks, decoding, the hub's cache, and a cache and a run if given.

    ``network`` asks the hub whether it answers. A check that fails by itself is a finding too.
    """
    checks: list[Callable[[], Iterator[Finding]]] = [
        _versions, _extras, _torch, _devices, _cores, lambda: _disks(cache), _decoding, _sources,
        lambda: _hub(network=network),
    ]  # fmt: skip
    if cache is not None:
        checks.append(lambda: _cache(cache))
    if run is not None:
        checks.append(lambda: _run(run, cache))
    found: list[Finding] = []
    for check in checks:
        try:
            found += check()
        except PhistillError as error:
            damaged = isinstance(error, CorruptCache)
            advice = f"`phistill verify {cache}` lists all of it." if damaged and cache else ""
            found.append(Finding("cache", "problem", str(error), advice))
        except Exception as error:  # a broken installation may raise anything; say so and go on
            found.append(
                Finding("doctor", "problem", f"a check failed: {type(error).__name__}: {error}",
                        "Install phistill anew; if it stays, report it with this line.")
            )  # fmt: skip
    return tuple(found)


def render(findings: tuple[Finding, ...]) -> str:
    """Findings as text, a line each, what to do below it."""
    marks = {"ok": "ok     ", "note": "note   ", "problem": "PROBLEM"}
    lines = []
    for found in findings:
        lines.append(f"{marks[found.state]}  {found.topic:<10} {found.text}")
        if found.advice:
            lines.append(f"{'':21}{found.advice}")
    num = sum(found.state == "problem" for found in findings)
    lines.append("Nothing is wrong." if not num else f"{num} problem{'s' * (num > 1)}.")
    return "\n".join(lines)


def to_json(findings: tuple[Finding, ...]) -> str:
    return json.dumps([asdict(found) for found in findings], indent=2)


def _versions() -> Iterator[Finding]:
    yield Finding("python", "ok", f"{platform.python_version()} at {sys.executable}")
    found, missing = [], []
    for package in NEEDED:
        try:
            found.append(f"{package} {version(package)}")
        except PackageNotFoundError:
            missing.append(package)
    yield Finding("packages", "ok", ", ".join(found))
    if missing:
        yield Finding(
            "packages", "problem", f"not installed: {', '.join(missing)}", "pip install phistill"
        )


def _extras() -> Iterator[Finding]:
    for package, (what, extra) in EXTRAS.items():
        try:
            version(package)
        except PackageNotFoundError:
            yield Finding(
                "packages", "note", f"{package} is not installed ({what})",
                f"If you want them: pip install 'phistill[{extra}]'",
            )  # fmt: skip


def _torch() -> Iterator[Finding]:
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


def _devices() -> Iterator[Finding]:
    import torch

    if torch.cuda.is_available():
        for number in range(torch.cuda.device_count()):
            facts = torch.cuda.get_device_properties(number)
            yield Finding(
                "device", "ok", f"cuda:{number} {facts.name}, {bytes_text(facts.total_memory)}"
            )
    elif torch.backends.mps.is_available():
        yield Finding("device", "ok", "mps")
    else:
        built = torch.version.cuda
        advice = "Fine for small teachers; a ViT-L needs about a second per image."
        if built and shutil.which("nvidia-smi"):
            advice = f"torch is built for CUDA {built} and sees no device: look at nvidia-smi."
        yield Finding("device", "note", "no GPU: teachers and students run on the CPU", advice)


def _cores() -> Iterator[Finding]:
    cores = num_cores()
    text = f"{cores} cores of {os.cpu_count()}, {platform.machine()}"
    threads = os.environ.get("OMP_NUM_THREADS")
    if threads is not None:
        text += f", OMP_NUM_THREADS={threads}"
    yield Finding("cpu", "ok", text)


def _disks(cache: Path | str | None) -> Iterator[Finding]:
    places = {"here": Path.cwd(), "temporary files": Path(tempfile.gettempdir())}
    files = None if cache is None else open_files(cache)
    if isinstance(files, LocalFiles):
        places = {"the cache": files.root, **places}
    for what, place in places.items():
        existing = place.absolute()
        while not existing.exists():
            existing = existing.parent
        free = shutil.disk_usage(existing).free
        short = free < LITTLE_SPACE
        yield Finding(
            "disk", "note" if short else "ok", f"{bytes_text(free)} free for {what} ({existing})",
            "phistill plan says what a cache needs." if short else "",
        )  # fmt: skip
        if not os.access(existing, os.W_OK):
            yield Finding(
                "disk", "problem", f"{existing} cannot be written", "Choose another place."
            )


def _decoding() -> Iterator[Finding]:
    from PIL import features

    lacking = [name for name in ("jpg", "zlib", "webp", "libtiff", "jpg_2000", "avif")
               if not features.check(name)]  # fmt: skip
    if lacking:
        yield Finding(
            "decoding", "note", f"Pillow lacks {', '.join(lacking)}",
            "Such images are rejected; install Pillow's ordinary wheel.",
        )  # fmt: skip
    setup = DecodeSetup(DecodeRules(), (View(),), (Rendering((8, 8), "bicubic"),), 0)
    pool = DecodePool(1, setup)
    try:
        reason = pool.decode(b"", "doctor", [0]).reason
    except PhistillError as error:
        yield Finding("decoding", "problem", str(error))
        return
    finally:
        pool.close()
    assert reason == "empty file", "an empty image is rejected"
    yield Finding("decoding", "ok", "a decoding process starts and answers")


def _sources() -> Iterator[Finding]:
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


def _hub(*, network: bool) -> Iterator[Finding]:
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


def _cache(location: Path | str) -> Iterator[Finding]:
    try:
        cache = open_cache(location)
    except PhistillError as error:
        yield Finding("cache", "problem", str(error))
        return
    yield Finding("cache", "ok", f"{location}: {counted(cache.index().num_rows, 'row')}, teachers "
                                 f"{', '.join(cache.teachers) or 'none'}")  # fmt: skip
    yield from _writer(cache)
    rejected: set[int] = set()
    for owner in cache.owners:
        commits = cache.commits(owner)
        if missing := cache.missing_shards(owner):
            yield Finding(
                "cache", "problem",
                f"{owner}: {len(missing)} of {cache.info.num_shards} shards are missing",
                f"phistill extract IMAGES --cache {location}",
            )  # fmt: skip
        wrong = sorted(_wrong_sizes(cache, commits.values()))
        if wrong:
            yield Finding(
                "cache", "problem",
                f"{owner}: gone or cut: {counted(len(wrong), 'file')}, {wrong[0]} first",
                f"phistill extract IMAGES --cache {location} --repair",
            )  # fmt: skip
        rejected |= {r.start + slot for r in commits.values() for slot in r.reasons}
    if rejected:
        yield Finding(
            "cache", "note", f"rejected rows: {len(rejected):,}",
            f"phistill inspect {location} --rejects",
        )  # fmt: skip
    yield from _moments(cache)
    yield Finding(
        "cache", "ok", "sizes only were compared", f"phistill verify {location} reads it all."
    )


def _wrong_sizes(cache: Cache, records: Iterable[CommitRecord]) -> list[str]:
    committed = {name: size for record in records for name, (size, _) in record.files.items()}
    found: dict[str, int | None] = {}

    def look(name: str) -> None:
        found[name] = cache.files.size(name)

    cache.files.each(look, list(committed))
    return [name for name, size in committed.items() if found[name] != size]


def _writer(cache: Cache) -> Iterator[Finding]:
    try:
        with cache.writing():
            pass
    except LockHeld as error:
        yield Finding("cache", "note", str(error))
    except OSError as error:
        yield Finding(
            "cache", "note", f"cannot be written: {error.strerror or error}", "Reading works."
        )
    except StoreError as error:
        yield Finding("cache", "note", f"cannot be written: {error}", "Reading works.")


def _moments(cache: Cache) -> Iterator[Finding]:
    from phistill.stats import load_moments

    for teacher in cache.teachers:
        for kind in cache.teacher(teacher).kinds:
            if kind == "registers":
                continue
            try:
                load_moments(cache, teacher, kind)
            except (MissingMoments, StaleMoments) as error:
                yield Finding("cache", "problem", str(error))
            except PhistillError as error:
                yield Finding("cache", "problem", str(error))
            else:
                yield Finding("cache", "ok", f"{teacher}/{kind} has its statistics")


def _run(path: Path, cache_path: Path | str | None) -> Iterator[Finding]:
    try:
        facts: Any = json.loads((path / "config.json").read_bytes())
        teachers = facts["teachers"]
        names = sorted(teachers.keys())
    except FileNotFoundError:
        yield Finding("run", "problem", f"{path} holds no config.json, so it is no run",
                      "Give the folder that `phistill train --out` made.")  # fmt: skip
        return
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        yield Finding("run", "problem", f"{path}/config.json cannot be read: {error}")
        return
    steps = sorted((path / "checkpoints").glob("*.safetensors"))
    yield Finding(
        "run", "ok", f"{path}: teachers {', '.join(names)}, {counted(len(steps), 'checkpoint')}"
    )
    if cache_path is None:
        return
    try:
        cache = open_cache(cache_path)
    except PhistillError:
        return  # said above
    from phistill.train.evaluation import refuse_other_teachers

    try:
        refuse_other_teachers(cache, teachers, path)
    except PhistillError as error:
        yield Finding("run", "problem", str(error))
    else:
        yield Finding("run", "ok", f"{cache_path} holds the teachers it was trained on")
