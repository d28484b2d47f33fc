"""The evidence in ``experiments/``: runs become a CSV of counts, and tables of the pages are made from it.

``python -m finepruning.dashboard.evidence NAME [RUNS]`` writes ``experiments/results/NAME.csv`` from the
records in ``RUNS`` (default ``runs/NAME``) and fills every table of that name in the pages and the README;
without a name it fills all tables from the CSV files that are there. ``--add`` keeps the rows of runs that
lie elsewhere. A table stands between ``<!-- table NAME: COLUMN ... -->`` and ``<!-- end -->``;
``dataset=mnist`` among the columns keeps only such rows. A run under
``stress=rungs`` has a row for each rung. ``<!-- matrix NAME: DEFENSE ... -->`` has a column
for each defense instead.
"""

from finepruning.dashboard.evidence.pages import filled, named, pages
from finepruning.dashboard.evidence.rows import merged, read, rows_of, target_place, write
from finepruning.dashboard.evidence.tables import matrix, table

__all__ = [
    "filled",
    "matrix",
    "merged",
    "named",
    "pages",
    "read",
    "rows_of",
    "table",
    "target_place",
    "write",
]
