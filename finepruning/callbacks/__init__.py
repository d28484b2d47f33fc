"""Lightning callbacks: thin shells around the pruning functions. They see the defender's images only."""

from finepruning.callbacks.prune import PruneChannels
from finepruning.callbacks.prune_lipschitz import PruneLipschitz

__all__ = ["PruneChannels", "PruneLipschitz"]
