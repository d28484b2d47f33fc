"""Records made visible. Nothing here loads torch."""

from finepruning.dashboard.table import comparison

__all__ = ["comparison"]
