"""What a cache costs per row, and how it grows: seconds, memory, bytes.

    python benchmarks/scale/run.py --folder /big/disk [--out results.md] [--caches 8:1280000,...]
                                   [--section NAME ...] [--rounds 3]

    large        open, inspect, rows and plan of 100 million rows (8 GB below --folder)
    stages       open, inspect, rows, index, plan, fit-stats' plan, start of a run: by rows
    linear       rejects in every shard, a merge of two halves, appended segments: exponents
    shards       a row in full order, of 40 and of 4,000 shards
    order        the order alone, of 100 million rows
    sharing      eight processes that start the same run: what they hold together
    formats      the first shuffled batch beside mosaic streaming, litdata and Lance, as far as they
                 are installed where --formats-python points

A section that is run by itself takes the place of that section in ``--out``; the others stay.
Caches are in the real format (build.py) with features of a few bytes, and of those only the files
that a run's start reads; those of ``linear`` lie in memory, whose flushes cost no CPU time.
Each stage runs in a process of its own, ``--rounds`` times, and the median is told. Run on a quiet
machine.
"""

from __future__ import annotations

import argparse
import gc
import json
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

sys.path.insert(1, str(Path(__file__).parent.parent))  # what all benchmarks share

import numpy as np
from build import build, give_files
from fitting import growth
from machine import machine_line
from measuring import tell
from opened import shards_section
from stages import small_run

from phistill.cache import Cache
from phistill.cache.joined import open_caches
from phistill.stats import fit_stats
from phistill.stats.fit.pieces import PassOptions, sample_rows
from phistill.train.data.plan import make_plan

HERE = Path(__file__).parent
STAGES = (
    "open",
    "inspect",
    "rows",
    "index",
    "plan",
    "plan of fit-stats",
    "first batch",
)
SAMPLE = 512
"""Images that statistics are taken of."""

MEMORY = Path("/dev/shm")  # noqa: S108  a place in memory
LARGEST = 100_000_000


def measured(stage: str, *arguments: object, rounds: int) -> dict[str, float]:
    """Medians over fresh processes."""
    found = []
    for _ in range(rounds):
        command = [sys.executable, HERE / "stages.py", stage, *map(str, arguments)]
        ended = subprocess.run(command, capture_output=True, text=True, check=False)
        if ended.returncode:
            raise RuntimeError(f"{stage} {arguments}: {ended.stderr[-2000:]}")
        found.append(json.loads(ended.stdout.splitlines()[-1]))
    return {key: statistics.median(one[key] for one in found) for key in found[0]}


def started_shards(cache: Cache) -> list[int]:
    """Shards that a run reads first, and those of the statistics' sample."""
    plan = make_plan(open_caches(cache), small_run())
    rows = [plan.step(number) for number in range(4)]
    rows.append(sample_rows(cache.rows(None, "train"), PassOptions(max_images=SAMPLE)))
    shards: list[int] = np.unique(np.concatenate(rows) // cache.info.shard_rows).tolist()
    return shards


def make(folder: Path, num_rows: int, num_teachers: int) -> tuple[Cache, float]:
    """A cache with statistics, and the seconds it took."""
    begun = time.perf_counter()
    path = folder / f"{num_rows}-{num_teachers}.cache"
    cache = build(path, num_rows, num_teachers, with_files=[])
    give_files(cache, started_shards(cache))
    fit_stats(cache, max_images=SAMPLE)
    return cache, time.perf_counter() - begun


def metadata_bytes(cache: Cache) -> int:
    """Everything but features: packs, records, facts, index, documents."""
    return sum(
        path.stat().st_size
        for name in ("packs", "commits", "facts", "index")
        for path in (cache.path / name).rglob("*")
        if path.is_file()
    )


def stages(options: argparse.Namespace, folder: Path) -> Iterator[str]:
    """Every stage at every size, then how it grows."""
    costs: dict[tuple[int, str], list[tuple[int, dict[str, float]]]] = {}
    for num_teachers, num_rows in options.caches:
        cache, seconds = make(folder, num_rows, num_teachers)
        size = metadata_bytes(cache)
        records = cache.info.num_shards * len(cache.owners)
        yield (
            f"{num_rows:,} rows, {num_teachers} teachers and pixels: built in {seconds:.0f} s; "
            f"{cache.info.num_shards:,} shards; {size / num_rows:.0f} bytes of metadata a row, "
            f"{_bytes_per_record(cache) / records:.0f} a shard and owner"
        )
        yield ""
        yield "| stage | CPU s | s | peak MiB (before) |"
        yield "|---|---|---|---|"
        for stage in STAGES:
            taken = measured(stage, cache.path, rounds=options.rounds)
            costs.setdefault((num_teachers, stage), []).append((num_rows, taken))
            yield (
                f"| {stage} | {taken['cpu_s']:.2f} | {taken['wall_s']:.2f} | "
                f"{taken['megabytes']:.0f} ({taken['before_mb']:.0f}) |"
            )
        yield ""
        if (num_teachers, num_rows) != options.caches[-1]:
            shutil.rmtree(cache.path)
    yield from _growth_table(costs)


def _bytes_per_record(cache: Cache) -> int:
    return sum(p.stat().st_size for p in (cache.path / "packs" / "commits").rglob("*.safetensors"))


def _growth_table(
    costs: dict[tuple[int, str], list[tuple[int, dict[str, float]]]],
) -> Iterator[str]:
    yield f"| teachers, stage | power of rows | at {LARGEST:,} rows: CPU s | MiB |"
    yield "|---|---|---|---|"
    for (num_teachers, stage), found in costs.items():
        sizes = [size for size, _ in found]
        if len(sizes) < 2:
            continue
        cpu = growth(sizes, [max(1e-3, one["cpu_s"]) for _, one in found], LARGEST)
        memory = growth(sizes, [max(0.1, one["megabytes"]) for _, one in found], LARGEST)
        yield (
            f"| {num_teachers}, {stage} | {cpu.exponent:.2f} ± {cpu.exponent_error:.2f} | "
            f"{cpu.at:.1f} ± {cpu.at_error:.1f} | {memory.at:,.0f} ± {memory.at_error:,.0f} |"
        )


def linear(options: argparse.Namespace, folder: Path) -> Iterator[str]:
    """What must not be quadratic."""
    with tempfile.TemporaryDirectory(dir=MEMORY if MEMORY.is_dir() else folder) as memory:
        yield from _linear(options, Path(memory))


def _linear(options: argparse.Namespace, folder: Path) -> Iterator[str]:
    yield "| what | sizes | CPU s | power |"
    yield "|---|---|---|---|"
    cases: dict[str, list[tuple[int, float]]] = {}
    for num in (128_000, 256_000, 512_000, 1_024_000):
        cache = build(folder / f"r{num}", num, 2, rejects_per_shard=2, with_files=[])
        taken = measured("rejects", cache.path, rounds=options.rounds)
        cases.setdefault("rejects in every shard, counted with each shard", []).append(
            (num, taken["cpu_s"])
        )
    for num in (32_000, 64_000, 128_000, 256_000):
        taken_s = []
        for number in range(options.rounds):
            one = build(folder / f"m{num}-{number}-a", num, 1)
            two = build(folder / f"m{num}-{number}-b", num, 1, first_id=10**7)
            taken_s.append(measured("merge", one.path, two.path, rounds=1)["cpu_s"])
            shutil.rmtree(one.path)
            shutil.rmtree(two.path)
        cases.setdefault("merge of two halves", []).append((num, statistics.median(taken_s)))
    for num in (250, 500, 1000):
        taken_s = []
        for number in range(options.rounds):
            one = build(folder / f"s{num}-{number}", 256, 1)
            taken_s.append(measured("append", one.path, num, rounds=1)["cpu_s"])
            shutil.rmtree(one.path)
        cases.setdefault("appended segments", []).append((num, statistics.median(taken_s)))
    for name, found in cases.items():
        fitted = growth([n for n, _ in found], [max(1e-3, c) for _, c in found], 1.0)
        yield (
            f"| {name} | {', '.join(f'{n:,}' for n, _ in found)} | "
            f"{', '.join(f'{c:.2f}' for _, c in found)} | "
            f"{fitted.exponent:.2f} ± {fitted.exponent_error:.2f} |"
        )


def large(options: argparse.Namespace, folder: Path) -> Iterator[str]:
    """What a start looks at, of a hundred million real rows."""
    num_teachers, num_rows = options.large
    begun = time.perf_counter()
    cache = build(folder / "large.cache", num_rows, num_teachers, with_files=[], pixel_size=0)
    yield (
        f"{num_rows:,} rows, {num_teachers} teacher, {cache.info.num_shards:,} shards: built in "
        f"{time.perf_counter() - begun:.0f} s; {metadata_bytes(cache) / num_rows:.0f} bytes of "
        "metadata a row"
    )
    yield ""
    yield "| stage | CPU s | s | peak MiB (before) |"
    yield "|---|---|---|---|"
    for stage in ("open", "inspect", "rows"):
        taken = measured(stage, cache.path, rounds=options.rounds)
        yield (
            f"| {stage} | {taken['cpu_s']:.2f} | {taken['wall_s']:.2f} | "
            f"{taken['megabytes']:.0f} ({taken['before_mb']:.0f}) |"
        )


def order(options: argparse.Namespace, folder: Path) -> Iterator[str]:
    """The set of rows and 1,000 batches, at several sizes."""
    yield "| rows | CPU s of the set and 1,000 batches of 1,024 | MiB beside the rows given |"
    yield "|---|---|---|"
    for num in (10**6, 10**7, LARGEST):
        taken = measured("order", num, rounds=options.rounds)
        yield f"| {num:,} | {taken['cpu_s']:.2f} | {taken['megabytes']:.0f} |"


def sharing(options: argparse.Namespace, folder: Path) -> Iterator[str]:
    """What one process and eight at once hold: memory of their own, and the cache's files."""
    num_rows, num_teachers = options.shared
    path = make(folder, num_rows, num_teachers)[0].path
    gc.collect()  # or this process maps the same files, and has a share of them
    yield f"{num_rows:,} rows, {num_teachers} teachers and pixels, after the plan of a run."
    yield ""
    yield "| MiB | memory of each | files that each maps | files that they map together | ratio |"
    yield "|---|---|---|---|---|"
    for name, count in (("one process", 1), ("eight processes", 8)):
        own, each, together = _held(path, count)
        yield f"| {name} | {own:.1f} | {each:.1f} | {together:.1f} | {together / each:.2f} |"


def _held(path: Path, count: int) -> tuple[float, float, float]:
    """MiB: anonymous memory of a process, above what it had before the cache was opened; pages of
    the cache's files that a process maps; and the sum of all processes' shares of those.

    The system maps what lies around a page that is touched, so that one process may map more than
    another.
    """
    command = [sys.executable, str(HERE / "stages.py"), "sharing"]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    processes = [subprocess.Popen([*command, str(path)], **pipes) for _ in range(count)]  # type: ignore[call-overload]
    try:
        own = statistics.mean(float(process.stdout.readline()) for process in processes)
        mapped = [_mapped(process.pid, path) for process in processes]
    finally:
        for process in processes:
            process.communicate("\n")
    each, shares = zip(*mapped, strict=True)
    return own, statistics.mean(each), sum(shares)


def _mapped(pid: int, path: Path) -> tuple[float, float]:
    """MiB of a cache's files that a process maps, and its share of them."""
    found = {"Rss:": 0, "Pss:": 0}
    inside = False
    for line in Path(f"/proc/{pid}/smaps").read_text().splitlines():
        key, *values = line.split()
        if not key.endswith(":"):
            inside = len(values) > 4 and str(path) in line
        elif key in found and inside:
            found[key] += int(values[0])
    return found["Rss:"] / 1024, found["Pss:"] / 1024


def formats(options: argparse.Namespace, folder: Path) -> Iterator[str]:
    """formats.py here for our own row, and where the other libraries are for theirs."""
    others = options.formats_python or sys.executable
    for python, names in ((sys.executable, ["phistill"]), (others, ["mosaic", "litdata", "lance"])):
        command = [python, HERE / "formats.py", folder / "formats", str(options.formats_rows)]
        ended = subprocess.run([*command, *names], capture_output=True, text=True, check=False)
        if ended.returncode:
            raise RuntimeError(ended.stderr[-2000:])
        head = 0 if names == ["phistill"] else 4  # the table's head once
        yield from ended.stdout.splitlines()[head:]


SECTIONS = {
    "stages": stages,
    "large": large,
    "linear": linear,
    "shards": shards_section,
    "order": order,
    "sharing": sharing,
    "formats": formats,
}


def put_section(out: Path, name: str, lines: list[str]) -> None:
    """Write a section into a file of sections, over the one of the same name."""
    text = out.read_text() if out.exists() else "# Scale\n"
    head, *parts = re.split(r"(?m)^(?=## )", text)
    kept = [part for part in parts if part.split("\n", 1)[0] != f"## {name}"]
    joined = [head, *kept, "\n".join(lines) + "\n"]
    out.write_text("\n\n".join(part.strip() for part in joined) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--folder", type=Path, help="where caches are made (default: temporary)")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--section", nargs="*", choices=SECTIONS, default=list(SECTIONS))
    parser.add_argument(
        "--caches",
        default="4:256000,4:1024000,8:256000,8:640000,8:1280000,8:10240000",
        help="teachers:rows, ...",
    )
    parser.add_argument("--shared", default="8:1280000")
    parser.add_argument("--large", default="1:100000000", help="teachers:rows")
    parser.add_argument("--formats-python", type=Path)
    parser.add_argument("--formats-rows", type=int, default=1_000_000)
    options = parser.parse_args()
    pairs = [tuple(map(int, one.split(":"))) for one in options.caches.split(",")]
    options.caches = [(int(teachers), int(rows)) for teachers, rows in pairs]
    options.shared = tuple(map(int, options.shared.split(":")))[::-1]
    options.large = tuple(map(int, options.large.split(":")))
    folder = Path(tempfile.mkdtemp(prefix="phistill-", dir=options.folder))
    try:
        for name in options.section:
            section = folder / name
            section.mkdir()
            machine = machine_line(f"NumPy {np.__version__}", f"medians of {options.rounds}")
            lines = [f"## {name}", "", machine, ""]
            tell(lines, None)
            for line in SECTIONS[name](options, section):
                tell([line], None)
                lines.append(line)
            shutil.rmtree(section)
            if options.out:
                put_section(options.out, name, lines)
    finally:
        shutil.rmtree(folder)


if __name__ == "__main__":
    main()
