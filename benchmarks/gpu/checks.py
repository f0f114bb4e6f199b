"""What has to hold on a GPU: its tests, every command, going on after a kill, several ranks."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

from sizes import Sizes

from phistill.compute.devices import visible_devices
from phistill.train.metrics import read_metrics

ROOT = Path(__file__).parents[2]
IMAGES = ROOT / "demo" / "images.parquet"
STUDENT = (
    'student = "vit_tiny_patch16_224"\n'
    "student_options = { patch_size = 10, embed_dim = 192, depth = 4, num_heads = 3 }\n"
    "head_width = 256\ntensorboard = false\n"
)


def phistill(*arguments: object) -> list[str]:
    return [sys.executable, "-m", "phistill", *map(str, arguments)]


def run(command: list[str], **environment: str) -> str:
    """Run to the end; RuntimeError with what it said last when it fails."""
    done = subprocess.run(
        command, capture_output=True, text=True, check=False, env={**os.environ, **environment}
    )
    if done.returncode:
        raise RuntimeError(
            f"{' '.join(command[2:5])} ended with {done.returncode}: {done.stderr[-1500:]}"
        )
    return done.stdout


def tests(sizes: Sizes, folder: Path) -> list[str]:
    """pytest -m cuda, with a line for what was skipped."""
    # Only modules that have any: the others need packages that are not carried along.
    files = [
        path for path in (ROOT / "tests").rglob("test_*.py") if "mark.cuda" in path.read_text()
    ]
    options = ["-q", "-m", "cuda", "-rs", "--no-fold-skipped", "-p", "no:cacheprovider"]
    done = subprocess.run(
        [sys.executable, "-m", "pytest", *options, *map(str, sorted(files))],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise RuntimeError(done.stdout[-2000:])
    skipped = [line for line in done.stdout.splitlines() if line.startswith("SKIPPED")]
    return [
        f"`pytest -m cuda`: {done.stdout.strip().splitlines()[-1]}.",
        "",
        *(f"- {line}" for line in skipped),
    ]


def demo_cache(sizes: Sizes, folder: Path) -> Path:
    """The bundled images through two teachers, with statistics."""
    cache = folder / "demo.cache"
    teachers = ("--teacher", "demo:clip", "--teacher", "demo:mask")
    run(phistill("extract", IMAGES, "--cache", cache, *teachers, "--pixel-size", 60,
                 "--device", sizes.device))  # fmt: skip
    run(phistill("fit-stats", cache))
    return cache


def settings(folder: Path, num_steps: int, **more: object) -> Path:
    """A TOML file of a small student."""
    values = {"batch_size": 48, **more}
    lines = [f"{key} = {json.dumps(value)}" for key, value in values.items()]
    path = folder / "run.toml"
    path.write_text(STUDENT + f"num_steps = {num_steps}\n" + "\n".join(lines) + "\n", "utf-8")
    return path


def commands(sizes: Sizes, folder: Path) -> list[str]:
    """extract to export, each as a person runs it."""
    cache, runs, device = folder / "demo.cache", folder / "runs", sizes.device
    toml, grid = settings(folder, sizes.demo_steps), folder / "grid.toml"
    grid.write_text(
        f'[base]\n{toml.read_text()}device = "{device}"\n[grid]\nnormalizer = ["phi-s", "none"]\n',
        "utf-8",
    )
    teachers = ("--teacher", "demo:clip", "--teacher", "demo:mask")
    steps = {
        "doctor": phistill("doctor"),
        "extract": phistill("extract", IMAGES, "--cache", cache, *teachers, "--pixel-size", 60,
                            "--device", device),
        "verify": phistill("verify", cache),
        "fit-stats": phistill("fit-stats", cache),
        "train": phistill("train", cache, "--out", runs / "one", "--config", toml,
                          "--device", device),
        "train, bf16 compiled": phistill("train", cache, "--out", runs / "two", "--config", toml,
                                         "--device", device, "--set", "compile=true",
                                         "--set", 'precision="bf16"'),
        "sweep": phistill("sweep", cache, "--config", grid, "--out", folder / "grid"),
        "evaluate": phistill("evaluate", runs / "one", "--device", device),
        "export": phistill("export", runs / "one", folder / "exported"),
    }  # fmt: skip
    skipped = []
    if sizes.name == "small":
        del steps["train, bf16 compiled"]
        skipped = ["", "Skipped here: train in bf16 with compile=true (needs a CUDA device)."]
    lines = ["| command | seconds | its last line |", "|---|---|---|"]
    for name, command in steps.items():
        begun = time.monotonic()
        said = run(command).strip().splitlines()
        last = re.sub(re.escape(str(folder)), "...", said[-1] if said else "").replace("|", "/")
        lines.append(f"| {name} | {time.monotonic() - begun:.1f} | {last} |")
    return lines + skipped


def resume(sizes: Sizes, folder: Path) -> list[str]:
    """SIGKILL during extract and during train; what is left after running again."""
    cache = folder / "demo.cache"
    command = phistill("extract", IMAGES, "--cache", cache, "--teacher", "demo:clip",
                       "--pixel-size", 60, "--device", sizes.device)  # fmt: skip
    kill_when(command, lambda: any(cache.glob("commits/clip/*.json")))
    left = len(list(cache.glob("commits/clip/*.json")))
    run(command)
    run(phistill("verify", cache))
    run(phistill("fit-stats", cache))
    more = {"checkpoint_every": max(1, sizes.killed_steps // 6), "log_every": 1}
    toml = settings(folder, sizes.killed_steps, **more)
    losses = {}
    for name in ("whole", "again", "killed"):
        out = folder / name
        command = phistill("train", cache, "--out", out, "--config", toml, "--device", sizes.device)
        if name == "killed":
            kill_when(command, lambda: num_logged(out) >= sizes.killed_steps // 2)  # noqa: B023
        run(command)
        losses[name] = {line["step"]: line["losses"] for line in read_metrics(out, "train")}
    return [
        f"- extract killed after {left} commits, run again: `verify` finds every byte right",
        f"- train of {sizes.killed_steps} steps, twice: losses differ by "
        f"{difference(losses['whole'], losses['again']):.2e} at most",
        f"- the same killed half-way and run again: by "
        f"{difference(losses['whole'], losses['killed']):.2e} at most",
    ]


def num_logged(run_folder: Path) -> int:
    try:
        return len(list(read_metrics(run_folder, "train")))
    except (OSError, ValueError):
        return 0


def difference(one: dict[int, dict[str, float]], two: dict[int, dict[str, float]]) -> float:
    """The largest relative difference of a loss at any step; both must have all steps."""
    if one.keys() != two.keys():
        raise RuntimeError(f"steps differ: {len(one)} and {len(two)} were logged.")
    return max(
        abs(value - two[step][key]) / abs(value)
        for step, losses in one.items()
        for key, value in losses.items()
    )


def kill_when(command: list[str], reached: Callable[[], bool], limit_s: float = 200) -> None:
    """SIGKILL a command once ``reached()``; RuntimeError when it ends or takes too long before."""
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + limit_s
    while not reached():
        if process.poll() is not None or time.monotonic() > deadline:
            process.kill()
            raise RuntimeError(f"{' '.join(command[2:5])} could not be killed in its middle.")
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()


def ranks(sizes: Sizes, folder: Path) -> list[str]:
    """torchrun over every GPU, or over two processes of the CPU."""
    cache, devices = demo_cache(sizes, folder), visible_devices()
    several = sizes.device.startswith("cuda") and len(devices) > 1
    world = len(devices) if several else 2
    toml = settings(folder, sizes.demo_steps, batch_size=24 * world)
    device = "cuda" if several else "cpu"
    losses = {}
    for count in (1, world):
        out = folder / f"run{count}"
        torchrun = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", str(count)]
        train = ["-m", "phistill", "train", cache, "--out", out, "--config", toml]
        precision = ["--set", 'precision="float32"', "--device", device]
        run([*torchrun, "--standalone", *map(str, train), *precision], OMP_NUM_THREADS="1")
        losses[count] = {line["step"]: line["losses"] for line in read_metrics(out, "train")}
    backend = "nccl" if several else "gloo"
    lines = [
        f"- {world} ranks ({backend}) against one: losses differ by "
        f"{difference(losses[1], losses[world]):.2e} at most",
    ]
    if not several:
        lines.append(f"- skipped: nccl (needs two CUDA devices, here are {len(devices)})")
    return lines
