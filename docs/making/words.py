"""How many words each page has, those in blocks of code counted apart; bars of tables are none.

python docs/making/words.py [CHECKOUT ...] prints the pages of checkouts beside one another.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent.parent
CODE = re.compile(r"^( *)(`{3,})\w*.*?\n.*?^\1\2$\n?", re.MULTILINE | re.DOTALL)

KEPT_OUT = {"log.md"}
"""Pages that no reader of the site is led to."""


def pages(root: Path) -> dict[str, tuple[int, int]]:
    """By page: words outside blocks of code, and inside."""
    found = {}
    for path in [root / "README.md", *sorted((root / "docs").rglob("*.md"))]:
        text = path.read_text("utf-8")
        prose = words(CODE.sub("", text))
        if path.name not in KEPT_OUT:
            found[path.relative_to(root).as_posix()] = (prose, words(text) - prose)
    return found


def words(text: str) -> int:
    """Those with a letter or digit."""
    return sum(re.search(r"\w", word) is not None for word in text.split())


def table(roots: list[Path]) -> str:
    """Markdown: a line per page, and the sums; words, and after a plus those in code."""
    counted = [pages(root) for root in roots]
    names = sorted({name for found in counted for name in found})
    lines = [f"| page | {' | '.join(root.resolve().name for root in roots)} |"]
    lines.append("|---" * (1 + len(roots)) + "|")
    for name in names:
        cells = ["{} + {}".format(*found[name]) if name in found else "" for found in counted]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    sums = [tuple(map(sum, zip(*found.values(), strict=True))) for found in counted]
    lines.append(f"| **all** | {' | '.join('{:,} + {:,}'.format(*one) for one in sums)} |")
    return "\n".join(lines)


if __name__ == "__main__":
    print(table([Path(argument) for argument in sys.argv[1:]] or [ROOT]))
