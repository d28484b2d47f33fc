"""Plain networks. Each normalises its input itself and names the layer that is pruned by default."""

from finepruning.networks.digits import BadNetsCNN, DigitsCNN
from finepruning.networks.layers import Normalise

__all__ = ["BadNetsCNN", "DigitsCNN", "Normalise"]
