"""Figures and tables for papers say what the records say."""

import csv
import json
import math
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from finepruning import record as records
from finepruning.dashboard import figures
from finepruning.dashboard.results import latex, markdown, results_csv, rows, winners


def scores(clean: float, success: float | None) -> dict[str, Any]:
    robust = None if success is None else clean * (1 - success)
    return {"clean_accuracy": clean, "attack_success_rate": success, "robust_accuracy": robust}


def record(
    seed: int, defense: str = "prune", success: float | None = 0.2, max_drop: float = 0.04, **changes: Any
) -> dict[str, Any]:
    steps = [
        {
            "channels_pruned": number,
            "pruned": 0 < number <= 2,
            "validation_accuracy": 0.9,
            **scores(0.9 - 0.1 * number, None if success is None else 1 - 0.2 * number),
        }
        for number in range(5)
    ]
    values: dict[str, Any] = {
        "schema": 1,
        "status": "finished",
        "dataset": "digits",
        "model": "digits_cnn",
        "attack": "badnet",
        "defense": defense,
        "seed": seed,
        "dead": False,
        "oracle": False,
        "scores": {
            "suspect": scores(0.95, None if success is None else 1.0),
            "defended": scores(0.9 + seed / 100, success),
        },
        "pruning": steps if "prune" in defense else [],
        "config": {"seed": seed, "defense": {"max_drop": max_drop, "name": defense}},
    }
    return values | changes


def write(directory: Path, *runs: dict[str, Any]) -> Path:
    for number, run in enumerate(runs):
        (directory / str(number)).mkdir(parents=True)
        (directory / str(number) / "record.json").write_text(json.dumps(run))
    return directory


def test_one_command_writes_pictures_their_data_and_tables(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    runs = write(tmp_path / "runs", *(record(seed) for seed in (1, 2, 3)), record(1, "none", 1.0))
    figures.main(str(runs), "--output", str(tmp_path / "out"))
    stems = {"curves_digits": ("png", "svg", "csv"), "matrix_digits": ("png", "svg", "csv")}
    stems |= {"results": ("csv", "md", "tex")}
    expected = {f"{stem}.{kind}" for stem, kinds in stems.items() for kind in kinds}
    assert {path.name for path in (tmp_path / "out").iterdir()} == expected
    assert {Path(line).name for line in capsys.readouterr().out.split()} == expected
    for stem in ("curves_digits", "matrix_digits"):
        with Image.open(tmp_path / "out" / f"{stem}.png") as picture:
            assert min(picture.size) > 300
            assert len(picture.convert("RGB").getcolors(1 << 24) or []) > 20
    lines = list(csv.DictReader((tmp_path / "out" / "curves_digits.csv").open()))
    assert [float(line["clean_accuracy_mean"]) for line in lines] == pytest.approx([0.9, 0.8, 0.7, 0.6, 0.5])
    assert {line["seeds"] for line in lines} == {"1 2 3"}


def test_equal_records_give_equal_files(tmp_path: Path) -> None:
    table = rows([record(1), record(2)])
    first, second = (
        {path.name: path.read_bytes() for path in figures.write_all(table, tmp_path / name)}
        for name in ("a", "b")
    )
    assert first == second


def test_the_csv_holds_mean_interval_and_range() -> None:
    (line,) = csv.DictReader(results_csv(rows([record(seed) for seed in (1, 2, 3)])).splitlines())
    # 0.91, 0.92, 0.93: mean 0.92, standard deviation 0.01, t = 4.3027
    half = 4.3027 * 0.01 / math.sqrt(3)
    values = [
        float(line[f"defended_clean_accuracy_{part}"]) for part in ("mean", "low", "high", "least", "most")
    ]
    assert values == pytest.approx([0.92, 0.92 - half, 0.92 + half, 0.91, 0.93])
    assert float(line["clean_accuracy_drop_mean"]) == pytest.approx(0.03)
    assert float(line["attack_reduction_mean"]) == pytest.approx(0.8)


def test_both_tables_show_mean_and_interval_in_percent() -> None:
    table = rows([record(seed) for seed in (1, 2, 3)])
    assert "| 92.0 ± 2.5 |" in markdown(table)
    assert r"& $92.0 \pm 2.5$ &" in latex(table)
    assert "| digits | badnet | prune | 3 |" in markdown(table)
    single = markdown(rows([record(1)]))
    assert "| 91.0 |" in single
    assert "±" not in single


def test_what_latex_would_read_as_a_command_is_escaped() -> None:
    text = latex(rows([record(1, attack=r"a_b&c%$#{d}\input~^")]))
    assert r"a\_b\&c\%\$\#\{d\}\textbackslash{}input\textasciitilde{}\textasciicircum{}" in text


def test_the_best_defense_is_bold_and_oracles_and_dead_attacks_are_not_ranked() -> None:
    dear = {"suspect": scores(0.95, 1.0), "defended": scores(0.9, 0.0)}
    free = {"suspect": scores(0.95, 1.0), "defended": scores(0.941, 0.1)}
    runs = [
        record(1, "none", 1.0),
        record(1, "weak", scores=free | {"defended": scores(0.95, 0.5)}),
        record(1, "good", scores=free),
        record(1, "dear", scores=dear),
        record(1, "oracle", scores=free, oracle=True),
        record(1, "lucky", scores=free, dead=True),
    ]
    table = rows(runs)
    assert [table[place].defense for place in winners(table)] == ["good"]
    bold = [line for line in markdown(table).splitlines() if "**" in line]
    assert [line.split("|")[3].strip() for line in bold] == ["good"]
    assert "| attack dead in 1 of 1 seeds |" in markdown(table)
    assert "| oracle |" in markdown(table)
    assert latex(table).count(r"\textbf") == 1


def test_settings_that_differ_are_told_apart_by_what_differs() -> None:
    table = rows([record(1, max_drop=0.02), record(1, max_drop=0.1), record(1, "none")])
    assert [row.defense for row in table] == ["none", "prune max_drop=0.02", "prune max_drop=0.1"]


def test_what_repeats_an_earlier_key_is_not_said_again_and_like_names_stay_apart() -> None:
    def set_to(first: float, second: float) -> dict[str, Any]:
        defense = {"name": "prune", "max_drop": first, "callbacks": {"prune": {"max_drop": first}}}
        config = {"seed": 1, "defense": defense | {"audit": {"max_drop": second}}}
        return record(1, config=config)

    names = [row.defense for row in rows([set_to(0.02, 1), set_to(0.1, 1), set_to(0.1, 2)])]
    assert len(set(names)) == 3
    assert sorted(names)[0] == "prune max_drop=0.02 defense.audit.max_drop=1"


def test_networks_and_attacks_that_differ_do_not_compete() -> None:
    def run(defense: str, width: int, rate: float, success: float) -> dict[str, Any]:
        made = record(1, defense, success)
        made["config"] |= {"model": {"width": width}, "attack": {"poison_rate": rate}}
        made["scores"]["defended"]["clean_accuracy"] = 0.945
        return made

    table = rows(
        [
            *(run("none", width, 0.1, 1.0) for width in (16, 32)),
            *(run("prune", width, 0.1, 0.5) for width in (16, 32)),
            run("none", 16, 0.01, 1.0),
            run("prune", 16, 0.01, 0.2),
            run("fineprune", 16, 0.1, 0.3),
        ]
    )
    assert {(row.attack, row.defense) for row in (table[place] for place in winners(table))} == {
        ("badnet poison_rate=0.01 width=16", "prune"),
        ("badnet poison_rate=0.1 width=16", "fineprune"),
        ("badnet poison_rate=0.1 width=32", "prune"),
    }


def test_a_curve_that_two_defenses_share_is_drawn_once(tmp_path: Path) -> None:
    table = rows([record(1, "prune"), record(1, "fineprune")])
    figures.write_all(table, tmp_path)
    lines = list(csv.DictReader((tmp_path / "curves_digits.csv").open()))
    assert {line["defense"] for line in lines} == {"prune"}


def test_several_data_sets_have_a_figure_together_with_a_column_each(tmp_path: Path) -> None:
    runs = [record(1), record(1, attack="blended"), *(record(1, dataset=name) for name in ("mnist", "gtsrb"))]
    figures.write_all(rows(runs), tmp_path)
    lines = list(csv.DictReader((tmp_path / "curves.csv").open()))
    assert {(line["dataset"], line["attack"]) for line in lines} == {
        ("digits", "badnet"), ("digits", "blended"), ("mnist", "badnet"), ("gtsrb", "badnet")
    }  # fmt: skip
    drawn = (tmp_path / "curves.svg").read_text()
    assert all(f"<!-- {name}: badnet -->" in drawn for name in ("digits", "mnist", "gtsrb"))
    with Image.open(tmp_path / "curves.png") as whole, Image.open(tmp_path / "curves_mnist.png") as one:
        assert whole.width > 2 * one.width
        assert whole.height > 1.5 * one.height


def test_a_dead_seed_and_a_missing_attack_can_be_drawn(tmp_path: Path) -> None:
    runs = [record(1), record(2, dead=True), record(1, attack="none", success=None)]
    written = figures.write_all(rows(runs), tmp_path)
    assert {"curves_digits.png", "matrix_digits.svg"} <= {path.name for path in written}


def test_a_name_cannot_leave_the_folder(tmp_path: Path) -> None:
    written = figures.write_all(rows([record(1, dataset="../<b>$x$")]), tmp_path / "out")
    assert {path.parent for path in written} == {tmp_path / "out"}
    assert all(path.exists() for path in written)


def test_damaged_records_are_named_and_skipped(tmp_path: Path) -> None:
    runs = write(tmp_path / "runs", record(1), record(2, status="failed", error="x"))
    (runs / "broken").mkdir()
    (runs / "broken" / "record.json").write_text("{")
    found, problems = records.read_all([runs])
    assert len(found) == 2
    assert [str(runs / "broken") in problem for problem in problems] == [True]
    assert rows(found)[0].group.seeds == [1]


def test_a_folder_without_runs_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match="No finished run among"):
        figures.main(str(tmp_path))
