"""The audit at work on a network whose search breaks, and on triggers beyond the suspicious ones."""

import math
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from finepruning.data.images import ImageSet, Pixels
from finepruning.metrics import Rate
from finepruning.pipeline.inspector import TRIGGERS, Inspector
from finepruning.record import STANDS_OUT
from finepruning.repair import Inspection, Rankings, rankings_record, save_triggers
from tests.test_inversion import NAMES, BreaksTowardOne, ByMeans, grey_images, rankings

LIMIT = 0.2  # success of an old trigger from which it is evidence


def inspector(**options: Any) -> Inspector:
    images, labels = grey_images()
    labels[0] = 1  # the network says 0 of all
    held = ImageSet.whole((255 * images).round().to(torch.uint8), labels, Pixels())
    data: Any = SimpleNamespace(training=held, validation=[held])
    return Inspector(Inspection(**options), data, NAMES, "cpu")


def inspected(
    found: Rankings, suspicious: list[int], directory: Path, said: str = "nothing stands out"
) -> Any:
    save_triggers(found, directory / TRIGGERS, 8, suspicious)
    record = rankings_record(found, {family: [Rate(0, 0)] * len(found[family]) for family in found})
    return SimpleNamespace(
        directory=directory, about={"result": {"suspicious": suspicious, "rankings": record, "verdict": said}}
    )


def test_a_search_that_breaks_is_told_and_no_audit_passes_by_it(tmp_path: Path) -> None:
    ours = inspector(search={"steps": 60, "images": 4}, outlier=0.01)
    found = ours.inspect(BreaksTowardOne(), tmp_path)
    broken = "search for what sends images to 'one' met values that are not numbers; it was set aside"
    assert found["reasons"] == [
        "No class's smallest trigger stands out from the others of those that could be searched."
    ]
    assert broken in " ".join(found["remarks"])
    level = inspected(rankings(2.0, 2.5, 3.0), [0], tmp_path)
    said = ours.audit(BreaksTowardOne(), level, LIMIT)
    assert said["verdict"] == "evidence remains"
    assert all("met values that are not numbers" in reason for reason in said["reasons"])
    assert not ours.audit(ByMeans(), level, LIMIT)["evidence"]


def test_every_trigger_that_stood_out_is_put_on_again(tmp_path: Path) -> None:
    ours = inspector(search={"steps": 2, "images": 4}, suspicious=1)
    found = rankings(0.1, 0.2, 9.0)
    found = {family: [*ranking, *rankings(9.0, 9.0, 9.0)[family]] for family, ranking in found.items()}
    assert ours.inspection.suspects(found) == [0]
    audit = ours.audit(ByMeans(), inspected(found, [0], tmp_path), LIMIT)
    applied = {(old["family"], old["target"]) for old in audit["old_triggers"] if old["counts"]}
    assert applied == {("additive", 0), ("additive", 1), ("mask", 0), ("mask", 1)}
    assert torch.tensor([old["success"] for old in audit["old_triggers"]]).isfinite().all()


def test_an_inspection_keeps_every_trigger_that_stands_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ours = inspector(search={"steps": 2, "images": 4}, suspicious=1)
    small = [trigger for _ in range(4) for trigger in rankings(0.1, 0.2, 0.3)["additive"]]
    many = [replace(trigger, target=place) for place, trigger in enumerate(small)]
    large = [replace(trigger, target=12 + place, norm=9.0) for place, trigger in enumerate(small + small)]
    found = {"additive": many + large, "mask": []}
    monkeypatch.setattr(Inspector, "_rank", lambda *_: (found, {}))
    monkeypatch.setattr(Inspector, "_remarks", lambda *_: [])
    monkeypatch.setattr("finepruning.pipeline.inspector.check_accuracy", lambda *_: None)
    monkeypatch.setattr("finepruning.pipeline.inspector.failures", lambda *_: [])
    monkeypatch.setattr(Inspection, "evidence", lambda *_: ["something"])
    ours.inspect(ByMeans(), tmp_path)
    kept = {int(name.split(".")[2]) for name in load_file(tmp_path / TRIGGERS)}
    assert kept == set(range(12))  # though one is suspicious, and the first eight are kept in any case


def test_a_trigger_that_was_not_found_is_not_put_on_again(tmp_path: Path) -> None:
    ours = inspector(search={"steps": 2, "images": 4}, suspicious=[0])
    before = inspected(rankings(math.inf, 2.0, 3.0), [0], tmp_path)
    assert ours.audit(ByMeans(), before, LIMIT)["old_triggers"] == []


def test_a_search_that_finds_no_trigger_is_no_all_clear(tmp_path: Path) -> None:
    ours = inspector(search={"steps": 1, "images": 4})
    found = ours.inspect(ByMeans(), tmp_path)
    assert found["verdict"] == "no trigger was found"
    assert found["reasons"][0].startswith("No trigger to any class was found, so that this says nothing")
    blind = inspected(rankings(math.inf, math.inf, math.inf), [], tmp_path, found["verdict"])
    level = inspected(rankings(2.0, 2.5, 3.0), [], tmp_path)
    thorough = inspector(search={"steps": 60, "images": 4})
    for search, before, where in ((thorough, blind, "suspect"), (ours, level, "repaired network")):
        said = search.audit(ByMeans(), before, LIMIT)
        assert said["verdict"] == "evidence remains"
        (reason,) = said["reasons"]
        assert reason.startswith(f"No trigger to any class was found in the {where}, so that its inspection")
        assert "Raise defense.inspection.search.steps" in reason


def test_success_of_every_class_is_in_the_record_that_of_the_last_on_fewer_images(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("finepruning.pipeline.inspector.KEPT", 1)
    monkeypatch.setattr("finepruning.pipeline.inspector.FEW", 3)

    def one_of_all(network: Any, triggers: list[Any], batches: Any) -> list[Rate]:
        return [Rate(1, sum(len(labels) for _, labels in batches))] * len(triggers)

    monkeypatch.setattr("finepruning.pipeline.inspector.success", one_of_all)
    found = inspector(search={"steps": 2, "images": 4}).inspect(ByMeans(), tmp_path)
    for family, count in (("additive", 4), ("mask", 3)):
        rows = found["rankings"][family]["ranking"]
        assert [row["success"] for row in rows] == [1 / 12, *[1 / 3] * (count - 1)]


def test_what_stands_out_is_said_in_the_word_that_tables_count(tmp_path: Path) -> None:
    ours = inspector(search={"steps": 60, "images": 4}, outlier=0.999)
    assert ours.inspect(ByMeans(), tmp_path)["verdict"] == STANDS_OUT


def test_a_class_that_stands_out_is_told_though_another_is_named(tmp_path: Path) -> None:
    ours = inspector(suspicious=[2])
    remarks = " ".join(ours._remarks(rankings(0.1, 9.0, 9.0), [2]))
    assert "'zero' stands out, too, and is not among the suspicious classes" in remarks
