"""Means over seeds with their intervals, and what follows from them: which defense won, at what price."""

import math
import statistics
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from finepruning.dashboard.seeds import spread

Row = Mapping[str, Any]

CLEANED = 0.05  # attack success that counts as a removed backdoor
BUDGET = 0.01  # loss of clean accuracy that a defense may cost where none is named


class Estimate(NamedTuple):
    """A mean over seeds, its 95 % interval, and the lowest and highest seed."""

    mean: float
    low: float
    high: float
    least: float
    most: float


def estimate(
    values: Sequence[float],
    over_images: Sequence[Sequence[float]] = (),
    bounds: tuple[float, float] = (-math.inf, math.inf),
) -> Estimate:
    """Return mean and interval over seeds, never narrower than the interval over images.

    Seeds that agree by chance, or since all images are classified alike, would leave no interval at all.

    Args:
        values: One value a seed, at least one.
        over_images: The interval over images of each seed, where known.
        bounds: What the quantity cannot pass, such as 0 and 1 for a share.
    """
    found = spread(values)
    assert found is not None
    ends = [statistics.fmean(side) for side in zip(*over_images, strict=True)] or [found.mean] * 2
    low, high = min(ends[0], found.low), max(ends[1], found.high)
    if found.half is not None:
        low, high = max(bounds[0], low), min(bounds[1], high)
    return Estimate(found.mean, low, high, found.least, found.most)


def summary(rows: Sequence[Row]) -> dict[str, Any]:
    """Return a group over seeds: its estimates and how many of its runs they rest on.

    Dead attacks and runs without scores are counted, never averaged. Of runs with one seed the last counts.
    """
    finished = list({row["seeds"]: row for row in rows if row["status"] == "finished"}.values())
    alive = [row for row in finished if not row["dead"]]
    shown = alive or finished
    scores: dict[str, Any] = {
        f"{name}_{when}": _score(shown, name, place)
        for name in ("clean", "success", "robust")
        for place, when in enumerate(("before", "after"))
    }
    prices = [row["clean"][0] - row["clean"][1] for row in shown]
    commits = {row["commit"] for row in shown if row["commit"]}
    return {
        **scores,
        "price": estimate(prices) if prices else None,
        "seeds": len(shown),
        "which": sorted({row["seed"] for row in shown}, key=str),  # of runs, not of parts
        "dead": bool(finished) and not alive,
        "dead_seeds": len(finished) - len(alive),
        "oracle": any(row["oracle"] for row in rows),
        "missing": sum(row["status"] != "finished" for row in rows),
        "inspected": [row["inspection"]["verdict"] for row in shown if row.get("inspection")],
        "audited": [row["audit"]["verdict"] for row in shown if row.get("audit")],
        "commits": len(commits),
        "changes": any("+changes" in commit for commit in commits),
    }


def _score(rows: Sequence[Row], name: str, place: int) -> Estimate | None:
    """Estimate one score; a loss of accuracy, the success of an untargeted attack, may be negative."""
    known = [row for row in rows if row[name][place] is not None]
    least = -math.inf if name == "success" and any(row["untargeted"] for row in known) else 0.0
    values = [row[name][place] for row in known]
    over_images = [row["intervals"][name][place] for row in known if row["intervals"][name][place]]
    return estimate(values, over_images, (least, 1.0)) if known else None


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
        weak = next(group["success_before"].mean for group in groups if group["dead"])
        sentence = f"Undefended, the attack succeeds on only {_percent(weak)} of the triggered images."
        return _verdict("dead", "Dead attack", sentence, None, ["Nothing is ranked here."])
    if not ranked:
        counted = [group for group in groups if group["seeds"]]
        if not counted or any(group["success_before"] is not None for group in counted):
            return _verdict("open", "No winner yet", _why_unranked(tried), None, [])
        if counted[0]["attack"] == "suspect":
            reason = "No trigger is known of this file, so attack success was not measured."
            return _verdict("open", "Trigger unknown", f"{reason}{_looked_at(groups)}", None, [])
        reason = "There is no attack to defend against."
        return _verdict("open", "No attack", f"{reason}{_looked_at(groups)}", None, [])
    affordable = [group for group in ranked if group["price"].mean <= budget + 1e-9]
    best = min(affordable or ranked, key=_left)
    name, within = best["defense_label"], f"within {points(budget)} of clean accuracy"
    before = best["success_before"].mean
    deal = f"leaves {_percent(_left(best))} of {_percent(before)} attack success and {_cost(best)}"
    if not affordable:
        state, headline = "dear", "None affordable"
        sentence = f"No defense stays {within}. Of the others {name} does best: it {deal}."
    elif _left(best) <= CLEANED:
        state, headline, sentence = "cleaned", name, f"{_capital(deal)}."
    else:
        state, headline = "survives", "None removes it"
        sentence = f"{_capital(within)}, {name} does best: it {deal}."
    lowest = min(ranked, key=_left)
    if state == "survives" and _left(lowest) < _left(best):
        other = f"{lowest['defense_label']} leaves {_percent(_left(lowest))}, but {_cost(lowest)}"
        sentence = f"{sentence[:-1]}; {other}."
    return _verdict(state, headline, sentence, best, _doubts(best, affordable or ranked, groups, budget))


def _looked_at(groups: Sequence[Row]) -> str:
    """Return what inspections say of a suspect, and audits after each defense: no trigger is needed."""
    inspected = max((group["inspected"] for group in groups), key=len)
    said = [f"the inspection says that {_counted(inspected)}"] if inspected else []
    for group in groups:
        if group["audited"]:
            said.append(f"the audit after {group['defense_label']}: {_counted(group['audited'])}")
    return "".join(f" {_capital(sentence)}." for sentence in said)


def _counted(verdicts: Sequence[str]) -> str:
    """Return each verdict, and of how many runs it is where they differ."""
    counts = Counter(verdicts)
    if len(counts) == 1:
        return verdicts[0]
    return ", ".join(f"{verdict} ({count} of {len(verdicts)})" for verdict, count in counts.most_common())


def _left(group: Row) -> float:
    mean: float = group["success_after"].mean
    return mean


def _cost(group: Row) -> str:
    price = group["price"].mean
    return f"costs {points(price)}" if price >= 0.0005 else "costs nothing"


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]


def _verdict(
    state: str, headline: str, sentence: str, best: Row | None, doubts: Sequence[str]
) -> dict[str, Any]:
    return {"state": state, "headline": headline, "sentence": sentence, "best": best, "doubts": list(doubts)}


def _why_unranked(tried: Sequence[Row]) -> str:
    if not tried:
        return "No defense has been tried."
    if all(group["oracle"] for group in tried if group["seeds"]) and any(group["seeds"] for group in tried):
        return "Only oracle runs are finished, and those are not ranked."
    return "No defense has finished."


def _doubts(best: Row, rivals: Sequence[Row], groups: Sequence[Row], budget: float) -> list[str]:
    """Return what a reader should hold against a verdict."""
    left, price = best["success_after"], best["price"]
    worst, dearest, most = max(left.high, left.most), max(price.high, price.most), budget + 1e-9
    close = [
        rival["defense_label"]
        for rival in rivals
        if rival is not best and rival["success_after"].low <= best["success_after"].high
    ]
    elsewhere = [rival["defense_label"] for rival in rivals if rival["which"] != best["which"]]
    missing = sum(group["missing"] for group in groups)
    doubts = {
        "One seed only: the interval is over images, not over trainings.": best["seeds"] == 1,
        f"Up to {_percent(worst)} may be left: the interval or the worst seed.": left.mean <= CLEANED < worst,
        f"It may cost up to {points(dearest)}: the interval or the worst seed.": price.mean <= most < dearest,
        f"Not told apart from {_listed(close)}: the intervals overlap.": close,
        f"Not on the same seeds: {_listed(elsewhere)}.": elsewhere,
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


def points(value: float) -> str:
    """Return a difference of shares for a reader: 0.01 is ``1 point``."""
    number = f"{100 * value:.1f}".removesuffix(".0")
    return f"{number} point" if number == "1" else f"{number} points"
