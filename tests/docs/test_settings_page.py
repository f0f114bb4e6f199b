"""The page of settings names every setting that the code has, with the defaults of the code."""

from __future__ import annotations

import dataclasses
import re
import runpy
from pathlib import Path

from phistill.pipeline import CacheSettings, ExtractOptions
from phistill.stats.fit.pieces import PassOptions
from phistill.train import TrainConfig

DOCS = Path(__file__).parent.parent.parent / "docs"
LINE = re.compile(r"^\| `(\w+)` \| (?:`([^`]+)`)? ?\| (.+?) \| (.+) \|$", re.MULTILINE)

NOT_TYPED = {"source", "decode", "codes", "local_rank", "holdout_file"}
"""Arguments that one or several options make, or that the launcher gives."""


def stages() -> dict[str, dict[str, tuple[str, str, str]]]:
    """By command and setting: option, default, meaning."""
    making = runpy.run_path(str(DOCS / "making" / "settings_reference.py"))
    page = making["with_tables"]((DOCS / "reference" / "settings.md").read_text("utf-8"))
    parts = re.split(r"^## (\S+)$", page, flags=re.MULTILINE)[1:]
    return {
        name: {found[0]: (found[1], found[2], found[3]) for found in LINE.findall(text)}
        for name, text in zip(parts[::2], parts[1::2], strict=True)
    }


def test_every_setting_of_the_four_stages_has_a_default_and_a_meaning() -> None:
    found = stages()
    assert set(found) == {"extract", "fit-stats", "train", "evaluate"}
    extract = {one.name for one in dataclasses.fields(CacheSettings)}
    extract |= {one.name for one in dataclasses.fields(ExtractOptions)}
    assert extract - NOT_TYPED - set(found["extract"]) == set()
    assert set(PassOptions.__struct_fields__) - set(found["fit-stats"]) == set()
    assert set(TrainConfig.__struct_fields__) == set(found["train"])
    for stage in found.values():
        assert [name for name, (_, default, meaning) in stage.items() if not default] == []
        assert [name for name, (_, _, meaning) in stage.items() if len(meaning) < 6] == []


def test_defaults_are_those_of_the_code() -> None:
    found = stages()
    cache = CacheSettings().new_cache(num_rows=1000)
    for name in ("seed", "holdout", "pixel_size"):
        assert found["extract"][name][:2] == (
            f"--{name.replace('_', '-')}",
            f"`{getattr(cache, name)}`",
        )
    assert found["extract"]["append"][1] == "off"
    assert found["fit-stats"]["seed"][1] == f"`{PassOptions().seed}`"
    assert found["train"]["lr"][:2] == ("--lr", f"`{TrainConfig().lr}`")
    assert found["evaluate"]["split"][1] == "`heldout`"
