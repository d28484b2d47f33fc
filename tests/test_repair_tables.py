"""Alarms, audits against the truth, and rank correlations: worked out by hand on records of few numbers."""

from typing import Any

import pytest

from finepruning.dashboard.evidence import rows_of, table, target_place
from finepruning.dashboard.repair_tables import (
    alarms_table,
    audits_table,
    least_growth,
    old_success,
    price,
    rank_correlation,
    rungs,
    smallest_share,
    statistics_table,
)
from tests.dashboard_runs import inspected, make, scores, stressed
from tests.test_table import printed


def audit(evidence: bool, old: float = 0.1) -> dict[str, Any]:
    found = inspected()["inspection"]["rankings"]
    return {
        "evidence": evidence,
        "verdict": "evidence remains" if evidence else "no evidence of a backdoor left under these tests",
        "reasons": [],
        "old_triggers": [{"success": old}, {"success": 0.05}, {"success": None}],
        "norms": [
            {"family": "additive", "target": 2, "suspect": 0.5, "repaired": 2.0},
            {"family": "additive", "target": 1, "suspect": 1.0, "repaired": 3.0},
            {"family": "additive", "target": -1, "suspect": 1.0, "repaired": 1.0},
            {"family": "mask", "target": 2, "suspect": None, "repaired": 2.0},
        ],
        "rankings": found,
    }


def walked(successes: list[float | None], evidence: list[bool], attack: str = "badnet") -> dict[str, Any]:
    record = make(attack=attack, defense="prune", name=f"walked {attack}")
    rows = [{"audit": audit(found, old)} for found, old in zip(evidence, (0.9, 0.3, 0.2, 0.1), strict=False)]
    record["ladder"] = {"rungs": rows, "kept": 0, "max_drop": 1.0, "reason": None}
    record["stress"] = {"networks": {}, "rungs": [scores(0.97, success) for success in successes]}
    return record


def test_ties_share_their_mean_rank() -> None:
    # ranks 1.5, 1.5, 3, 4 against 1, 2, 3, 4: covariance 4.5, variances 4.5 and 5
    assert rank_correlation([(1, 1), (1, 2), (5, 3), (9, 4)]) == pytest.approx(4.5 / (4.5 * 5) ** 0.5)
    assert rank_correlation([(1, 3), (2, 2), (9, 1)]) == pytest.approx(-1)


def test_a_constant_or_two_rungs_have_no_rank_correlation() -> None:
    assert rank_correlation([(1, 1), (1, 2), (1, 3)]) is None
    assert rank_correlation([(1, 1), (2, 2)]) is None
    assert rank_correlation([]) is None


def test_false_accepts_and_false_rejects_are_counted_by_hand() -> None:
    badnet = walked([0.9, 0.1, 0.09, 0.0], [True, False, True, False])
    clean = walked([None, None], [False, True], attack="none")
    dead = walked([0.9], [False], attack="blended") | {"dead": True}
    text = printed(audits_table([badnet, clean, dead]))
    lines = [[cell.strip() for cell in line.split("│")[1:-1]] for line in text.splitlines() if "of" in line]
    assert ["digits", "badnet", "4", "2", "1 of 2", "1 of 2"] in lines
    assert ["digits", "none", "2", "0", "0 of 0", "1 of 2"] in lines
    assert ["all", "", "6", "2", "1 of 2", "2 of 4"] in lines
    assert "blended" not in text


def test_statistics_of_an_audit_are_those_worked_out_by_hand() -> None:
    found = audit(evidence=True, old=0.3)
    assert old_success(found) == 0.3
    assert smallest_share(found, "additive") == pytest.approx(0.5 / 2)
    assert least_growth(found, "additive") == pytest.approx(3)
    assert least_growth(found, "mask") is None


def test_correlations_are_over_the_rungs_of_attacks_alone() -> None:
    badnet = walked([0.9, 0.4, 0.3, 0.0], [True, True, False, False])
    text = printed(statistics_table([badnet, walked([None], [True], attack="none")]))
    (old,) = (line for line in text.splitlines() if "old triggers" in line)
    assert "+1.00" in old
    assert " 4 " in old
    (ratio,) = (line for line in text.splitlines() if "additive: runner-up" in line)
    assert "-" in ratio.split("│")[-2]
    assert not statistics_table([make()]).row_count


def test_a_run_whose_rungs_were_not_scored_has_none() -> None:
    assert rungs([make(), make() | {"stress": {"networks": {}, "rungs": []}}]) == []


def test_a_strangers_network_is_not_taken_for_a_clean_one() -> None:
    assert rungs([walked([None, None], [False, True], attack="suspect")]) == []


def test_alarms_on_clean_networks_are_counted_and_the_price_is_the_mean() -> None:
    def clean(seed: int, verdict: str, after: float) -> dict[str, Any]:
        record = make(attack="none", defense="prune", seed=seed, **inspected())
        record["inspection"]["verdict"] = verdict
        record["scores"] = {"suspect": scores(0.98, None), "defended": scores(after, None)}
        return record | {"audit": audit(evidence=seed == 1), "ladder": {"kept": 1, "rungs": []}}

    runs = [clean(1, "something stands out", 0.97), clean(2, "nothing stands out", 0.976)]
    text = printed(alarms_table([*runs, make(**inspected())]))
    assert "1 of 2" in text
    assert price(runs[0]) == pytest.approx(1.0)
    assert "0.70" in text  # mean of 1.0 and 0.4 points
    assert text.count("│ none") == 0
    assert text.count("0.25") == 4  # the smallest norm over the median, of each network and family


def test_the_place_of_the_true_target_is_its_best_one() -> None:
    record = make(**inspected())
    record["config"]["attack"]["target_label"] = 1
    assert target_place(record) == 1  # second in the additive ranking behind class 2, first in the other
    record["config"]["attack"]["target_label"] = None
    assert target_place(record) == ""
    record["config"]["attack"]["label_map"] = {"source_label": 0, "target_label": 7}
    assert target_place(record) == 3
    record["inspection"]["rankings"]["additive"]["ranking"].pop()  # in the other none was found
    assert target_place(record) == ""


def test_columns_of_stress_and_of_a_repair_are_those_of_the_records() -> None:
    def run(seed: int, **more: Any) -> dict[str, Any]:
        record = make(defense="prune", seed=seed, **inspected(), **stressed()) | more
        record["config"]["attack"]["target_label"] = 2
        ladder = {"kept": seed - 1, "rungs": [{"loss": 0.01}, {"loss": 0.03}]}
        return record | {"ladder": ladder, "audit": audit(evidence=seed == 1)}

    rows = rows_of([run(1), run(2)])
    columns = ["retuned", "reactivated", "suspect_retuned", "control_retuned", "place", "alarms", "evidence"]
    (line,) = table(rows, [*columns, "rungs", "judged"]).splitlines()[2:]
    cells = [cell.strip() for cell in line.strip("|").split("|")]
    assert cells == [
        "40.0 ± 0.0",
        "20.0 ± 0.0",
        "100.0 ± 0.0",
        "5.0 ± 0.0",
        "1, 1",
        "2 of 2",
        "1 of 2",
        "1, 2",
        "2.0 ± 12.7",
    ]
    (undefended,) = rows_of([make(defense="none", **stressed("suspect", "clean"))])
    assert undefended["defended_retuned_success"] == undefended["suspect_retuned_success"] == "1.000000"
    assert undefended["suspect_retuned_success_counts"] == "1000/1000"


def test_the_seconds_of_a_run_leave_out_what_only_the_referee_tries() -> None:
    (row,) = rows_of([make(seconds={"suspect": 30.0, "referee": 2.0, "stress": 99.0, "run": 140.0})])
    assert row["seconds"] == "32"
