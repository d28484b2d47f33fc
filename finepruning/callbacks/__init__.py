"""Lightning callbacks: thin shells around the pruning functions. They see the defender's images only."""

from finepruning.callbacks.prune import PruneChannels

__all__ = ["PruneChannels"]
