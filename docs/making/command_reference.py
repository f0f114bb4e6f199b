"""The pages' list of commands, from their own declarations: what --help says, set as Markdown."""

from __future__ import annotations

import inspect
import re

import click
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import Files
from mkdocs.structure.pages import Page

from phistill.cli import GROUPS, main

HERE = "<!-- every command -->"
"""Stands in a page where the list is wanted."""

VERBATIM = "\b"
"""Click's mark of a paragraph whose lines stay as they are."""


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """mkdocs calls it with each page (``hooks`` in mkdocs.yml)."""
    return markdown.replace(HERE, commands()) if HERE in markdown else markdown


def commands() -> str:
    """Every command below the heading of its group."""
    lines: list[str] = []
    for group, members in GROUPS.items():
        lines += [f"## {group}", ""]
        for command in members:
            lines += _command(command)
    return "\n".join(lines)


def _command(command: click.Command) -> list[str]:
    context = click.Context(
        command, info_name=command.name, parent=click.Context(main, info_name="phistill")
    )
    usage = " ".join(command.collect_usage_pieces(context))
    lines = [f"### {command.name} {{ #{command.name} }}", ""]
    lines += ["```", f"{context.command_path} {usage}", "```", ""]
    for paragraph in inspect.cleandoc(command.help or "").split("\n\n"):
        if paragraph.startswith(VERBATIM):
            lines += ["```", *paragraph.splitlines()[1:], "```", ""]
        else:
            lines += [_linked(_escaped(paragraph)), ""]
    records = [p.get_help_record(context) for p in command.get_params(context)]
    options = [r for r in records if r and r[1] and not r[0].endswith("--help")]
    if options:
        lines += ["| option | meaning |", "|---|---|"]
        lines += [f"| {_names(names)} | {_linked(_escaped(text))} |" for names, text in options]
        lines.append("")
    return lines


def _names(text: str) -> str:
    return "`" + re.sub(r"\s+", " ", text) + "`"


def _escaped(text: str) -> str:
    text = re.sub(r"\s+", " ", text).replace("<", "&lt;")
    return re.sub(r"([*_|\[\]])", r"\\\1", text)


def _linked(text: str) -> str:
    """``docs/images.md`` leads there."""
    return re.sub(r"docs/([\w-]+)\.md", r"[\1](../\1.md)", text)
