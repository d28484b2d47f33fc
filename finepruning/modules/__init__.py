"""Lightning modules: one classifier and what differs while it is clean, backdoored, pruned or fine-pruned."""

from finepruning.modules.anp import ANPClassifier
from finepruning.modules.classifier import Classifier, DivergedError
from finepruning.modules.ft_sam import FTSAMClassifier
from finepruning.modules.head_shift import HeadShiftClassifier
from finepruning.modules.i_bau import IBAUClassifier
from finepruning.modules.nad import NADClassifier
from finepruning.modules.sau import SAUClassifier
from finepruning.modules.states import (
    BackdooredClassifier,
    CleanClassifier,
    FinePrunedClassifier,
    PrunedClassifier,
)
from finepruning.modules.transferred import TransferredClassifier, take_frozen
from finepruning.modules.unlearned import UnlearnedClassifier

__all__ = [
    "ANPClassifier",
    "BackdooredClassifier",
    "Classifier",
    "CleanClassifier",
    "DivergedError",
    "FTSAMClassifier",
    "FinePrunedClassifier",
    "HeadShiftClassifier",
    "IBAUClassifier",
    "NADClassifier",
    "PrunedClassifier",
    "SAUClassifier",
    "TransferredClassifier",
    "UnlearnedClassifier",
    "take_frozen",
]
