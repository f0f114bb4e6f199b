"""The page of settings, from their own declarations: TrainConfig and the options of commands."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import click

from phistill.cli import GROUPS
from phistill.train.config import settings

if TYPE_CHECKING:
    from mkdocs.config.defaults import MkDocsConfig
    from mkdocs.structure.files import Files
    from mkdocs.structure.pages import Page

HERE = re.compile(r"<!-- settings of ([\w-]+) -->")
"""Stands in a page where the table of a command is wanted."""

DEFAULT = re.compile(r"\s*\[default: ([^\]]*)\]")
MARKS = re.compile(r"\s*\[[^\[\]]*\](?=\s*(?:\[|$))")
"""What click puts behind a help text: ``[required]``, a range, a default."""


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """mkdocs calls it with each page (``hooks`` in mkdocs.yml)."""
    return with_tables(markdown)


def with_tables(markdown: str) -> str:
    """The page with a table in the place of each mark."""
    return HERE.sub(lambda mark: run_table() if mark[1] == "train" else table(mark[1]), markdown)


def run_table() -> str:
    """A Markdown table per section of TrainConfig; the option where the command has one."""
    options = {p.name: p.opts[-1] for p in _command("train").params if isinstance(p, click.Option)}
    everything = settings()
    blocks = []
    for section in dict.fromkeys(one.section for one in everything):
        lines = [f"### {section[0].upper()}{section[1:]}", ""]
        lines += ["| setting | option | default | meaning |", "|---|---|---|---|"]
        for one in everything:
            if one.section == section:
                option = f"`{options[one.name]}`" if one.name in options else ""
                lines.append(
                    f"| `{one.name}` | {option} | `{one.default}` | {_cell(one.meaning)} |"
                )
        blocks.append("\n".join(lines))
    return "\n\n".join(blocks)


def table(name: str) -> str:
    """A line per option of a command: its name in Python, its default, what it means."""
    lines = ["| in Python | option | default | meaning |", "|---|---|---|---|"]
    command = _command(name)
    context = click.Context(command)
    for option in command.params:
        record = option.get_help_record(context) if isinstance(option, click.Option) else None
        if record is None or option.name == "help":
            continue
        stated = DEFAULT.search(record[1])
        default = f"`{stated[1]}`" if stated else "off" if option.is_flag else "none"  # type: ignore[attr-defined]
        if option.required:
            default = "must be given"
        meaning = _cell(MARKS.sub("", record[1]))
        lines.append(f"| `{option.name}` | `{option.opts[-1]}` | {default} | {meaning} |")
    return "\n".join(lines)


def _command(name: str) -> click.Command:
    return next(one for group in GROUPS.values() for one in group if one.name == name)


def _cell(text: str) -> str:
    text = re.sub(r"\s+", " ", text).replace("|", "\\|").replace("<", "&lt;")
    return re.sub(r"docs/([\w-]+)\.md", r"[\1](../\1.md)", text)
