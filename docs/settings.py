"""Write the table of settings into training.md, from the declaration of TrainConfig.

python docs/settings.py
"""

from __future__ import annotations

from pathlib import Path

from phistill.train.config import settings

PAGE = Path(__file__).parent / "training.md"
BEGIN = "<!-- settings: written by python docs/settings.py -->"
END = "<!-- end of settings -->"


def table() -> str:
    """A Markdown table per section."""
    everything = settings()
    blocks = []
    for section in dict.fromkeys(one.section for one in everything):
        lines = [f"| {section} | default | |", "|---|---|---|"]
        for one in everything:
            if one.section == section:
                meaning = one.meaning.replace("|", "\\|")
                lines.append(f"| `{one.name}` | `{one.default}` | {meaning} |")
        blocks.append("\n".join(lines))
    return "\n\n".join(blocks)


def with_table(page: str) -> str:
    """The page with the table between its marks."""
    before, begin, rest = page.partition(BEGIN)
    _, end, after = rest.partition(END)
    assert (begin, end) == (BEGIN, END), f"{PAGE} has lost the marks around its table"
    return f"{before}{BEGIN}\n\n{table()}\n\n{END}{after}"


if __name__ == "__main__":
    PAGE.write_text(with_table(PAGE.read_text("utf-8")), "utf-8")
