"""The command that writes the evidence."""

import argparse
import sys
from pathlib import Path

from finepruning import record as records
from finepruning.dashboard.evidence import filled, merged, named, pages, read, rows_of, write

ROOT = Path(__file__).parent.parent.parent.parent


def main() -> None:
    """Write one experiment's CSV if it is named, then all tables."""
    parser = argparse.ArgumentParser(
        prog="python -m finepruning.dashboard.evidence", description=main.__doc__
    )
    parser.add_argument("name", nargs="?", help="an experiment, as tables of the pages name it")
    parser.add_argument("runs", nargs="?", type=Path, help="folder of its runs; default runs/NAME")
    parser.add_argument("--add", action="store_true", help="keep the rows of runs that lie elsewhere")
    given = parser.parse_args()
    if given.name:
        of_names = {name: page for page in pages(ROOT) for name in named(page.read_text())}
        if given.name not in of_names:
            sys.exit(f"No page has a table of {given.name!r}. There are {', '.join(sorted(of_names))}.")
        folder = given.runs or Path("runs") / given.name
        found, problems = records.read_all([folder])
        if problems or not found:
            sys.exit(
                "\n".join(problems)
                or f"No record of a run in {folder}; {of_names[given.name].name} says how."
            )
        file = ROOT / "experiments" / "results" / f"{given.name}.csv"
        rows = rows_of(found)
        if not rows:
            sys.exit(f"No run in {folder} has ended well: nothing is written.")
        write(merged(read(file), rows) if given.add else rows, file)
    for page in pages(ROOT):
        page.write_text(filled(page.read_text(), ROOT / "experiments" / "results"))


if __name__ == "__main__":
    main()
