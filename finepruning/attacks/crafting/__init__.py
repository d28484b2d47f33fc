"""What an attacker computes on a clean network before any image is poisoned."""

from finepruning.attacks.crafting.base import Crafting, Plan
from finepruning.attacks.crafting.generators import Generators
from finepruning.attacks.crafting.neurons import NeuronPattern
from finepruning.attacks.crafting.perturbations import Perturbations

__all__ = ["Crafting", "Generators", "NeuronPattern", "Perturbations", "Plan"]
