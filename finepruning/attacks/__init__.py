"""The attacker: triggers, label maps, poisoning. Nothing here is ever imported by a defense."""

from finepruning.attacks.attack import Attack
from finepruning.attacks.pruning_aware import PruningAware
from finepruning.attacks.transfer import Transfer

__all__ = ["Attack", "PruningAware", "Transfer"]
