"""Tars on a server are read like tars on a disk, whatever the server does in between."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

from phistill.cli import main
from phistill.errors import SourceError, UsageError
from phistill.pipeline import extract, open_source
from phistill.pipeline.images.tars.fetched_tar import FetchedTarSource
from phistill.pipeline.images.tars.remote_files import shown
from phistill.report.plan import plan
from tests.pipeline.images.listed import listed
from tests.pipeline.tar_server import IMAGES_PER_TAR, NUM_TARS, PATTERN, SETTINGS, TARS, Server


@pytest.fixture
def local(tmp_path: Path) -> Path:
    """A folder of TARS."""
    (tmp_path / "tars").mkdir()
    for path, body in TARS.items():
        (tmp_path / "tars" / Path(path).name).write_bytes(body)
    return tmp_path / "tars"


def test_a_server_lists_what_a_folder_does(server: Server, local: Path) -> None:
    source = open_source(server.url(PATTERN))
    entries = listed(source)
    assert entries == listed(open_source(local))
    assert entries == listed(open_source(str(local / "shard-{0000..0005}.tar")))
    assert entries[0].label == "0"
    source.close()


def test_a_text_file_may_list_tars_here_or_there(server: Server, local: Path) -> None:
    (local / "here.txt").write_text("# all\nshard-{0000..0001}.tar\nshard-0005.tar\n")
    (local / "there.txt").write_text(server.url("/data/shard-{0000..0001}.tar") + "\n")
    assert len(listed(open_source(local / "here.txt"))) == 3 * IMAGES_PER_TAR
    source = open_source(local / "there.txt")
    assert isinstance(source, FetchedTarSource)
    assert len(listed(source)) == 2 * IMAGES_PER_TAR
    source.close()


def test_plan_and_verify_leave_no_downloaded_tar_open(
    server: Server, tiny: str, tmp_path: Path
) -> None:
    """A file that nobody closed is a ResourceWarning, and so an error here."""
    cache = extract(server.url(PATTERN), tmp_path / "c", [f"t={tiny}"], settings=SETTINGS).cache
    arguments = ["verify", cache.location, server.url(PATTERN), "--live", "4"]
    assert CliRunner().invoke(main, arguments).exit_code == 0
    found = plan(server.url(PATTERN), [f"t={tiny}"], settings=SETTINGS, num_sample=4)
    assert found.num_images == NUM_TARS * IMAGES_PER_TAR


def test_an_extraction_from_afar_holds_the_features_of_its_own_images(
    server: Server, local: Path, tiny: str, tmp_path: Path
) -> None:
    far = extract(server.url(PATTERN), tmp_path / "far", [f"t={tiny}"], settings=SETTINGS).cache
    near = extract(local, tmp_path / "near", [f"t={tiny}"], settings=SETTINGS).cache
    found = {}
    for cache in (far, near):
        ids = dict(zip(*(cache.index()[name].to_pylist() for name in ("row", "id")), strict=True))
        values = cache.reader("t", "patches").read(rows := cache.rows(split="all"))
        found[cache.location] = {ids[row]: v for row, v in zip(rows.tolist(), values, strict=True)}
    one, other = found.values()
    assert len(one) == NUM_TARS * IMAGES_PER_TAR
    assert one.keys() == other.keys()
    for name, values in one.items():
        np.testing.assert_array_equal(values, other[name])
    # All tars fit into the spool: each is downloaded once, to be listed, and read from there.
    assert server.whole == Counter(dict.fromkeys(TARS, 1))
    assert not server.ranges


def test_a_run_that_goes_on_lists_nothing(server: Server, tiny: str, tmp_path: Path) -> None:
    first = extract(server.url(PATTERN), tmp_path / "c", [f"t={tiny}"], settings=SETTINGS)
    digest = first.cache.digest()
    for shard in (0, 2):
        first.cache.forget_shard("t", shard)
    server.whole.clear()
    again = extract(server.url(PATTERN), tmp_path / "c")
    assert again.cache.digest() == digest
    assert max(server.whole.values()) == 1
    server.whole.clear()
    assert extract(server.url(PATTERN), tmp_path / "c").num_shards == 0
    assert not server.whole


def test_refusals_and_cut_bodies_are_tried_again(server: Server, tiny: str, tmp_path: Path) -> None:
    clean = extract(server.url(PATTERN), tmp_path / "a", [f"t={tiny}"], settings=SETTINGS).cache
    for path in TARS:
        server.faults[path] = ["503", "cut", "429", "cut", "cut", "500"]
    report = extract(server.url(PATTERN), tmp_path / "b", [f"t={tiny}"], settings=SETTINGS)
    assert report.rejects == ()
    assert report.cache.digest() == clean.digest()
    assert server.ranges, "a cut body goes on where it ended"


@pytest.mark.parametrize(("fault", "tries"), [("503", 6), ("404", 1), ("403", 1)])
def test_what_lasts_stops_the_run_and_is_no_reject(
    server: Server, tiny: str, tmp_path: Path, fault: str, tries: int
) -> None:
    bad = "/data/shard-0003.tar"
    server.faults[bad] = [fault] * 100
    with pytest.raises(SourceError, match=rf"shard-0003.tar cannot be read.*{fault}"):
        extract(server.url(PATTERN), tmp_path / "c", [f"t={tiny}"], settings=SETTINGS)
    assert len(server.faults[bad]) == 100 - tries
    assert not (tmp_path / "c").exists()


def test_a_tar_that_shrank_after_it_was_listed_is_named(
    server: Server, tiny: str, tmp_path: Path
) -> None:
    cache = extract(server.url(PATTERN), tmp_path / "c", [f"t={tiny}"], settings=SETTINGS).cache
    cache.forget_shard("t", 0)
    server.bodies = {path: body[:600] for path, body in TARS.items()}
    with pytest.raises(SourceError, match=r"shard-\d{4}.tar ends .* bytes before the image at"):
        extract(server.url(PATTERN), tmp_path / "c")


def test_credentials_reach_neither_ids_nor_messages(server: Server) -> None:
    signed = server.url("/data/shard-0000.tar") + "?X-Signature=secret"
    source = FetchedTarSource.of_urls([signed])
    assert "secret" not in str(listed(source))
    source.close()
    assert shown("https://user:secret@host/a.tar?key=secret") == "https://host/a.tar"
    gone = FetchedTarSource.of_urls([server.url("/nowhere.tar") + "?key=secret"])
    with pytest.raises(SourceError, match=r"nowhere.tar cannot be read: 404") as caught:
        listed(gone)
    assert "secret" not in str(caught.value)
    gone.close()


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("https://host/images.parquet", "is no tar"),
        ("https://host/a.tar.gz", "is no tar"),
        ("ftp://host/a.tar", "cannot be read: give https"),
        ("https://host/{1..0}.tar", "no range"),
        ("missing-{0..3}.tar", "missing-0.tar' do not exist; 4 tars"),
    ],
)
def test_a_source_that_cannot_be_read_is_refused_at_once(text: str, complaint: str) -> None:
    with pytest.raises(UsageError, match=complaint):
        open_source(text)
