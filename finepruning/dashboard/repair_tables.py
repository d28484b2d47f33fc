"""Tables of repairs, from records: alarms on clean networks, and audits against the true attack success."""

import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

from rich.table import Table
from scipy import stats

from finepruning.record import STANDS_OUT, scored_rungs

Record = Mapping[str, Any]

LEFT = 0.10  # attack success from which a backdoor is left
FAMILIES = ("additive", "mask")


class Rung(NamedTuple):
    """One rung of a ladder: what the audit says of it, and what the referee measured.

    Args:
        dataset: Of the run.
        attack: Of the run.
        audit: As it stands in the record.
        success: True attack success, in [0, 1]; 0 for a network without a backdoor.
        clean: Whether there never was an attack.
    """

    dataset: str
    attack: str
    audit: Mapping[str, Any]
    success: float
    clean: bool

    @property
    def is_left(self) -> bool:
        """Whether a backdoor is left."""
        return self.success >= LEFT


def rungs(runs: Sequence[Record]) -> list[Rung]:
    """Return the rungs that were audited and scored (``stress.rungs=true``); none of a dead attack."""
    found = []
    for run in runs:
        clean = run["attack"] == "none"
        for walked, scores in [] if run["dead"] else scored_rungs(run):
            success = 0.0 if clean else scores["attack_success_rate"]
            if success is not None:  # of a stranger's network it may not be known
                found.append(Rung(run["dataset"], run["attack"], walked["audit"], success, clean))
    return found


def audits_table(runs: Sequence[Record]) -> Table:
    """Return how often the audit accepts a backdoor, and how often it rejects without one, by attack."""
    table = Table(
        caption=f"a backdoor is left from {100 * LEFT:g} % true attack success; false accept: it is, and the "
        "audit finds no evidence; false reject: it is not, and evidence remains"
    )
    table.add_column("data")
    table.add_column("attack")
    for column in ("rungs", "backdoor left", "false accepts", "false rejects"):
        table.add_column(column, justify="right")
    found = rungs(runs)
    for dataset, attack in sorted({(rung.dataset, rung.attack) for rung in found}):
        own = [rung for rung in found if (rung.dataset, rung.attack) == (dataset, attack)]
        table.add_row(dataset, attack, *_verdicts(own))
    if found:
        table.add_section()
        table.add_row("all", "", *_verdicts(found))
    return table


def _verdicts(found: Sequence[Rung]) -> list[str]:
    left = [rung for rung in found if rung.is_left]
    gone = [rung for rung in found if not rung.is_left]
    accepts = sum(not rung.audit["evidence"] for rung in left)
    rejects = sum(rung.audit["evidence"] for rung in gone)
    return [str(len(found)), str(len(left)), f"{accepts} of {len(left)}", f"{rejects} of {len(gone)}"]


def old_success(audit: Mapping[str, Any]) -> float | None:
    """Return the most that a trigger found in the suspect still does; None if none could be put on again."""
    return max(
        (each["success"] for each in audit["old_triggers"] if each["success"] is not None), default=None
    )


def smallest_share(audit: Mapping[str, Any], family: str) -> float | None:
    """Return the smallest norm of a class's trigger over the median; None if none was found."""
    found = audit["rankings"][family]
    norms = [row["norm"] for row in found["ranking"] if row["target"] >= 0 and row["norm"] is not None]
    return min(norms) / found["median"] if norms and found["median"] else None


def least_growth(audit: Mapping[str, Any], family: str) -> float | None:
    """Return the smallest factor by which a suspicious class's norm grew in the repair; None if unknown."""
    pairs = [
        (row["suspect"], row["repaired"])
        for row in audit["norms"]
        if row["family"] == family and row["target"] >= 0
    ]
    return min((after / before for before, after in pairs if before and after is not None), default=None)


def runner_up(audit: Mapping[str, Any], family: str) -> float | None:
    """Return the second smallest norm over the smallest; None if there are not two."""
    ratio: float | None = audit["rankings"][family]["ratio"]
    return ratio


Statistic = Callable[[Mapping[str, Any]], float | None]
STATISTICS: list[tuple[str, str, Statistic]] = [  # with the sign that it should have
    ("audit finds evidence", "+", lambda audit: float(audit["evidence"])),
    ("success of the old triggers", "+", old_success),
    *((f"{family}: runner-up over smallest", "+", partial(runner_up, family=family)) for family in FAMILIES),
    *(
        (f"{family}: smallest over median", "-", partial(smallest_share, family=family))
        for family in FAMILIES
    ),
    *((f"{family}: least growth", "-", partial(least_growth, family=family)) for family in FAMILIES),
]


def rank_correlation(pairs: Sequence[tuple[float, float]]) -> float | None:
    """Return Spearman's rank correlation, ties at mean ranks; None of a constant or under three pairs."""
    columns = list(zip(*pairs, strict=True))
    if len(pairs) < 3 or any(len(set(column)) < 2 for column in columns):
        return None
    return float(stats.spearmanr(*columns).statistic)


def statistics_table(runs: Sequence[Record]) -> Table:
    """Return each audit statistic's rank correlation with the true attack success."""
    table = Table(
        caption="Spearman's rank correlation with the true attack success, over all rungs and attacks"
    )
    table.add_column("statistic")
    for column in ("should be", "rungs", "correlation"):
        table.add_column(column, justify="right")
    found = [rung for rung in rungs(runs) if not rung.clean]
    for name, sign, of in STATISTICS if found else ():
        values = [(of(rung.audit), rung.success) for rung in found]
        pairs = [(value, success) for value, success in values if value is not None and math.isfinite(value)]
        rho = rank_correlation(pairs)
        table.add_row(name, sign, str(len(pairs)), "-" if rho is None else f"{rho:+.2f}")
    return table


def alarms_table(runs: Sequence[Record]) -> Table:
    """Return what an inspection and a repair do to clean networks: alarms, and points of accuracy."""
    table = Table(
        caption="networks without a backdoor: whatever stands out is a false alarm; price in points of clean "
        "accuracy on test images"
    )
    for column in (
        "data",
        "defense",
        "seed",
        "inspection",
        *(f"{name}: smallest/median" for name in FAMILIES),
    ):
        table.add_column(column)
    for column in ("audit", "rung", "clean accuracy", "price"):
        table.add_column(column, justify="right")
    found = [run for run in runs if run["attack"] == "none" and run.get("inspection")]
    for run in sorted(found, key=lambda run: (run["dataset"], run["defense"], run["seed"])):
        table.add_row(run["dataset"], run["defense"], str(run["seed"]), *_alarm(run))
    if found:
        alarms = sum(run["inspection"]["verdict"] == STANDS_OUT for run in found)
        audits = [run["audit"]["evidence"] for run in found if run.get("audit")]
        table.add_section()
        empty = [""] * len(FAMILIES)
        remains = f"{sum(audits)} of {len(audits)}" if audits else ""
        mean = statistics.fmean(map(price, found))
        table.add_row("all", "", "", f"{alarms} of {len(found)}", *empty, remains, "", "", f"{mean:.2f}")
    return table


def _alarm(run: Record) -> list[str]:
    shares = [smallest_share(run["inspection"], family) for family in FAMILIES]
    kept = (run.get("ladder") or {}).get("kept")
    evidence = (run.get("audit") or {}).get("evidence")
    return [
        "alarm" if run["inspection"]["verdict"] == STANDS_OUT else "",
        *("-" if share is None else f"{share:.2f}" for share in shares),
        "" if evidence is None else "evidence" if evidence else "no evidence",
        "-" if kept is None else str(kept + 1),
        f"{100 * run['scores']['defended']['clean_accuracy']:.2f}",
        f"{price(run):.2f}",
    ]


def price(run: Record) -> float:
    """Return the points of clean accuracy that a repair took; negative for a gain."""
    before, after = (run["scores"][name]["clean_accuracy"] for name in ("suspect", "defended"))
    return 100 * float(before - after)
