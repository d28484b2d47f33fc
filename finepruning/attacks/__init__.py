"""The attacker: triggers, label maps, poisoning. Nothing here is ever imported by a defense."""

from finepruning.attacks.attack import Attack

__all__ = ["Attack"]
