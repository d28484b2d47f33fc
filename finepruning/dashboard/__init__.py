"""Records made visible. Nothing here loads torch."""

from finepruning.dashboard.table import comparison, show

__all__ = ["comparison", "show"]
