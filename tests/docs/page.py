"""The blocks of a page, and doing what they say.

A block with a file name for its title is that file; blocks of ``bash`` and those of ``python``
without a title are run, in the page's order. One that needs what is not here says so in its title
(``needs downloads``) and is not run, or with something else in the place of what it needs. Sizes
are cut by replacing words of the page.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from phistill.pipeline import CacheSettings, extract
from phistill.stats import fit_stats

ROOT = Path(__file__).parent.parent.parent
DOCS = ROOT / "docs"
BLOCK = re.compile(r"^( *)```(\w*)(?: title=\"([^\"]+)\")?\n(.*?)^\1```$", re.MULTILINE | re.DOTALL)
NEEDS = (
    "needs downloads",
    "needs hours",
    "needs a GPU",
    "needs Slurm",
    "needs a bucket",
    "needs a cluster",
)

TINY = """student = "vit_tiny_patch16_224"
student_options = { patch_size = 20, embed_dim = 24, depth = 1, num_heads = 1 }
head_width = 16
num_steps = 2
batch_size = 8"""
"""A run of seconds."""


@dataclass(frozen=True, slots=True)
class Block:
    """A fenced block of a page."""

    language: str
    title: str
    text: str

    @property
    def is_run(self) -> bool:
        """Whether it is a command, be it one that needs what is not here."""
        titled = bool(self.title) and self.title not in NEEDS
        return self.language == "bash" or (self.language == "python" and not titled)

    @property
    def command(self) -> list[str]:
        if self.language == "python":
            return [sys.executable, "-c", self.text]
        return ["bash", "-euo", "pipefail", "-c", self.text]


def blocks(page: str) -> Iterator[Block]:
    """In the order of the page."""
    for indent, language, title, text in BLOCK.findall(page):
        lines = [line.removeprefix(indent) for line in text.splitlines()]
        yield Block(language, title, "\n".join(lines) + "\n")


def follow(
    page: Path,
    folder: Path,
    cuts: Mapping[str, str] | None = None,
    *,
    also: Sequence[str] = (),
    variables: Mapping[str, str] | None = None,
) -> list[str]:
    """Do what the page says in ``folder``; the output of every block that is run.

    ``cuts`` replaces words of the page, each of which must be there. ``also`` runs blocks of these
    titles, whose needs the cuts have replaced.
    """
    text = page.read_text("utf-8")
    for words, shorter in (cuts or {}).items():
        assert words in text, f"{page.name} says {words!r} no more"
        text = text.replace(words, shorter)
    found = list(blocks(text))
    for block in found:
        if block.title and block.title not in NEEDS and not block.is_run:
            (folder / block.title).write_text(block.text, "utf-8")
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    outputs = []
    for block in found:
        if not block.is_run or (block.title in NEEDS and block.title not in also):
            continue
        assert not block.title or block.title in NEEDS, f"{block.title!r} is no reason known here"
        done = subprocess.run(
            block.command, cwd=folder, env={**os.environ, **(variables or {}), "PATH": path},
            capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert done.returncode == 0, f"{block.text}\n{done.stdout}\n{done.stderr}"
        outputs.append(done.stdout)
    return outputs


def extracted(folder: Path, name: str, *teachers: str) -> None:
    """A cache of ``folder/photos`` with statistics."""
    settings = CacheSettings(pixel_size=40, holdout=0.3)
    fit_stats(extract(folder / "photos", folder / name, teachers, settings=settings).cache)
