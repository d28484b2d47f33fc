"""Lightning modules: one classifier and what differs while it is clean, backdoored, pruned or fine-pruned."""

from finepruning.modules.classifier import Classifier, DivergedError
from finepruning.modules.states import (
    BackdooredClassifier,
    CleanClassifier,
    FinePrunedClassifier,
    PrunedClassifier,
)
from finepruning.modules.transferred import TransferredClassifier, take_frozen
from finepruning.modules.unlearned import UnlearnedClassifier

__all__ = [
    "BackdooredClassifier",
    "Classifier",
    "CleanClassifier",
    "DivergedError",
    "FinePrunedClassifier",
    "PrunedClassifier",
    "TransferredClassifier",
    "UnlearnedClassifier",
    "take_frozen",
]
