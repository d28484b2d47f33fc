"""The tables of the pages are those of the runs."""

import os
from pathlib import Path
from typing import Any

import pytest

from finepruning.dashboard.evidence import __main__ as command
from finepruning.dashboard.evidence import filled, matrix, merged, pages, read, rows_of, table, write
from finepruning.dashboard.evidence.rows import OF_STRESS, OF_THE_NETWORKS
from finepruning.record import read_all
from tests import dashboard_runs
from tests.conftest import ROOT

RESULTS = ROOT / "experiments" / "results"


def record(seed: int, defense: str, clean: int, success: int, **changes: Any) -> dict[str, Any]:
    def scores(clean: int, success: int) -> dict[str, Any]:
        return {
            "clean_accuracy": clean / 200,
            "attack_success_rate": success / 100,
            "counts": {
                "clean_accuracy": {"hits": clean, "total": 200},
                "attack_success_rate": {"hits": success, "total": 100},
            },
        }

    return {
        "status": "finished",
        "dataset": "digits",
        "model": "digits_cnn",
        "attack": "badnet",
        "defense": defense,
        "seed": seed,
        "command": f"python run.py attack=badnet defense={defense} attack.poison_rate=0.05 seed={seed}",
        "scores": {"suspect": scores(198, 100), "defended": scores(clean, success)},
        "pruning": [],
        "dead": False,
        "seconds": {"suspect": 3.0, "run": 9.0},
        "commit": "0123456789",
        "config": {},
    } | changes


def test_means_and_intervals_over_seeds_are_those_worked_out_by_hand() -> None:
    rows = rows_of([record(2, "finetune", 190, 40), record(1, "finetune", 194, 60)])
    lines = table(rows, ["defense", "setting", "seeds", "clean", "success", "cost"]).splitlines()
    # 95 and 97 %: mean 96, deviation 1.414, t 12.706, so 12.7; 40 and 60 %: 50 and 127.1; cost 4 and 2 points
    expected = "| `finetune` | `attack.poison_rate=0.05` | 1, 2 | 96.0 ± 12.7 | 50.0 ± 127.1 | 3.0 ± 12.7 |"
    assert lines[2:] == [expected]


def test_a_failed_run_is_no_row_and_a_dead_attack_is_told_and_not_averaged() -> None:
    dead = record(1, "none", 198, 3, dead=True)
    rows = rows_of([dead, record(2, "none", 198, 100, status="failed")])
    assert "| 1 (1 dead) | 3.0 [1.0, 8.5] |" in table(rows, ["seeds", "success"])
    rows = rows_of([dead, record(2, "none", 198, 90)])
    assert "| 1, 2 (1 dead) | 90.0 |" in table(rows, ["seeds", "success"])


def test_of_two_runs_of_a_setting_and_seed_the_later_counts(tmp_path: Path) -> None:
    for name, success, when in (("a", 40, 200), ("b", 60, 100)):
        path = (
            dashboard_runs.write(tmp_path, record(1, "finetune", 190, success, name=name, schema=1))
            / "record.json"
        )
        os.utime(path, (when, when))
    found, _ = read_all([tmp_path])
    (row,) = rows_of(found)
    assert row["defended_attack_success_rate_counts"] == "40/100"


def test_a_table_of_stress_holds_the_runs_that_were_under_it_alone() -> None:
    def back(success: int) -> dict[str, Any]:
        counts = {"attack_success_rate": {"hits": success, "total": 100}}
        return {"retuned": {"attack_success_rate": success / 100, "clean_accuracy": 0.9, "counts": counts}}

    networks = {"suspect": back(95), "defended": back(30), "clean": back(2)}
    stressed = record(1, "finetune", 190, 20, stress={"networks": networks})
    rows = rows_of([stressed, record(2, "finetune", 190, 80), record(1, "prune", 190, 80)])
    columns = ["defense", "seeds", "success", "retuned", "suspect_retuned", "control_retuned"]
    lines = table(rows, columns).splitlines()
    assert lines[2:] == ["| `finetune` | 1 | 20.0 [13.3, 28.9] | 30.0 | 95.0 | 2.0 |"]
    assert len(table(rows, columns[:3]).splitlines()) == 4
    again = rows_of([stressed, record(1, "finetune", 190, 20)])
    assert table(again, columns) == table(rows, columns)  # of the same networks, run again without stress
    assert len(table(rows_of([stressed, record(1, "finetune", 190, 21)]), columns).splitlines()) == 2


def test_a_gain_too_small_to_show_has_no_sign() -> None:
    run = record(1, "finetune", 198, 40)
    run["scores"]["defended"]["clean_accuracy"] += 1e-5
    assert "| 0.0 |" in table(rows_of([run]), ["cost"])


def test_the_price_of_an_attack_is_against_the_clean_network_on_the_same_data() -> None:
    clean = record(1, "none", 200, 0, attack="none")
    clean["scores"]["suspect"]["clean_accuracy"] = 1.0
    rows = rows_of([clean, record(1, "none", 198, 100)])
    assert "| `badnet` | 1.00 |" in table(rows, ["attack", "price"])


def test_channels_that_a_ladder_pruned_are_counted_where_it_has_no_curve() -> None:
    runs = [record(1, "auto", 196, 5, pruned={"conv1": [0, 3], "conv2": [1]}), record(1, "none", 198, 100)]
    lines = table(rows_of(runs), ["defense", "channels"]).splitlines()
    assert lines[2:] == ["| `none` |  |", "| `auto` | 3 |"]


def test_an_unknown_column_is_named() -> None:
    with pytest.raises(ValueError, match="no column 'speed'"):
        table(rows_of([record(1, "none", 198, 100)]), ["speed"])


def test_a_table_keeps_the_rows_that_its_page_asks_for(tmp_path: Path) -> None:
    rows = rows_of([record(1, "none", 198, 100), record(1, "finetune", 190, 40)])
    write(rows, tmp_path / "some.csv")
    page = "before\n<!-- table some: defense success defense=finetune -->\nold\n<!-- end -->\nafter\n"
    text = filled(page, tmp_path)
    assert text.startswith("before\n<!-- table some:")
    assert text.endswith("| `finetune` | 40.0 [30.9, 49.8] |\n<!-- end -->\nafter\n")
    assert filled(text, tmp_path) == text


def test_a_matrix_has_a_column_for_each_defense_it_names(tmp_path: Path) -> None:
    rows = rows_of(
        [record(1, "none", 198, 100), record(1, "finetune", 190, 40), record(2, "finetune", 194, 60)]
    )
    write(rows, tmp_path / "some.csv")
    text = filled("<!-- matrix some: finetune prune none -->\n<!-- end -->\n", tmp_path)
    assert text.splitlines()[1:-1] == [
        "| dataset | attack | `finetune` | `prune` | `none` |",
        "|---|---|---|---|---|",
        "| `digits` | `badnet attack.poison_rate=0.05` | 96.0 ± 12.7 / 50.0 ± 127.1 |  | "
        "99.0 [96.4, 99.7] / 100.0 [96.3, 100.0] |",
    ]


def test_settings_with_spaces_are_told_apart_and_speed_is_no_setting() -> None:
    runs = [
        record(1, "auto", 190, success, command=f"python run.py 'defense.ladder=[{{weight: {w}}}]' {more}")
        for w, success, more in (
            ("0.05", 10, "trainer.threads=1"),
            ("0.10", 5, "trainer.max_epochs=3"),
            ("0.05", 11, "trainer.devices=2"),
        )
    ]
    assert [row["setting"] for row in rows_of(runs)] == [
        "defense.ladder=[{weight: 0.05}]",
        "defense.ladder=[{weight: 0.10}] trainer.max_epochs=3",
    ]


def test_an_oracle_is_badged_and_replaces_no_honest_run() -> None:
    honest, oracle = record(1, "prune", 190, 40), record(1, "prune", 190, 0, oracle=True)
    rows = rows_of([honest, oracle])
    assert [(row["setting"], row["defended_attack_success_rate"]) for row in rows] == [
        ("attack.poison_rate=0.05", "0.400000"),
        ("oracle attack.poison_rate=0.05", "0.000000"),
    ]


def test_a_matrix_tells_models_apart_and_dead_attacks() -> None:
    runs = [record(1, "prune", 190, 40), record(1, "prune", 150, 30, model="badnets_cnn", dead=True)]
    lines = matrix(rows_of(runs), ["prune"]).splitlines()[2:]
    assert [line.split("|")[2].strip() for line in lines] == [
        "`badnet badnets_cnn attack.poison_rate=0.05`",
        "`badnet digits_cnn attack.poison_rate=0.05`",
    ]
    assert ["(1 dead)" in line for line in lines] == [True, False]


def test_a_matrix_never_takes_settings_for_seeds() -> None:
    other = record(1, "none", 190, 40, command="python run.py attack.poison_rate=0.1")
    lines = matrix(rows_of([record(1, "none", 198, 100), other]), ["none"]).splitlines()
    assert [line.split(" | ")[1] for line in lines[2:]] == [
        "`badnet attack.poison_rate=0.05`",
        "`badnet attack.poison_rate=0.1`",
    ]


def test_a_matrix_has_no_line_for_what_met_none_of_its_defenses() -> None:
    clean = record(1, "auto", 190, 0, attack="none")
    for scores in clean["scores"].values():
        scores["attack_success_rate"] = None
        del scores["counts"]["attack_success_rate"]
    lines = matrix(rows_of([record(1, "none", 198, 100), clean]), ["auto"]).splitlines()
    assert [line.split(" | ")[1:] for line in lines[2:]] == [
        ["`none attack.poison_rate=0.05`", "95.0 [91.0, 97.3] |"]
    ]


def test_every_rung_that_was_scored_is_a_row_with_its_own_audit() -> None:
    weak, strong = record(1, "auto", 196, 70), record(1, "auto", 180, 5)
    walked = [
        {"options": {"weight": 0.03}, "loss": 0.004, "audit": {"evidence": True}},
        {"options": {"tuner": "sau", "weight": 0.2}, "loss": 0.02, "audit": {"evidence": False}},
    ]
    around = "defense.max_drop=1.0 'defense.ladder=[{weight: 0.03}, {tuner: sau, weight: 0.2}]'"
    run = strong | {
        "command": f"{strong['command']} {around}",  # which changes nothing in a rung
        "ladder": {"kept": 1, "rungs": walked},
        "audit": {"evidence": False},
        "stress": {"rungs": [each["scores"]["defended"] for each in (weak, strong)]},
    }
    twice = rows_of([run, run])  # as if two ladders had the same rungs: each is one network of one seed
    lines = table(twice, ["setting", "judged", "cost", "success", "evidence", "rungs"]).splitlines()
    assert lines[2:] == [
        "| `attack.poison_rate=0.05 tuner=sau weight=0.2` | 2.0 | 9.0 | 5.0 [2.2, 11.2] | 0 of 1 | 2 |",
        "| `attack.poison_rate=0.05 weight=0.03` | 0.4 | 1.0 | 70.0 [60.4, 78.1] | 1 of 1 | 1 |",
    ]


def test_rows_of_another_machine_stay_beside_new_ones(tmp_path: Path) -> None:
    file = tmp_path / "some.csv"
    write(rows_of([record(10, "finetune", 190, 40), record(9, "finetune", 190, 50)]), file)
    write(merged(read(file), rows_of([record(10, "finetune", 190, 60)])), file)
    rows = [(row["seed"], row["defended_attack_success_rate"]) for row in read(file)]
    assert rows == [("9", "0.500000"), ("10", "0.600000")]
    assert read(tmp_path / "none.csv") == []


def test_the_tables_of_the_readme_and_of_the_pages_are_those_of_the_results() -> None:
    stale = [page.name for page in pages(ROOT) if filled(page.read_text(), RESULTS) != page.read_text()]
    assert not stale, "python -m finepruning.dashboard.evidence fills them"


def share(counts: str) -> float:
    hits, total = map(int, counts.split("/"))
    return hits / total


def test_every_result_has_counts_that_give_its_rates() -> None:
    rows = [row for file in RESULTS.glob("*.csv") for row in read(file)]
    of_stress = [field for field in OF_STRESS if field.endswith("_counts")]
    found = [
        (row[field.removesuffix("_counts")], row[field])
        for row in rows
        for field in (*OF_THE_NETWORKS, *of_stress)
        if row.get(field)
    ]
    assert len(found) > 2 * len(rows) > 1000
    wrong = [pair for pair in found if f"{share(pair[1]):.6f}" != pair[0]]
    assert wrong == []


def test_the_command_writes_rows_and_fills_pages_and_keeps_old_rows_only_if_asked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def written(*arguments: str) -> str:
        monkeypatch.setattr("sys.argv", ["evidence", *arguments])
        command.main()
        return (tmp_path / "experiments" / "some.md").read_text()

    monkeypatch.setattr(command, "ROOT", tmp_path)
    (tmp_path / "experiments").mkdir()
    (tmp_path / "README.md").write_text("no table")
    (tmp_path / "experiments" / "some.md").write_text("<!-- table some: defense seeds -->\n<!-- end -->\n")
    for number, (folder, seed) in enumerate((("first", 1), ("second", 2))):
        run = record(seed, "finetune", 190, 40, name=f"run {number}", schema=1)
        dashboard_runs.write(tmp_path / folder, run)
    assert "| `finetune` | 1 |" in written("some", str(tmp_path / "first"))
    assert "| `finetune` | 1, 2 |" in written("some", str(tmp_path / "second"), "--add")
    assert "| `finetune` | 2 |" in written("some", str(tmp_path / "second"))
    (tmp_path / "second" / "torn").mkdir()
    (tmp_path / "second" / "torn" / "record.json").write_text("{")
    with pytest.raises(SystemExit, match=r"torn/record\.json is damaged"):
        written("some", str(tmp_path / "second"))
    with pytest.raises(SystemExit, match=r"No record of a run in .*nowhere; some\.md says how"):
        written("some", str(tmp_path / "nowhere"))
    with pytest.raises(SystemExit, match=r"No page has a table of 'sume'\. There are some\."):
        written("sume")
    failed = record(3, "finetune", 190, 40, name="run 3", schema=1, status="failed")
    dashboard_runs.write(tmp_path / "third", failed)
    with pytest.raises(SystemExit, match=r"No run in .*third has ended well: nothing is written"):
        written("some", str(tmp_path / "third"))
    assert "| `finetune` | 2 |" in written()
    assert (tmp_path / "README.md").read_text() == "no table"
