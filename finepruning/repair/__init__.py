"""Repair as functions: inspection, unlearning, ladder, audit. Knows no attack, no Lightning, no test data.

A comparator from the literature is one file here, with its module in ``modules/``.
"""

from finepruning.repair.audit import check_max_success, compare, verdict
from finepruning.repair.inspection import (
    Inspection,
    Rankings,
    check_accuracy,
    failures,
    is_blind,
    load_triggers,
    missing_classes,
    rankings_record,
    save_triggers,
    success,
)
from finepruning.repair.inversion import UNTARGETED, Search, Trigger, invert
from finepruning.repair.ladder import (
    PairedLoss,
    average,
    check_max_drop,
    climb,
    correct,
    cross_validated_loss,
    paired_loss,
    split_folds,
    why_none,
)

__all__ = [
    "UNTARGETED",
    "Inspection",
    "PairedLoss",
    "Rankings",
    "Search",
    "Trigger",
    "average",
    "check_accuracy",
    "check_max_drop",
    "check_max_success",
    "climb",
    "compare",
    "correct",
    "cross_validated_loss",
    "failures",
    "invert",
    "is_blind",
    "load_triggers",
    "missing_classes",
    "paired_loss",
    "rankings_record",
    "save_triggers",
    "split_folds",
    "success",
    "verdict",
    "why_none",
]
