"""Everything that only a machine with a GPU can tell, in twenty minutes, on one page.

    make gpu            on such a machine; without a package index after `make wheels` elsewhere
    python benchmarks/gpu/run.py [--device auto] [--small] [--only SECTION] [--out PAGE]

Each section is a process of its own: one that fails or takes too long is named on the page and
costs no other. Without a CUDA device sizes are small, what needs one is named, and the page says
whether the script itself holds together. The exit code is 1 when a section failed.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

# As the phistill command does: threads of OpenMP that spin take the decoder's core (docs/log.md).
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

sys.path.insert(1, str(Path(__file__).parent.parent))  # what all benchmarks share
sys.path.insert(2, str(Path(__file__).parent.parent / "extract"))
sys.path.insert(3, str(Path(__file__).parent.parent / "train"))

import checks
import speed
import torch
from machine import Peak, machine_line
from sizes import LARGE, SMALL, Sizes

from phistill.compute.devices import choose_device, hardware_name, peak_memory_bytes

RESULTS = Path(__file__).parent.parent / "results"

SECTIONS: dict[str, tuple[str, Callable[[Sizes, Path], list[str]], int]] = {
    "tests": ("Tests that need a CUDA device", checks.tests, 300),
    "commands": ("The commands, on the bundled images", checks.commands, 420),
    "resume": ("Killed and run again", checks.resume, 300),
    "ranks": ("Several processes", checks.ranks, 300),
    "extraction": ("extract against the bare forward loop", speed.extraction, 420),
    "training": ("Training from the cache against from memory", speed.training, 240),
    "sweep": ("One sweep against as many runs", speed.sweep_against_runs, 240),
}
"""Title, what is done, and the seconds after which it is given up on a GPU."""

PATIENCE = 4
"""How many times as long a CPU may take: it may have other things to do."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="auto")
    parser.add_argument("--small", action="store_true", help="sizes for a CPU, its default")
    parser.add_argument("--only", choices=list(SECTIONS))
    parser.add_argument("--out", type=Path, help="the page  [results/gpu-DATE-DEVICE.md]")
    parser.add_argument("--facts", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    device = choose_device(options.device)
    sizes = SMALL if options.small or device.type != "cuda" else LARGE
    if options.facts is not None:
        run_section(options.only, sizes, str(device), options.facts)
        return
    names = [options.only] if options.only else list(SECTIONS)
    begun, name = time.monotonic(), hardware_name(device)
    page = [
        f"# phistill on {name}",
        "",
        machine_line(f"torch {torch.__version__}", f"device {device}", f"{sizes.name} sizes"),
        "",
    ]
    if device.type != "cuda":
        page += ["No CUDA device: this page shows that the script runs, and no card's speed.", ""]
    failed = []
    for number, section in enumerate(names):
        print(f"[{number + 1}/{len(names)}] {SECTIONS[section][0]}", file=sys.stderr, flush=True)
        lines, ok = attempt(section, options.small, str(device))
        page += [f"## {SECTIONS[section][0]}", "", *lines, ""]
        failed += [] if ok else [section]
    page.append(f"{(time.monotonic() - begun) / 60:.1f} minutes in all. ")
    page[-1] += f"Failed: {', '.join(failed)}." if failed else "Every section ran to its end."
    text = "\n".join(page) + "\n"
    word = name.lower().replace(" ", "-")
    out = options.out or RESULTS / f"gpu-{datetime.now(UTC):%Y-%m-%d}-{word}.md"
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(text, "utf-8")
    print(text)
    print(f"The page is {out}.", file=sys.stderr)
    sys.exit(bool(failed))


def attempt(section: str, small: bool, device: str) -> tuple[list[str], bool]:
    """The lines of a section run in a process of its own, and whether it ended well."""
    limit_s = SECTIONS[section][2] * (1 if device.startswith("cuda") else PATIENCE)
    with tempfile.TemporaryDirectory(prefix="phistill-gpu-") as name:
        facts = Path(name) / "facts.json"
        command = [sys.executable, __file__, "--only", section, "--device", device]
        command += ["--facts", str(facts), *(["--small"] if small else [])]
        begun = time.monotonic()
        try:
            done = subprocess.run(
                command, capture_output=True, text=True, timeout=limit_s, check=False
            )
            end = "" if done.returncode == 0 else (done.stderr or done.stdout)[-2000:]
        except subprocess.TimeoutExpired as error:
            said = error.stderr or b""
            tail = said.decode(errors="replace") if isinstance(said, bytes) else said
            end = f"given up after {limit_s} s\n{tail[-1500:]}"
        seconds = time.monotonic() - begun
        if end or not facts.exists():
            return [f"**Failed** after {seconds:.0f} s:", "", "```", end.strip(), "```"], False
        lines: list[str] = json.loads(facts.read_text("utf-8"))
    return [*lines, "", f"{seconds:.0f} s."], True


def run_section(section: str, sizes: Sizes, device: str, facts: Path) -> None:
    """Do a section here and write its lines, the peaks of memory last."""
    work = SECTIONS[section][1]
    place = choose_device(device)
    with tempfile.TemporaryDirectory(prefix="phistill-gpu-") as folder, Peak() as peak:
        lines = work(sizes.on(device), Path(folder))
    on_device = peak_memory_bytes(place)
    if on_device:
        lines.append(f"- peak memory of tensors on the device: {on_device / 2**30:.2f} GiB")
    lines.append(f"- peak anonymous memory of this process: {peak.megabytes / 1024:.2f} GiB")
    facts.write_text(json.dumps(lines), "utf-8")


if __name__ == "__main__":
    main()
