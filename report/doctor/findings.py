"""A finding says what is, and what to do about it."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Literal

State = Literal["ok", "note", "problem"]


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that was looked at."""

    topic: str
    state: State
    text: str
    """What is."""
    advice: str = ""
    """What to do; empty where nothing is to be done."""


def render(findings: Sequence[Finding]) -> str:
    """Findings as text, a line each, what to do below it."""
    marks = {"ok": "ok     ", "note": "note   ", "problem": "PROBLEM"}
    lines = []
    for finding in findings:
        lines.append(f"{marks[finding.state]}  {finding.topic:<10} {finding.text}")
        if finding.advice:
            lines.append(f"{'':21}{finding.advice}")
    num = sum(finding.state == "problem" for finding in findings)
    lines.append("Nothing is wrong." if not num else f"{num} problem{'s' * (num > 1)}.")
    return "\n".join(lines)


def to_json(findings: Sequence[Finding]) -> str:
    return json.dumps([asdict(finding) for finding in findings], indent=2)
