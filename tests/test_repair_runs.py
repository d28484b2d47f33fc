"""Inspection, unlearning, ladder and audit as runs, and a planted backdoor that they find and remove."""

import logging
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from PIL import Image
from sklearn.datasets import load_digits

from finepruning.data import Roles
from finepruning.modules import UnlearnedClassifier
from finepruning.pipeline import Refused
from finepruning.pipeline.build import build_parts
from finepruning.pipeline.defenses import fold_rows
from finepruning.store import WEIGHTS
from tests.conftest import composed

RunHere = Callable[..., dict[str, Any]]
LEARNED = ("trainer.max_epochs=8", "model.width=8", "defender.fraction=0.4", "trainer.precision=32-true")
FAST = ("defense.inspection.search.steps=40", "defense.inspection.search.images=4")
UNLEARN = ("defense.tuning.max_epochs=2", "defense.tuning.batch_size=32", "defense.tuning.min_steps=0")
VERDICTS = ("no evidence of a backdoor left under these tests", "evidence remains")


def test_unlearning_varies_images_as_the_data_set_says(tmp_path: Path) -> None:
    assert composed("dataset=gtsrb", "defense=auto").defense.tuning.augment == {"shift": 2, "gain": 0.8}
    places = (f"store_dir={tmp_path}", "name=a", "group=b")
    plain, varied = (
        build_parts(composed("defense=unlearn", *places, *more)).defense
        for more in (
            (),
            ("+repair={augment: {shift: 1}}", "+training.augment={_target_: finepruning.data.Augment}"),
        )
    )
    assert plain is not None
    assert plain.data.augment is None
    assert varied is not None
    assert [step.rows for step in varied.data.augment] == [0, 1]  # the data set's own, then this


def test_a_rung_is_judged_by_pictures_unlike_those_that_it_tuned_on() -> None:
    tracks = torch.arange(1000) // 2  # rows 0 and 1 are alike, 2 and 3, ...
    roles = Roles(torch.arange(600, 1000), torch.arange(1, 600, 3), torch.arange(0, 600, 3))
    packed = SimpleNamespace(
        train_labels=torch.arange(1000) // 20 % 5, train_tracks=tracks, train_groups=None
    )
    folds = fold_rows(roles, packed, 3, seed=1)
    held = torch.cat([judging for _, judging in folds])
    assert held.sort().values.tolist() == sorted(roles.tuning.tolist() + roles.validation.tolist())
    for tuned, judging in folds:
        assert len(tuned) + len(judging) == 400
        assert not set((tuned // 2).tolist()) & set((judging // 2).tolist())
    assert fold_rows(roles, packed, 1, seed=1) == [(roles.tuning, roles.validation)]


def test_no_rung_is_tuned_on_the_fold_that_judges_it(tmp_path: Path) -> None:
    ladder = "defense.ladder=[{weight: 0.1}, {tuner: finetune}]"
    places = (f"store_dir={tmp_path}", "name=a", "group=b")
    defense = build_parts(composed("defense=auto", "dataset.size=16", ladder, *places)).defense
    assert defense is not None
    held = {row for fold in defense.folds for row in fold.images.index.tolist()}
    assert len(held) == 136
    for rung in defense.ladder:
        for tuning, fold in zip(rung.tunings, defense.folds, strict=True):
            judging = set(fold.images.index.tolist())
            assert set(tuning.data.training.index.tolist()) == held - judging


def test_without_folds_the_images_to_validate_with_decide(quick_run: RunHere) -> None:
    options = ("defense=auto", *FAST, *UNLEARN, "defense.ladder=[{weight: 0.1}]", "defense.max_drop=1")
    (folded,) = quick_run(*options)["ladder"]["rungs"]
    (plain,) = quick_run(*options, "defense.folds=1")["ladder"]["rungs"]
    assert (folded["total"], plain["total"]) == (136, 66)


def test_auto_finds_the_target_and_removes_the_backdoor(
    quick_run: RunHere, shared_store: Path, tmp_path: Path
) -> None:
    record = quick_run(
        *LEARNED,
        "defense=auto",
        "defense.inspection.search.steps=120",
        "defense.tuning.batch_size=32",
        "defense.tuning.max_epochs=10",
        "defense.tuning.min_steps=0",
        "defense.max_drop=0.05",
        "defense.ladder=[{weight: 0.15, learning_rate: 0.02}]",
    )
    suspect, defended = (record["scores"][name] for name in ("suspect", "defended"))
    first = [found["ranking"][0]["target"] for found in record["inspection"]["rankings"].values()]
    assert 0 in first
    assert 0 in record["inspection"]["suspicious"]
    assert suspect["attack_success_rate"] > 0.9
    assert defended["attack_success_rate"] < 0.1
    assert defended["clean_accuracy"] > suspect["clean_accuracy"] - 0.05
    assert record["ladder"]["kept"] == 0
    assert record["audit"]["verdict"] == VERDICTS[record["audit"]["evidence"]]
    (report,) = (tmp_path / "runs").glob("*/report")
    assert (report / "REPORT.md").read_text().count("![") > 5
    assert len(list(report.glob("*.png"))) >= 15
    kept = shared_store / record["stages"]["defended"]
    assert sorted(path.name for path in kept.rglob("*")) == ["about.json", WEIGHTS]


def test_inspect_changes_nothing(quick_run: RunHere) -> None:
    record = quick_run("defense=inspect", *FAST)
    assert record["scores"]["defended"] == record["scores"]["suspect"]
    assert "defended" not in record["stages"]
    assert len(record["inspection"]["rankings"]["mask"]["ranking"]) == 10


def test_a_defender_who_knows_the_target_names_it_and_it_is_unlearned(
    quick_run: RunHere, monkeypatch: pytest.MonkeyPatch
) -> None:
    aimed: list[list[int]] = []
    aim_at = UnlearnedClassifier.aim_at

    def aim(module: UnlearnedClassifier, classes: list[int], *rest: Any) -> None:
        aimed.append(list(classes))
        aim_at(module, classes, *rest)

    monkeypatch.setattr(UnlearnedClassifier, "aim_at", aim)
    named = "defense.inspection.suspicious=[7]"
    record = quick_run("defense=unlearn", *FAST, *UNLEARN, named)
    assert record["inspection"]["suspicious"] == [7]
    assert aimed == [[7]]
    rung = ("defense.ladder=[{weight: 0.1}]", "defense.max_drop=1")
    quick_run("defense=auto", *FAST, *UNLEARN, named, *rung)
    assert aimed == [[7]] * 5  # the defense's own, and that of each fold
    with pytest.raises(Refused, match=r"Class 10 is named as suspicious, but classes go from 0 to 9\."):
        quick_run("defense=inspect", *FAST, "defense.inspection.suspicious=[10]")


@pytest.mark.slow
def test_a_class_without_an_image_is_inspected_all_the_same(
    quick_run: RunHere, shared_store: Path, tmp_path: Path
) -> None:
    suspect = quick_run(*LEARNED, "defense=none")["stages"]["suspect"]
    small, labels = load_digits(return_X_y=True)
    for label in range(10):
        (tmp_path / "digits" / str(label)).mkdir(parents=True)
    for row, label in enumerate(labels[:600]):
        if label != 3:
            picture = Image.fromarray((small[row].reshape(8, 8) * 255 / 16).astype("uint8"))
            picture.save(tmp_path / "digits" / str(label) / f"{row}.png")
    record = quick_run(
        *("attack=suspect", f"suspect.weights={shared_store / suspect / WEIGHTS}", "model=digits_cnn"),
        *("dataset=folder", f"dataset.root={tmp_path / 'digits'}", "dataset.size=[16,16]"),
        *("dataset.channels=1", "dataset.on_empty=keep", "model.width=8", "defense=auto", *FAST, *UNLEARN),
        *("defense.ladder=[{weight: 0.1}]", "defense.max_drop=1"),
    )
    assert "There is no clean image to tune on of 1 classes ('3')." in record["inspection"]["remarks"][0]
    assert len(record["inspection"]["rankings"]["mask"]["ranking"]) == 10
    assert record["ladder"]["kept"] == 0


def test_defenses_share_one_inspection_and_a_second_run_is_the_same(quick_run: RunHere) -> None:
    first = quick_run("defense=inspect", *FAST)
    second = quick_run("defense=unlearn", *FAST, *UNLEARN)
    again = quick_run("defense=unlearn", *FAST, *UNLEARN, "overwrite=true")
    assert first["stages"]["inspected"] == second["stages"]["inspected"]
    assert second["inspection"] == again["inspection"] == first["inspection"]
    assert second["scores"] == again["scores"]


@pytest.mark.slow
def test_the_same_seed_gives_the_same_repair_from_a_fresh_store(quick_run: RunHere, tmp_path: Path) -> None:
    options = ("defense=auto", *FAST, *UNLEARN, "defense.ladder=[{weight: 0.1}]", "defense.max_drop=1")
    first = quick_run(*options)
    again = quick_run(*options, f"store_dir={tmp_path / 'fresh'}", "overwrite=true")
    for key in ("inspection", "ladder", "audit", "scores"):
        assert first[key] == again[key]


def test_channels_that_were_pruned_stay_silent_while_unlearning(quick_run: RunHere, tmp_path: Path) -> None:
    from safetensors.torch import load_file

    store = tmp_path / "own"
    options = ("defense=prune_unlearn", "defense.max_drop=null", "defense.prune_count=5")
    record = quick_run(*options, *FAST, *UNLEARN, f"store_dir={store}")
    state = load_file(store / record["stages"]["defended"] / "network.safetensors")
    (mask,) = (tensor for name, tensor in state.items() if name.endswith(".channel_mask"))
    assert int((mask == 0).sum()) == 5
    assert sum(step["pruned"] for step in record["pruning"]) == 5


def test_a_ladder_holds_any_tuner_and_may_prune_first(quick_run: RunHere) -> None:
    rungs = "[{tuner: finetune, max_epochs: 1}, {weight: 0.1, prune: 0.02}]"
    record = quick_run("defense=auto", *FAST, *UNLEARN, f"defense.ladder={rungs}", "defense.max_drop=1")
    walked = record["ladder"]["rungs"]
    assert [rung["options"].get("tuner") for rung in walked] == ["finetune", None]
    assert record["ladder"]["kept"] == 1


def test_a_rung_may_change_what_its_defense_prunes_by(tmp_path: Path) -> None:
    ladder = "defense.ladder=[{tuner: clp, u: 2.0}, {tuner: clp}]"
    defense = build_parts(
        composed("defense=auto", ladder, f"store_dir={tmp_path}", "name=a", "group=b")
    ).defense
    assert defense is not None
    assert [[tuning.callbacks[0].u for tuning in rung.tunings] for rung in defense.ladder] == [
        [2.0] * 3,
        [3.0] * 3,
    ]


def test_the_gentlest_unlearning_has_half_the_rate_and_prunes_where_no_class_is_clear() -> None:
    for more, rate in (([], 0.01), (["dataset=gtsrb"], 0.02), (["defense.tuning.learning_rate=0.2"], 0.2)):
        ladder = composed("defense=auto", *more).defense.ladder
        unclear, clear = (
            [rung for rung in ladder if rung.get("when") == when] for when in ("unclear", "clear")
        )
        assert unclear[0] == {"when": "unclear", "tuner": "finetune", "prune": 0.04}
        assert [rung.prune for rung in [*unclear, *ladder[-2:]]] == [0.04, 0.01, 0.01, 0.01, 0.04, 0.04]
        assert not any("prune" in rung for rung in clear)
        for first in (*unclear[1:3], clear[0]):
            assert first.learning_rate == pytest.approx(rate / 2)
        assert not any("learning_rate" in rung for rung in ladder[-2:])


def test_a_rung_is_walked_where_it_is_meant_for(quick_run: RunHere) -> None:
    ladder = "defense.ladder=[{when: unclear, weight: 0.1}, {when: clear, weight: 0.2}]"
    options = ("defense=auto", *FAST, *UNLEARN, "defense.max_drop=1")
    named, level = (f"defense.inspection.{what}" for what in ("suspicious=[7,3]", "outlier=0.0001"))
    for what, weight in ((named, 0.2), (level, 0.1)):
        walked = quick_run(*options, ladder, what)["ladder"]["rungs"]
        assert [rung["options"] for rung in walked] == [{"weight": weight}]
    none = quick_run(*options, "defense.ladder=[{when: unclear, weight: 0.1}]", named)
    assert none["scores"]["defended"] == none["scores"]["suspect"]
    assert "No rung of defense.ladder is for an inspection that is clear." in none["ladder"]["reason"]
    with pytest.raises(Refused, match=r"when=often of a rung is unknown. Choose clear"):
        quick_run(*options, "defense.ladder=[{when: often, weight: 0.1}]")


def test_a_rung_that_diverges_is_undone_and_the_ones_before_count(quick_run: RunHere) -> None:
    ladder = "defense.ladder=[{weight: 0.05}, {weight: 0.05, learning_rate: 1.0e30}, {weight: 0.1}]"
    record = quick_run("defense=auto", *FAST, *UNLEARN, ladder, "defense.max_drop=1")
    assert (len(record["ladder"]["rungs"]), record["ladder"]["kept"]) == (1, 0)
    assert "Rung 2 is undone: The loss became" in record["ladder"]["reason"]


def test_a_walk_that_stops_early_audits_each_rung(quick_run: RunHere) -> None:
    rungs = "[{weight: 0.1}, {weight: 0.2}]"
    options = ("defense.stop_early=true", "defense.max_drop=1", f"defense.ladder={rungs}")
    record = quick_run("defense=auto", *FAST, *UNLEARN, *options)
    walked = record["ladder"]["rungs"]
    assert all(rung["audit"]["verdict"] in VERDICTS for rung in walked)
    assert [rung["audit"]["evidence"] for rung in walked[:-1]] == [True] * (len(walked) - 1)


def test_with_a_budget_of_0_the_suspect_may_stay_and_the_record_says_why(
    quick_run: RunHere, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    options = ("defense.ladder=[{weight: 5.0, learning_rate: 2.0}]", "defense.max_drop=0")
    with caplog.at_level(logging.WARNING):
        record = quick_run("defense=auto", *FAST, *UNLEARN, *options, "export.onnx=true")
    assert "Nothing was repaired, so that there is no" in caplog.text
    assert not list(tmp_path.rglob("network.safetensors"))
    assert record["ladder"]["kept"] is None
    assert "No rung stays inside a budget of 0" in record["ladder"]["reason"]
    assert record["scores"]["defended"] == record["scores"]["suspect"]


def test_fewer_images_than_a_batch_are_said(quick_run: RunHere, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        quick_run("defense=unlearn", *FAST, "defense.tuning.max_epochs=1", "defense.tuning.min_steps=0")
    assert "70 images to tune on, fewer than defense.tuning.batch_size=128" in caplog.text


def test_a_sample_of_classes_is_named(quick_run: RunHere) -> None:
    record = quick_run("defense=inspect", *FAST, "defense.inspection.classes=3")
    assert len(record["inspection"]["rankings"]["mask"]["ranking"]) == 3
    assert record["inspection"]["remarks"][0].startswith("Only 3 of 10 classes were inspected: '")


def test_a_network_near_chance_is_refused(quick_run: RunHere, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("finepruning.pipeline.inspector.correct", lambda *_: torch.arange(67) < 7)
    with pytest.raises(Refused, match=r"7 of 67 .*near chance \(10\.0%\).*scaled wrongly.*another order"):
        quick_run("defense=inspect", *FAST, "defense.inspection.search.seed=5")
