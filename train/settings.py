"""The settings of a run as a table, read from where they are defined.

python -m phistill.train.settings docs/training.md    # writes the table between its two marks
"""

from __future__ import annotations

import ast
import dataclasses
import itertools
import json
import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from . import config
from .config import TrainConfig

BEGIN = "<!-- settings: written by python -m phistill.train.settings docs/training.md -->"
END = "<!-- end of settings -->"

_SECTION = re.compile(r"\s*# ---- (.+?) -+$")


@dataclass(frozen=True, kw_only=True, slots=True)
class Setting:
    """One field of TrainConfig."""

    section: str
    name: str
    default: str
    """As TOML spells it."""

    meaning: str


def settings() -> list[Setting]:
    """Every field of TrainConfig in the order of its definition."""
    source = Path(config.__file__).read_text("utf-8")
    sections = {
        number: found[1]
        for number, line in enumerate(source.splitlines(), 1)
        if (found := _SECTION.match(line))
    }
    defaults = {field.name: _default(field) for field in dataclasses.fields(TrainConfig)}
    return [
        Setting(
            section=sections[max(line for line in sections if line < number)],
            name=name,
            default=json.dumps(defaults[name]),
            meaning=" ".join(text.replace("``", "`").split()),
        )
        for name, number, text in _documented(source)
        if name in defaults
    ]


def _documented(source: str) -> Iterator[tuple[str, int, str]]:
    """Name, line and docstring of TrainConfig's fields."""
    (body,) = [
        node.body
        for node in ast.parse(source).body
        if isinstance(node, ast.ClassDef) and node.name == TrainConfig.__name__
    ]
    for field, text in itertools.pairwise(body):
        if not (isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name)):
            continue
        meaning = ""
        if isinstance(text, ast.Expr) and isinstance(text.value, ast.Constant):
            meaning = str(text.value.value)
        yield field.target.id, field.lineno, meaning


def _default(field: dataclasses.Field[Any]) -> Any:
    factory = field.default_factory
    return field.default if factory is dataclasses.MISSING else factory()


def as_markdown() -> str:
    """A table per section."""
    found = settings()
    blocks = []
    for section in dict.fromkeys(setting.section for setting in found):
        lines = [f"| {section} | default | |", "|---|---|---|"]
        for s in found:
            if s.section == section:
                meaning = s.meaning.replace("|", "\\|")
                lines.append(f"| `{s.name}` | `{s.default}` | {meaning} |")
        blocks.append("\n".join(lines))
    return "\n\n".join(blocks)


def as_text() -> str:
    """For a terminal: a line per setting, its meaning below."""
    lines: list[str] = []
    found = settings()
    for number, setting in enumerate(found):
        if not number or found[number - 1].section != setting.section:
            lines += ["", setting.section]
        lines += [f"  {setting.name} = {setting.default}", f"      {setting.meaning}"]
    return "\n".join(lines[1:])


def write_into(page: Path) -> None:
    """Replace what is between the marks of a Markdown page."""
    text = page.read_text("utf-8")
    before, _, rest = text.partition(BEGIN)
    _, _, after = rest.partition(END)
    page.write_text(f"{before}{BEGIN}\n\n{as_markdown()}\n\n{END}{after}", "utf-8")


if __name__ == "__main__":
    write_into(Path(sys.argv[1]))
