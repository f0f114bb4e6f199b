"""What a person reads while an extraction runs: how fast it is and what it waits for."""

from __future__ import annotations

from dataclasses import replace

from phistill.pipeline.progress import ExtractProgress, Stopwatch
from phistill.report.terminal import LogLines

HALFWAY = ExtractProgress(
    done_rows=800, computed_rows=1000, total_rows=2000, num_images=500, num_rejects=3,
    written_bytes=50_000_000, elapsed_s=14.0, pass_s=10.0, images_wait_s=0.2, disk_wait_s=0.0,
)  # fmt: skip


def test_images_are_counted_once_however_many_teachers_they_have() -> None:
    assert HALFWAY.num_done == 250
    assert HALFWAY.images_per_s == 25.0
    assert HALFWAY.left_s == 10.0


def test_the_line_says_how_fast_and_how_busy() -> None:
    assert HALFWAY.note() == ("25 images/s, teachers busy 98%, 5.0 MB/s written, 3 rejected")


def test_the_line_names_what_the_teachers_wait_for() -> None:
    slow = replace(HALFWAY, images_wait_s=4.0, disk_wait_s=1.0)
    assert "teachers busy 50% (40% waiting for images, 10% waiting for the disk)" in slow.note()


def test_where_teachers_run_elsewhere_nothing_is_claimed_of_them() -> None:
    far = replace(HALFWAY, images_wait_s=None, disk_wait_s=None)
    assert far.busy is None
    assert "busy" not in far.note()


def test_before_anything_was_computed_there_is_no_time_left_to_state() -> None:
    start = replace(HALFWAY, computed_rows=0, pass_s=0.0)
    assert (start.left_s, start.images_per_s, start.bytes_per_s, start.busy) == (None, 0, 0, 0)
    assert start.note().startswith("0 images/s")


def test_a_log_gets_a_line_after_ten_seconds_and_then_one_a_minute() -> None:
    now, lines = [0.0], list[str]()
    bar = LogLines("extract", lines.append, clock=lambda: now[0])
    for second in range(131):
        now[0] = float(second)
        bar(second, 1000, "1 images/s")
    assert [line.split(",")[0] for line in lines] == [
        "extract: 10 of 1", "extract: 70 of 1", "extract: 130 of 1",
    ]  # fmt: skip
    assert lines[1] == "extract: 70 of 1,000 (7%), 1 images/s, 0:15:30 left"


def test_works_side_by_side_have_a_line_each_and_none_is_told_twice() -> None:
    now, lines = [0.0], list[str]()
    bar = LogLines("sweep", lines.append, lambda: now[0])
    for second, part in ((0, "a"), (0, "b"), (5, "b"), (10, "a"), (40, "a"), (70, "a")):
        now[0] = second
        bar(second, 100, f"loss {100 - second}", part=part)
    assert lines == [
        "sweep, a: 10 of 100 (10%), loss 90, 0:01:30 left",
        "sweep, b: 5 of 100 (5%), loss 95, 0:03:10 left",
        "sweep, a: 70 of 100 (70%), loss 30, 0:00:30 left",
    ]


def test_what_a_resumed_run_had_before_does_not_count_as_speed() -> None:
    now, lines = [0.0], list[str]()
    bar = LogLines("train", lines.append, clock=lambda: now[0])
    bar(900, 1000)
    now[0] = 20.0
    bar(910, 1000)
    assert lines == ["train: 910 of 1,000 (91%), 0:03:00 left"]


def test_waiting_is_timed_by_what_is_waited_for() -> None:
    now = [0.0]
    watch = Stopwatch(clock=lambda: now[0])
    with watch.waiting_for_images():
        now[0] = 2.0
    with watch.waiting_for_the_disk():
        now[0] = 5.0
    assert (watch.images_s, watch.disk_s, watch.elapsed_s) == (2.0, 3.0, 5.0)
