"""Decoding in threads or processes, few or many, gives the same bytes; a bad decoder costs one
image."""

from __future__ import annotations

import ctypes
import io
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from phistill.errors import SourceError, UsageError
from phistill.pipeline.decode import process
from phistill.pipeline.decode.image import DecodeSetup
from phistill.pipeline.decode.pending import DecodedShard, ShardRows
from phistill.pipeline.decode.pool import DecodePool
from phistill.pipeline.decode.process import Request
from phistill.pipeline.decode.rgb import DecodeRules
from phistill.pipeline.decode.shards import choose_mode, decode_shards
from phistill.pipeline.decode.views import Rendering, View

VIEWS = [View(), View("random-resized-crop", flip="random")]
RENDERINGS = [Rendering((16, 24), "bicubic"), Rendering((32, 32), "bilinear")]
SETUP = DecodeSetup(DecodeRules(), tuple(VIEWS), tuple(RENDERINGS), seed=5)


def reader(images: Sequence[bytes]) -> Callable[[str, int, int], bytes]:
    """Reads images held in memory, whose uri is their number."""
    return lambda uri, offset, length: images[int(uri)]


def picture(number: int) -> bytes:
    pixels = np.random.default_rng(number).integers(0, 256, (20 + number % 7, 30, 3), np.uint8)
    sink = io.BytesIO()
    Image.fromarray(pixels).save(sink, "PNG")
    return sink.getvalue()


IMAGES = [b"broken" if number % 10 == 3 else picture(number) for number in range(40)]


def jobs(images: Sequence[bytes] = IMAGES, rows: int = 16) -> list[ShardRows]:
    uris = [str(number) for number in range(len(images)) for _ in VIEWS]
    views = [number for _ in images for number in range(len(VIEWS))]
    return [
        ShardRows(
            shard,
            uris[start : start + rows],
            [-1] * len(uris[start : start + rows]),
            [-1] * len(uris[start : start + rows]),
            views[start : start + rows],
            [f"id-{uri}" for uri in uris[start : start + rows]],
        )
        for shard, start in enumerate(range(0, len(uris), rows))
    ]


def decoded(images: Sequence[bytes] = IMAGES, **options: Any) -> list[DecodedShard]:
    return list(
        decode_shards(
            reader(images),
            jobs(images),
            rules=SETUP.rules,
            views=VIEWS,
            renderings=RENDERINGS,
            seed=SETUP.seed,
            **options,
        )
    )


def assert_equal(found: list[DecodedShard], expected: list[DecodedShard]) -> None:
    assert [shard.shard for shard in found] == [shard.shard for shard in expected]
    for one, other in zip(found, expected, strict=True):
        assert (one.sha256, one.size, one.box) == (other.sha256, other.size, other.box)
        assert one.reasons == other.reasons
        for rendering in RENDERINGS:
            np.testing.assert_array_equal(one.pixels[rendering], other.pixels[rendering])


@pytest.mark.parametrize(("mode", "workers"), [("threads", 3), ("processes", 1), ("processes", 3)])
def test_any_number_of_threads_or_processes_gives_the_same_shards(mode: Any, workers: int) -> None:
    expected = decoded(mode="threads", num_workers=1)
    assert_equal(decoded(mode=mode, num_workers=workers), expected)
    assert sum(len(shard.reasons) for shard in expected) == 8
    assert expected[0].reasons[6] == "cannot be decoded: cannot identify image file"


def test_the_views_of_an_image_are_what_they_are_alone() -> None:
    (first, *_) = decoded(num_workers=1)
    with Image.open(io.BytesIO(IMAGES[0])) as image:
        place = VIEWS[1].place(image.size, seed=5, image_id="id-0", number=1)
        own = image.convert("RGB").resize((24, 16), Image.Resampling.BICUBIC, box=place.box)
    expected = np.asarray(own)[:, ::-1] if place.flip else np.asarray(own)
    np.testing.assert_array_equal(first.pixels[RENDERINGS[0]][1], expected)
    assert first.box[1] == place.box


def test_random_views_without_ids_are_refused() -> None:
    job = ShardRows(0, ["0"], [-1], [-1], [1])
    with pytest.raises(UsageError, match="random views need the ids"):
        list(
            decode_shards(
                reader(IMAGES), [job], rules=SETUP.rules, views=VIEWS, renderings=RENDERINGS
            )
        )


@pytest.fixture
def pool() -> Any:
    """``pool(...)`` is a DecodePool of one process that misbehaves on certain ids."""
    pools = []

    def make(**options: Any) -> DecodePool:
        command = (sys.executable, str(Path(__file__).with_name("bad_decoder.py")))
        pools.append(DecodePool(1, SETUP, command=command, **options))
        return pools[-1]

    yield make
    for one in pools:
        one.close()


def process_of(pool: DecodePool) -> int:
    process = pool._workers[0]._process
    assert process is not None
    return process.pid


def test_a_decoder_that_dies_once_costs_nothing(pool: Any) -> None:
    one = pool()
    expected = one.decode(IMAGES[0], "id-0", [0, 1])
    os.kill(process_of(one), signal.SIGKILL)
    found = one.decode(IMAGES[0], "id-0", [0, 1])
    assert found.reason is None
    assert found.boxes == expected.boxes
    np.testing.assert_array_equal(found.pixels[1][0], expected.pixels[1][0])


@pytest.mark.parametrize(
    ("image_id", "reason"),
    [
        ("crashes", "the decoder died of SIGSEGV"),
        ("hangs", "decoding took longer than 2 s"),
        ("talks", None),
    ],
)
def test_a_decoder_that_dies_or_hangs_costs_one_image(
    pool: Any, image_id: str, reason: str | None
) -> None:
    one = pool(timeout_s=2.0 if image_id == "hangs" else 60.0)
    found = one.decode(IMAGES[1], image_id, [0])
    assert found.reason == reason
    assert len(found.sha256) == 64
    if image_id == "hangs":
        one._timeout_s = 60.0  # an honest image on a busy machine
    assert one.decode(IMAGES[2], "id-2", [0]).reason is None


@pytest.mark.parametrize("slots_bytes", [2**25, 0])
def test_of_images_handed_over_together_the_bad_one_alone_is_rejected(
    pool: Any, slots_bytes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(process, "SLOTS_BYTES", slots_bytes)
    ids = ["id-0", "talks", "id-2", "crashes", "id-4", "id-5"]
    one = pool()
    images = IMAGES[4:10]
    alone = [one.decode(data, "id", [0]) for data in images]
    requests = [Request(data, name, [0]) for data, name in zip(images, ids, strict=True)]
    reasons = []
    for number, image in enumerate(one.decode_many(requests)):
        reasons.append(image.reason)
        if image.reason is None:
            assert image.sha256 == alone[number].sha256
            for found, expected in zip(image.pixels[0], alone[number].pixels[0], strict=True):
                np.testing.assert_array_equal(found, expected)
    assert reasons == [None, None, None, "the decoder died of SIGSEGV", None, None]


def test_a_read_error_stops_the_run_and_is_no_reject() -> None:
    def broken(uri: str, offset: int, length: int) -> bytes:
        raise SourceError("the disk is gone.")

    with pytest.raises(SourceError, match="the disk is gone"):
        list(
            decode_shards(
                broken, jobs(), rules=SETUP.rules, views=VIEWS, renderings=RENDERINGS,
                mode="processes", num_workers=2,
            )
        )  # fmt: skip


def test_no_process_is_left_when_a_run_is_abandoned() -> None:
    others = set(_children())  # of fixtures that live longer than a test
    shards = decode_shards(
        reader(IMAGES), jobs(), rules=SETUP.rules, views=VIEWS, renderings=RENDERINGS,
        mode="processes", num_workers=2,
    )  # fmt: skip
    next(shards)
    children = set(_children()) - others
    assert 1 <= len(children) <= 2
    shards.close()
    assert not children & set(_children())


def _children() -> list[int]:
    found = []
    for entry in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = entry.read_text().rsplit(")", 1)[1].split()
        except OSError:
            continue
        if int(fields[1]) == os.getpid() and fields[0] != "Z":
            found.append(int(entry.parent.name))
    return found


def test_a_worker_ends_with_a_parent_that_was_killed(tmp_path: Path) -> None:
    program = (
        "import os, signal\n"
        "from phistill.pipeline.decode.rgb import DecodeRules\n"
        "from phistill.pipeline.decode.image import DecodeSetup\n"
        "from phistill.pipeline.decode.pool import DecodePool\n"
        "from phistill.pipeline.decode.views import Rendering, View\n"
        "setup = DecodeSetup(DecodeRules(), (View(),), (Rendering((8, 8), 'bicubic'),), 0)\n"
        "pool = DecodePool(1, setup)\n"
        "pool.decode(b'', 'a', [0])\n"
        "print(pool._workers[0]._process.pid, flush=True)\n"
        "os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, check=False)
    child = int(done.stdout)
    deadline = time.monotonic() + 30
    while _alive(child) and time.monotonic() < deadline:
        time.sleep(0.01)
    assert not _alive(child)


def _alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except OSError:
        return False


@pytest.mark.parametrize("module", ["worker", "shards"])
def test_decoding_imports_numpy_and_pillow_only(module: str) -> None:
    program = (
        "import sys, phistill; before = {*sys.modules};"
        f"import phistill.pipeline.decode.{module};"
        "print(*{name.split('.')[0] for name in sys.modules} - {*sys.stdlib_module_names})"
    )
    command = [sys.executable, "-c", program]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    third = {name for name in done.stdout.split() if not name.startswith(("_", "sitecustomize"))}
    assert third == {"PIL", "lazy_loader", "numpy", "phistill"}


def test_a_worker_has_a_memory_cap(pool: Any) -> None:
    one = pool()
    one.decode(IMAGES[0], "id-0", [0])
    limits = Path(f"/proc/{process_of(one)}/limits").read_text()
    line = next(line for line in limits.splitlines() if line.startswith("Max address space"))
    assert int(line.split()[3]) <= 4 * 2**30
    assert ctypes.sizeof(ctypes.c_void_p) == 8


@pytest.mark.parametrize(
    ("mode", "num_rows", "expected"),
    [("auto", 999, "threads"), ("auto", 1000, "processes"), ("auto", None, "threads"),
     ("threads", 10**6, "threads"), ("processes", 1, "processes")],
)  # fmt: skip
def test_the_mode_follows_the_recorded_rule(mode: Any, num_rows: Any, expected: str) -> None:
    assert choose_mode(mode, num_rows) == expected
