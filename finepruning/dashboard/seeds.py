"""Means over seeds with their intervals, and what follows from them: which defense won, at what price."""

import math
import statistics
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

Row = Mapping[str, Any]

CLEANED = 0.05  # attack success that counts as a removed backdoor
# 97.5 % quantiles of Student's t for 1 to 30 degrees of freedom; scipy takes seconds to import.
STUDENT = (
    *(12.7062, 4.3027, 3.1824, 2.7764, 2.5706, 2.4469, 2.3646, 2.3060, 2.2622, 2.2281),
    *(2.2010, 2.1788, 2.1604, 2.1448, 2.1314, 2.1199, 2.1098, 2.1009, 2.0930, 2.0860),
    *(2.0796, 2.0739, 2.0687, 2.0639, 2.0595, 2.0555, 2.0518, 2.0484, 2.0452, 2.0423),
)


class Estimate(NamedTuple):
    """A mean over seeds, its 95 % interval, and the lowest and highest seed."""

    mean: float
    low: float
    high: float
    least: float
    most: float


def student(freedom: int) -> float:
    """Return the 97.5 % quantile of Student's t (beyond 30 degrees by Cornish and Fisher's expansion)."""
    z = 1.959964
    return STUDENT[freedom - 1] if freedom <= len(STUDENT) else z + (z**3 + z) / (4 * freedom)


def estimate(
    values: Sequence[float],
    wilson: Sequence[float] | None,
    bounds: tuple[float, float] = (-math.inf, math.inf),
) -> Estimate:
    """Return mean and interval over seeds.

    Args:
        values: One value a seed, at least one.
        wilson: The interval over images of a single run, used when there is one seed only.
        bounds: What the quantity cannot pass, such as 0 and 1 for a share.
    """
    mean, least, most = statistics.fmean(values), min(values), max(values)
    if len(values) == 1:
        low, high = wilson or (mean, mean)
        return Estimate(mean, low, high, least, most)
    half = student(len(values) - 1) * statistics.stdev(values) / math.sqrt(len(values))
    return Estimate(mean, max(bounds[0], mean - half), min(bounds[1], mean + half), least, most)


def summary(rows: Sequence[Row]) -> dict[str, Any]:
    """Return a group over seeds: its estimates and how many of its runs they rest on.

    Dead attacks and runs without scores are counted, never averaged. A seed that was run twice counts once.
    """
    finished = [row for row in rows if row["status"] == "finished"]
    alive = list({row["seeds"]: row for row in finished if not row["dead"]}.values())
    shown = alive or list({row["seeds"]: row for row in finished}.values())
    scores: dict[str, Any] = {
        f"{name}_{when}": _score(shown, name, place)
        for name in ("clean", "success", "robust")
        for place, when in enumerate(("before", "after"))
    }
    prices = [row["clean"][0] - row["clean"][1] for row in shown]
    commits = {row["commit"] for row in shown if row["commit"]}
    return {
        **scores,
        "price": estimate(prices, None) if prices else None,
        "seeds": len(shown),
        "dead": bool(finished) and not alive,
        "dead_seeds": len(finished) - len([row for row in finished if not row["dead"]]),
        "oracle": any(row["oracle"] for row in rows),
        "missing": len(rows) - len(finished),
        "commits": len(commits),
        "changes": any("+changes" in commit for commit in commits),
    }


def _score(rows: Sequence[Row], name: str, place: int) -> Estimate | None:
    """Estimate one score; a loss of accuracy, the success of an untargeted attack, may be negative."""
    known = [row for row in rows if row[name][place] is not None]
    least = -math.inf if name == "success" and any(row["untargeted"] for row in known) else 0.0
    values = [row[name][place] for row in known]
    return estimate(values, known[0]["intervals"][name][place], (least, 1.0)) if known else None


def verdict(groups: Sequence[Row], budget: float) -> dict[str, Any]:
    """Say which defense won against one attack on one network, at what price, and what to doubt.

    Args:
        groups: One a defense (see :func:`summary`), all against the same suspect.
        budget: Loss of clean accuracy, a fraction, that a defense may cost.
    """
    tried = [group for group in groups if group["defense"] != "none"]
    ranked = [
        group
        for group in tried
        if not group["dead"] and not group["oracle"] and group["seeds"] and group["success_after"]
    ]
    if any(group["dead"] for group in groups) and not ranked:
        before = next(group["success_before"] for group in groups if group["dead"])
        sentence = f"undefended, the attack succeeds on only {_percent(before.mean)} of the triggered images."
        return _verdict("dead", "Dead attack", sentence, None, ["Nothing is ranked here."])
    if not ranked:
        counted = [group for group in groups if group["seeds"]]
        clean = bool(counted) and all(group["success_before"] is None for group in counted)
        reason = "there is no attack to defend against." if clean else _why_unranked(tried)
        return _verdict("open", "No attack" if clean else "No winner yet", reason, None, [])
    affordable = [group for group in ranked if group["price"].mean <= budget + 1e-9]
    best = min(affordable or ranked, key=lambda group: group["success_after"].mean)
    after, price = best["success_after"], best["price"].mean
    costs = f"costs {_points(price)} of accuracy" if price > 0 else "costs no accuracy"
    left = f"leaves {_percent(after.mean)} of {_percent(best['success_before'].mean)} attack success"
    if not affordable:
        state, sentence = "dear", f"{left}, but {costs}: no defense stays within {_points(budget)}."
    elif after.mean <= CLEANED:
        state, sentence = "cleaned", f"{left} and {costs}."
    else:
        state, sentence = "survives", f"{left} and {costs}: the backdoor survives."
    return _verdict(state, best["defense_label"], sentence, best, _doubts(best, affordable or ranked, groups))


def _verdict(
    state: str, winner: str, sentence: str, best: Row | None, doubts: Sequence[str]
) -> dict[str, Any]:
    return {"state": state, "winner": winner, "sentence": sentence, "best": best, "doubts": list(doubts)}


def _why_unranked(tried: Sequence[Row]) -> str:
    if not tried:
        return "no defense has been tried."
    if all(group["oracle"] for group in tried if group["seeds"]) and any(group["seeds"] for group in tried):
        return "only oracle runs are finished, and those are not ranked."
    return "no defense has finished."


def _doubts(best: Row, rivals: Sequence[Row], groups: Sequence[Row]) -> list[str]:
    """Return what a reader should hold against a verdict."""
    close = [
        rival["defense_label"]
        for rival in rivals
        if rival is not best and rival["success_after"].low <= best["success_after"].high
    ]
    missing = sum(group["missing"] for group in groups)
    doubts = {
        "One seed only: the interval is over images, not over trainings.": best["seeds"] == 1,
        f"Not told apart from {_listed(close)}: the intervals overlap.": close,
        f"{best['dead_seeds']} dead of {best['seeds'] + best['dead_seeds']} seeds left out.": best[
            "dead_seeds"
        ],
        f"{missing} {'run is' if missing == 1 else 'runs are'} failed or unfinished.": missing,
        "Its runs come from different commits.": best["commits"] > 1,
        "Run with uncommitted changes.": best["changes"],
    }
    return [sentence for sentence, holds in doubts.items() if holds]


def _listed(names: Sequence[str], most: int = 3) -> str:
    rest = len(names) - most
    return ", ".join(names[:most]) + (f" and {rest} more" if rest > 0 else "")


def _percent(value: float) -> str:
    return f"{100 * value:.1f} %"


def _points(value: float) -> str:
    points = f"{100 * value:.1f}"
    return f"{points} point" if points == "1.0" else f"{points} points"
