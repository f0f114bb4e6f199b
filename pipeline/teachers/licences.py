"""The licence of a teacher's weights, where something here states it. Nothing is downloaded."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .contract import Teacher

MAX_CARD_BYTES = 2**20
UNKNOWN = "unknown: check the model card"


def licence_of(teacher: Teacher) -> str | None:
    """What the teacher says (an optional property ``licence``)."""
    found = getattr(teacher, "licence", None)
    return None if found is None else str(found)


def licence_of_card(folder: Path) -> str | None:
    """What the model card in a local folder states: the line ``license:`` in the front matter of
    README.md, and the name given beside it where that is only ``other``."""
    try:
        with (folder / "README.md").open("rb") as file:
            text = file.read(MAX_CARD_BYTES).decode("utf-8", "replace")
    except OSError:
        return None
    front = re.match(r"---\s*\n(.*?)\n---\s*(\n|$)", text, re.DOTALL)
    lines = front[1] if front else ""
    stated = dict(re.findall(r"^(license(?:_name)?):[ \t]*(\S.{,100}?)[ \t]*$", lines, re.M))
    name = stated.get("license", "").strip("'\"")
    if name == "other":
        name = stated.get("license_name", name).strip("'\"")
    return name or None


def licences_text(licences: Mapping[str, str | None]) -> str:
    """One line for a person: ``Licences: a apache-2.0; b unknown: check the model card.``"""
    listed = "; ".join(f"{name} {licence or UNKNOWN}" for name, licence in licences.items())
    return f"Licence{'s' if len(licences) > 1 else ''}: {listed}."
