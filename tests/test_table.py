"""The table of runs says what a reader must know to believe it."""

from io import StringIO
from typing import Any

from rich.console import Console
from rich.table import Table

from finepruning.dashboard import comparison
from finepruning.dashboard.table import layers_table, stress_table, varying


def printed(table: Table) -> str:
    screen = StringIO()
    Console(file=screen, width=200, force_terminal=False, color_system=None).print(table)
    return screen.getvalue()


def shown(**changes: Any) -> str:
    scores: dict[str, Any] = {
        "clean_accuracy": 0.991,
        "attack_success_rate": 0.4,
        "robust_accuracy": 0.5,
        "intervals": {
            name: [0.3, 0.995] for name in ("clean_accuracy", "attack_success_rate", "robust_accuracy")
        },
    }
    record: dict[str, Any] = {
        "status": "finished",
        "dataset": "digits",
        "attack": "badnet",
        "defense": "prune",
        "seed": 1,
        "config": {},
        "scores": {"suspect": scores, "defended": scores},
        "pruning": [{"pruned": number == 1} for number in range(3)],
        "dead": False,
    }
    if "goodnet" in changes:
        record["scores"]["goodnet"] = scores | changes.pop("goodnet")
    return printed(comparison([record | changes]))


def test_scores_are_shown_in_percent_with_their_interval() -> None:
    assert "99.1 [30.0, 99.5]" in shown()


def test_pruned_channels_are_counted() -> None:
    assert "1/2" in shown()
    assert " 17 │" in shown(pruning=[], pruned={"conv": list(range(17))})


def test_a_dead_attack_is_said_to_be_dead() -> None:
    assert "dead attack: not ranked" in shown(dead=True)
    assert "dead" not in shown()


def test_a_failed_run_shows_why() -> None:
    assert "failed: the loss became nan" in shown(status="failed", error="the loss became nan")


def test_a_name_with_markup_is_shown_as_it_is() -> None:
    assert "[bold]x[/bold]" in shown(dataset="[bold]x[/bold]")


def test_an_oracle_is_badged() -> None:
    assert "oracle: not ranked" in shown(oracle=True)
    assert "oracle" not in shown(oracle=False)


def test_a_goodnet_has_a_row_of_its_own_with_what_it_rejects() -> None:
    whole = {"clean_accuracy": [0.0, 1.0], "attack_success_rate": [0.0, 1.0]}
    scores = {"clean_accuracy": 0.123, "attack_success_rate": 0.045, "intervals": whole}
    rows = shown(goodnet=scores | {"clean_rejected": 0.2, "triggered_rejected": 0.25}).splitlines()
    row = next(line for line in rows if "+ GoodNet" in line)
    assert "12.3 [0.0, 100.0]" in row
    assert "4.5 [0.0, 100.0]" in row
    assert "rejects 20.0 of clean, 25.0 of triggered" in row
    unknown = shown(goodnet=scores | {"clean_rejected": 0.2, "triggered_rejected": None})
    assert "rejects 20.0 of clean" in unknown
    assert "triggered" not in unknown


def test_runs_that_only_a_value_tells_apart_show_it() -> None:
    def record(defense: str, seed: int, rate: float, epochs: int) -> dict[str, Any]:
        tuning = {"tuning": {"learning_rate": rate, "max_epochs": epochs, "seed": seed}, "copy": rate}
        config = {"trainer": {"max_epochs": epochs}, "defense": tuning, "name": f"{rate}-{epochs}"}
        names = {"dataset": "digits", "attack": "badnet", "defense": defense, "seed": seed}
        return names | {"config": config}

    assert (
        varying([record("prune", 1, 0.1, 2), record("finetune", 1, 0.2, 3), record("prune", 2, 0.3, 4)]) == {}
    )
    assert varying([record("prune", 1, 0.1, 2), record("prune", 1, 0.2, 3)]) == {
        "max_epochs": ["2", "3"],
        "learning_rate": ["0.1", "0.2"],
    }


def plain_scores(clean: float | None, success: float | None) -> dict[str, Any]:
    return {"clean_accuracy": clean, "attack_success_rate": success}


def cells(table: str, first: str) -> list[str]:
    line = next(line for line in table.splitlines() if line.strip("│ ").startswith(first))
    return [cell.strip() for cell in line.strip("│").split("│")]


def test_a_table_of_stress_has_success_and_accuracy_of_each_network() -> None:
    networks = {
        "suspect": {"before": plain_scores(0.98, 1.0), "retuned": plain_scores(0.97, 0.995)},
        "clean": {"before": plain_scores(0.99, 0.002), "retuned": plain_scores(0.985, None)},
    }
    text = printed(stress_table({"name": "a-run", "stress": {"networks": networks}}))
    assert "a-run: attack success (clean accuracy) under stress" in " ".join(text.split())
    assert cells(text, "suspect") == ["suspect", "100.0 (98.0)", "99.5 (97.0)"]
    assert cells(text, "clean") == ["clean", "0.2 (99.0)", "- (98.5)"]


def test_a_table_of_layers_begins_with_the_network_as_it_is() -> None:
    row = {"layer": "conv[1]", "prunable": 3, "channels": 8, "validation_accuracy": 0.95}
    record = {
        "name": "a-run",
        "config": {"analysis": {"max_drop": 0.04}},
        "scores": {"suspect": plain_scores(0.98, 1.0)},
        "layers": [row | plain_scores(0.9, 0.5)],
    }
    text = printed(layers_table(record))
    assert "pruned alone, by at most 4 % of validation accuracy" in " ".join(text.split())
    assert cells(text, "(none)") == ["(none)", "", "", "98.0", "100.0"]
    assert cells(text, "conv[1]") == ["conv[1]", "3/8", "95.0", "90.0", "50.0"]
