"""Pages whose tables are made from CSV files."""

import re
from pathlib import Path

from finepruning.dashboard.evidence.rows import read
from finepruning.dashboard.evidence.tables import matrix, table

TABLE = re.compile(r"(<!-- (table|matrix) (\w+): ([^>]*) -->\n)(.*?)(<!-- end -->)", re.DOTALL)


def filled(text: str, results: Path) -> str:
    """Return a page with its tables made anew from the CSV files in ``results``; those without one stay."""

    def fill(match: re.Match[str]) -> str:
        start, kind, name, words, old, end = match.groups()
        file = results / f"{name}.csv"
        if not file.exists():
            return start + old + end
        keep = [word.split("=", 1) for word in words.split() if "=" in word]
        rows = [row for row in read(file) if all(row[key] in value.split(",") for key, value in keep)]
        make = {"table": table, "matrix": matrix}[kind]
        return start + make(rows, [word for word in words.split() if "=" not in word]) + end

    return TABLE.sub(fill, text)


def named(text: str) -> list[str]:
    """Return the experiment of each table of a page."""
    return [match[3] for match in TABLE.finditer(text)]


def pages(root: Path) -> list[Path]:
    """Return the pages that may have tables."""
    return [root / "README.md", *sorted((root / "experiments").glob("*.md"))]
