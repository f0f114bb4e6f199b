"""The page as a whole: self-contained, well formed, and true to its numbers."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest

from phistill.cache import Cache, TeacherInfo
from phistill.errors import UsageError
from phistill.report import ExtraTable, report
from phistill.report.page.canvas import DASHES, INKS, NUM_SERIES, run_colour, run_dash
from phistill.report.page.figures import held_out, losses, over_steps
from phistill.report.page.settings import settings_of
from phistill.report.page.students import RELATIVE, gather_runs
from phistill.report.page.wording import BALANCE_WORDS, LOSS_WORDS, METHOD_WORDS
from phistill.stats import fit_stats
from phistill.train import TrainConfig, evaluate, train

VOID = {"meta", "link", "img", "br", "hr"}
Runs = tuple[Path, Path]
Config = Callable[..., TrainConfig]


class Reader(HTMLParser):
    """Collects tags, ids and text, and checks that every element is closed in its turn."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str, str]] = []
        self.words: list[str] = []
        self.feed(page)
        self.close()
        assert self.open == []
        self.text = " ".join(" ".join(self.words).split())

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += [(tag, name, value or "") for name, value in attrs]
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += [(tag, name, value or "") for name, value in attrs]

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if not self.open or self.open[-1] not in ("style", "script"):
            self.words.append(data)


def test_the_page_asks_no_other_machine_and_runs_nothing(page: str) -> None:
    found = Reader(page)
    assert "://" not in page
    assert not {"script", "iframe", "object", "embed", "base", "form"} & set(found.tags)
    for tag, name, value in found.attributes:
        assert not name.startswith("on"), (tag, name)
        if name in ("src", "href", "xlink:href", "data", "srcset", "action"):
            assert value.startswith(("data:", "#")), (tag, name, value)
    assert all(target.startswith("#") for target in re.findall(r"url\(([^)]*)\)", page))
    assert "@import" not in page


def test_drawings_share_no_id_and_point_at_ids_that_exist(page: str) -> None:
    found = Reader(page)
    ids = [value for _, name, value in found.attributes if name == "id"]
    assert len(ids) == len(set(ids))
    pointed = {v[1:] for _, name, v in found.attributes if name == "href" and v.startswith("#")}
    pointed |= set(re.findall(r"url\(#([^)]*)\)", page))
    assert pointed
    assert pointed <= set(ids)


def test_drawings_take_their_colours_from_the_page(page: str) -> None:
    assert not any(colour in page for colour in INKS)
    for variable in INKS.values():
        assert f"{variable[4:-1]}:" in page, "every variable is defined in the style sheet"


def test_the_tables_hold_the_evaluations(cache: Cache, runs: Runs, page: str) -> None:
    text = Reader(page).text
    for run in runs:
        for line in evaluate(run, cache, untrained=False):
            assert f"{line.error:.3f}" in text
            assert f"{line.cosine:.3f}".replace("-", "−") in text


def test_the_same_cache_and_runs_give_the_same_page_to_the_byte(
    cache: Cache, runs: Runs, tmp_path: Path, page: str
) -> None:
    again = report(cache.path, [str(run) for run in runs], tmp_path, device="cpu")
    assert again == tmp_path / "report.html"
    assert again.read_text("utf-8") == page


def test_text_from_outside_stays_text(cache: Cache, tmp_path: Path) -> None:
    evil = "<script>alert(1)</script>"
    table = ExtraTable(evil, ("task & more", evil), [(evil, 1.5)], evil)
    out = report(cache, [], tmp_path / "r.html", title=evil, extra_tables=[table], normalizers=())
    found = Reader(out.read_text("utf-8"))
    assert "script" not in found.tags
    assert found.text.count(evil) == 6  # title twice, and the table's four


def test_a_plain_tuple_is_an_extra_table(cache: Cache, tmp_path: Path) -> None:
    table = ("Scores", ("task", "score"), [("retrieval", "0.5")], "of 10")
    out = report(cache, [], tmp_path / "r.html", extra_tables=[table], normalizers=())
    assert "Scores task score retrieval 0.5 of 10" in Reader(out.read_text("utf-8")).text


def test_a_cache_alone_has_a_page_without_students(cache: Cache, tmp_path: Path) -> None:
    found = Reader(report(cache, [], tmp_path / "r.html").read_text("utf-8"))
    assert "loud would hold" in found.text
    assert "The students" not in found.text
    assert "nan" not in found.text


def test_one_teacher_without_held_out_rows_and_a_run_have_a_page(
    make_cache: Callable[..., Cache], make_config: Config, tmp_path: Path
) -> None:
    quiet = TeacherInfo(name="quiet", grid=(2, 4), widths={"patches": 7})
    cache = make_cache(teachers=[quiet], holdout=0.0)
    fit_stats(cache)
    with pytest.warns(UserWarning, match="holds no image out"):
        train(cache, tmp_path / "run", make_config())
    out = report(cache, [tmp_path / "run"], tmp_path / "r.html", device="cpu")
    text = Reader(out.read_text("utf-8")).text
    assert "One teacher, quiet" in text
    assert "No row of this cache is held out" in text
    assert "What they see" not in text


def test_a_run_of_one_teacher_is_shown_for_that_teacher_alone(
    cache: Cache, runs: Runs, make_config: Config, tmp_path: Path
) -> None:
    train(cache, tmp_path / "one", make_config(teachers=("loud",), patch_loss="cosine"))
    out = report(cache, [runs[1], tmp_path / "one"], tmp_path / "r.html", device="cpu")
    text = Reader(out.read_text("utf-8")).text
    assert text.count("student one") >= 1
    assert text.count("student raw") == 2


def test_evaluations_given_are_not_made_again(cache: Cache, runs: Runs, tmp_path: Path) -> None:
    lines = evaluate(runs[0], cache, untrained=True)
    steps: list[tuple[int, int, str]] = []
    out = report(
        cache,
        runs[:1],
        tmp_path / "r.html",
        evaluations={runs[0]: lines},
        device="cpu",
        progress=lambda done, total, note: steps.append((done, total, note)),
    )
    assert "balanced untrained" in Reader(out.read_text("utf-8")).text
    assert [done for done, _, _ in steps] == list(range(len(steps)))
    assert steps[-1][0] == steps[-1][1]


@pytest.mark.parametrize("name", ["matplotlib", "jinja2"])
def test_a_missing_library_is_named_with_the_command_that_installs_it(
    name: str, cache: Cache, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, name, None)  # what Python takes for not installed
    with pytest.raises(UsageError, match=rf"{name}\..*pip install 'phistill\[report\]'"):
        report(cache, [], tmp_path / "r.html")


def test_wrong_numbers_are_refused(cache: Cache, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="num_images=-1"):
        report(cache, [], tmp_path / "r.html", num_images=-1)


def test_bars_of_the_terminal_load_neither_torch_nor_matplotlib() -> None:
    code = (
        "import sys, phistill.report.terminal; "
        "sys.exit(not {'torch', 'matplotlib'}.isdisjoint(sys.modules))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_more_runs_than_colours_have_lines_swatches_and_bars_of_their_own(page: str) -> None:
    num = NUM_SERIES * len(DASHES)
    assert num >= 12
    assert len({(run_colour(n), run_dash(n)) for n in range(num)}) == num
    for place in range(len(DASHES)):
        assert f".dash-{place} {{" in page
    steps = np.arange(1.0, 4.0)
    drawn = over_steps("l", "l", "loss", [(n, steps, steps) for n in range(12)], one=False)
    lines = re.findall(r'<path d="[^"]*" clip-path[^>]*style="([^"]*--run[^"]*)"', drawn)
    assert len(lines) == len(set(lines)) == 12


def test_only_losses_that_may_be_compared_share_a_picture(
    cache: Cache, runs: Runs, make_config: Config, tmp_path: Path
) -> None:
    changes = {"cosine": {"patch_loss": "cosine", "normalizer": "none"}, "hca": {}, "zca": {}}
    for name, change in changes.items():
        config = make_config(**{"normalizer": name, "num_steps": 2, "validate_every": 1, **change})
        train(cache, tmp_path / name, config)
    paths = [*runs, *(tmp_path / name for name in changes)]
    settings = settings_of(
        gather_runs(cache, paths, evaluations={}, can_evaluate=True, device="cpu")
    )
    pictures = {
        (target, unit): len(re.findall(r"stroke: var\(--run-", svg))
        for target, unit, svg in losses(settings)
        if target == "loud/patches"
    }
    assert pictures == {
        ("loud/patches", RELATIVE): 2,
        ("loud/patches", f"whitened {RELATIVE}"): 2,
        ("loud/patches", "cosine"): 1,
    }
    checked = {
        target: len(re.findall(r"stroke: var\(--run-", svg))
        for target, _, svg in held_out(settings)
    }
    assert checked == dict.fromkeys(("loud/patches", "loud/summary", "quiet/patches"), 3)


def test_every_normalizer_loss_and_balance_that_is_named_is_explained(
    cache: Cache, make_config: Config, tmp_path: Path
) -> None:
    for name, change in (
        ("one", {"normalizer": "zca", "patch_loss": "hybrid-smooth-l1"}),
        ("two", {"normalizer": "pca", "balance": "adaloss"}),
    ):
        train(cache, tmp_path / name, make_config(num_steps=1, **change))
    out = report(
        cache,
        [tmp_path / "one", tmp_path / "two"],
        tmp_path / "r.html",
        device="cpu",
        normalizers=(),
    )
    _, _, foot = Reader(out.read_text("utf-8")).text.partition("How the numbers are made")
    for words in (METHOD_WORDS["zca"], METHOD_WORDS["pca"], *BALANCE_WORDS.values()):
        assert words in foot or words == BALANCE_WORDS["fixed"]
    assert f"hybrid-smooth-l1: {LOSS_WORDS['hybrid-smooth-l1']}" in foot
    assert METHOD_WORDS["hca"] not in foot


def test_a_thing_has_one_name_on_the_page(page: str) -> None:
    text = Reader(page).text
    assert "PHI-S" not in text
    assert "(raw)" not in text
