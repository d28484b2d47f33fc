"""The audit of a repaired network: what can be said without a trigger, and never that it is clean."""

from collections.abc import Mapping, Sequence
from typing import Any

from finepruning.metrics import Rate
from finepruning.repair.inspection import destination
from finepruning.repair.inversion import Trigger

NOTHING_FOUND = "no evidence of a backdoor left under these tests"
EVIDENCE = "evidence remains"


def verdict(
    stands_out: Sequence[str],
    old: Sequence[tuple[Trigger, Rate]],
    names: Sequence[str],
    max_success: float,
    blind: Sequence[str] = (),
) -> dict[str, Any]:
    """Return one of the two sentences, with its reasons, as plain values.

    Args:
        stands_out: What stands out of a fresh inspection of the repaired network, or could not be searched,
            one sentence each.
        old: Triggers that stood out in the suspect or whose class was named, and what they still do to the
            repaired network. Others are no evidence: every network has some, of about the median norm.
        names: Of the classes.
        max_success: Success of an old trigger from which it is evidence, in (0, 1].
        blind: Networks in which no trigger to any class was found.
    """
    reasons = list(stands_out)
    reasons += [
        f"No trigger to any class was found in the {network}, so that its inspection says nothing. Raise "
        "defense.inspection.search.steps."
        for network in blind
    ]
    for trigger, rate in old:
        if rate.total and rate.value >= max_success:
            where = destination(trigger, names)
            reasons.append(
                f"The {trigger.family} trigger that was found in the suspect still sends {rate.hits} of "
                f"{rate.total} images {where}."
            )
    if reasons:
        return {"verdict": EVIDENCE, "evidence": True, "reasons": reasons}
    reason = "A fresh inspection of the repaired network finds no class that stands out"
    counted = [rate.value for _, rate in old if rate.total]
    if counted:
        reason += (
            f", and the triggers that stood out in the suspect, or whose class was named, work on at most "
            f"{100 * max(counted):.1f} % of the validation images."
        )
    else:
        reason += ". No trigger stood out in the suspect that could be put on again: this says little."
    return {"verdict": NOTHING_FOUND, "evidence": False, "reasons": [reason]}


def compare(
    before: Mapping[str, Any], after: Mapping[str, Any], classes: Sequence[int]
) -> list[dict[str, Any]]:
    """Return the norms of some classes' smallest triggers in the suspect and in the repaired network."""
    rows = []
    for family in before:
        norms = [{row["target"]: row["norm"] for row in each[family]["ranking"]} for each in (before, after)]
        rows += [
            {
                "family": family,
                "target": label,
                "suspect": norms[0].get(label),
                "repaired": norms[1].get(label),
            }
            for label in classes
            if any(label in found for found in norms)  # searched for in this family
        ]
    return rows


def check_max_success(max_success: float) -> None:
    """Raise ValueError if the limit of an old trigger's success is out of range."""
    if not (isinstance(max_success, int | float) and 0 < max_success <= 1):
        raise ValueError(f"max_success={max_success} is outside (0, 1]. Change defense.audit.max_success.")
