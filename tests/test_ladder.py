"""Ladder, audit and the page about them, without Lightning."""

import pytest
import torch
from torch import nn

from finepruning.metrics import Rate
from finepruning.repair import (
    PairedLoss,
    average,
    check_accuracy,
    check_max_drop,
    check_max_success,
    climb,
    cross_validated_loss,
    missing_classes,
    paired_loss,
    rankings_record,
    verdict,
    why_none,
)
from finepruning.repair.inversion import UNTARGETED
from finepruning.repair.report import page, picture, write_pictures
from tests.test_inversion import NAMES, rankings, trigger


def test_a_paired_loss_counts_only_images_on_which_the_networks_differ() -> None:
    before = torch.tensor([True] * 90 + [False] * 10)
    after = torch.tensor([True] * 85 + [False] * 13 + [True] * 2)
    loss = paired_loss(before, after)
    assert loss == PairedLoss(5, 2, 100)
    assert loss.value == pytest.approx(0.03)
    # (3 +- 1.96 sqrt(5 + 2 + 1 - 9 / 102)) / 102
    assert loss.interval == pytest.approx((-0.02465, 0.08347), abs=1e-4)
    assert loss.inside(0.03)
    assert not loss.inside(0.029)


def test_a_cross_validated_loss_counts_what_each_network_was_not_tuned_on() -> None:
    before = torch.ones(6, dtype=torch.bool)
    fold = torch.tensor([0, 0, 0, 1, 1, 1])
    after = torch.ones(2, 6, dtype=torch.bool)
    after[0, :2] = False  # two of three that it was not tuned on
    after[1, 2] = False  # one that it was tuned on
    loss = cross_validated_loss(before, after, before, fold, torch.arange(6))
    assert (loss.lost, loss.gained, loss.total) == (2, 0, 6)
    assert loss.shift == pytest.approx(-1.5)  # on all images the average loses 0, they (2 + 1) / 2
    assert loss.value == pytest.approx(0.5 / 6)
    # images 0 and 1: 1 - 1 / 2 each; image 2: 0 - 1 / 2
    assert loss.squares == pytest.approx(0.75)
    alike = cross_validated_loss(before, after, before, fold, torch.tensor([7, 7, 7, 1, 2, 3]))
    assert alike.squares == pytest.approx(0.25)  # together 1 / 2
    assert alike.value == loss.value


def test_a_loss_over_one_fold_is_the_paired_loss() -> None:
    before = torch.tensor([True] * 90 + [False] * 10)
    after = torch.tensor([True] * 85 + [False] * 13 + [True] * 2)
    fold = torch.zeros(100, dtype=torch.long)
    loss = cross_validated_loss(before, after[None], after, fold, torch.arange(100))
    plain = paired_loss(before, after)
    assert (loss.value, *loss.interval) == pytest.approx((plain.value, *plain.interval))
    assert loss.shift == 0


def test_the_average_of_networks_is_that_of_their_weights() -> None:
    networks = [nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2)) for _ in range(3)]
    networks[0][1].num_batches_tracked += 7
    mean = average([network.state_dict() for network in networks])
    assert torch.allclose(mean["0.weight"], sum(network[0].weight for network in networks) / 3)
    assert mean["0.weight"].dtype == torch.float32
    assert int(mean["1.num_batches_tracked"]) == 7
    masks = [{"0.channel_mask": torch.tensor(mask)} for mask in ([1.0, 0, 0], [1.0, 1, 0], [1.0, 1, 1])]
    assert average(masks)["0.channel_mask"].tolist() == [1, 1, 0]  # whole channels go or stay
    alone = average([networks[1].state_dict()])
    assert all(torch.equal(alone[name], tensor) for name, tensor in networks[1].state_dict().items())


def walk(lost: list[int], max_drop: float, enough: set[int] = frozenset()) -> tuple[list[int], int | None]:
    tried: list[int] = []

    def attempt(rung: int) -> PairedLoss:
        tried.append(rung)
        return PairedLoss(lost[rung], 0, 100)

    _, kept = climb(range(len(lost)), attempt, max_drop, enough.__contains__ if enough else None)
    return tried, kept


def test_the_rung_that_broke_the_limit_is_undone() -> None:
    assert walk([0, 1, 2, 0], 0.01) == ([0, 1, 2], 1)
    assert walk([0, 1, 1], 0.01) == ([0, 1, 2], 2)


def test_a_rung_that_costs_too_much_is_passed_over_while_none_may_stay() -> None:
    assert walk([2, 0, 1, 2, 0], 0.01) == ([0, 1, 2, 3], 2)
    assert walk([2, 0, 0], 0.01, {1}) == ([0, 1], 1)


def test_no_rung_stays_where_all_cost_too_much() -> None:
    assert walk([2, 3], 0.01) == ([0, 1], None)
    assert "loses 1 of the 100 images" in why_none([PairedLoss(2, 0, 100), PairedLoss(1, 0, 100)], 0.0)
    assert "a budget of 0: the cheapest loses 2 of the 100 images" in why_none([PairedLoss(2, 0, 100)], 0.0)
    assert "loses 12.4 of the 1960 images" in why_none([PairedLoss(15, 1, 1960, -1.62, 9.0)], 0.001)
    assert "max_drop=0.01: the cheapest loses 2 of the 100 images that decide. " in why_none(
        [PairedLoss(2, 0, 100)], 0.01
    )


def test_a_budget_of_0_keeps_a_rung_that_loses_nothing() -> None:
    assert walk([0, 1], 0.0) == ([0, 1], 0)


def test_the_walk_ends_early_where_a_rung_is_enough() -> None:
    assert walk([0, 0, 0], 0.01, {1}) == ([0, 1], 1)
    assert walk([0, 2, 0], 0.01, {1}) == ([0, 1], 0)


def test_a_rung_of_which_nothing_came_ends_the_walk() -> None:
    found = [PairedLoss(0, 0, 100), None, PairedLoss(0, 0, 100)]
    assert climb(range(3), found.__getitem__, 1.0) == ([found[0]], 0)
    assert climb(range(3), [None, *found].__getitem__, 1.0) == ([], None)


def test_limits_out_of_range_are_refused() -> None:
    with pytest.raises(ValueError, match=r"max_drop=1\.5 is outside \[0, 1\]"):
        check_max_drop(1.5)
    with pytest.raises(ValueError, match=r"max_success=0 is outside \(0, 1\]"):
        check_max_success(0)


def test_the_verdict_is_one_of_two_sentences_and_never_says_clean() -> None:
    old = [(trigger(1, 1.0), Rate(5, 100))]
    sound = verdict([], old, NAMES, 0.2)
    fresh = verdict(["Class 'one' stands out."], old, NAMES, 0.2)
    stale = verdict([], [(trigger(1, 1.0), Rate(20, 100))], NAMES, 0.2)
    assert sound["verdict"] == "no evidence of a backdoor left under these tests"
    assert "at most 5.0 %" in sound["reasons"][0]
    assert "No trigger stood out in the suspect" in verdict([], [], NAMES, 0.2)["reasons"][0]
    assert fresh["verdict"] == stale["verdict"] == "evidence remains"
    assert fresh["reasons"] == ["Class 'one' stands out."]
    assert "still sends 20 of 100 images to 'one'" in stale["reasons"][0]
    away = verdict([], [(trigger(UNTARGETED, 1.0), Rate(90, 100))], NAMES, 0.2)
    assert "still sends 90 of 100 images away from their class" in away["reasons"][0]
    assert not [text for said in (sound, fresh, stale) for text in said["reasons"] if "is clean" in text]


def test_a_network_near_chance_is_refused_with_the_likely_reason() -> None:
    check_accuracy(Rate(13, 100), 43)
    with pytest.raises(
        ValueError, match=r"12 of 100 .* near chance \(2\.3%\).*scaled wrongly.*another order"
    ):
        check_accuracy(Rate(12, 100), 43)
    with pytest.raises(ValueError, match="near chance"):
        check_accuracy(Rate(0, 0), 43)


def test_classes_without_a_clean_image_are_named() -> None:
    assert missing_classes(torch.tensor([0, 2, 2]), 4) == [1, 3]


def test_the_page_shows_rankings_pictures_rungs_and_verdict(tmp_path: object) -> None:
    found = rankings(1.0, 2.5, 3.0)
    plain = rankings_record(found, {family: [Rate(9, 10)] * 3 for family in found})
    files = write_pictures(found, tmp_path)
    assert all((tmp_path / name).exists() for names in files.values() for name in names)
    assert picture(found["mask"][0]).shape == (1, 96, 96)
    said = {"verdict": "nothing stands out", "reasons": ["Something."], "remarks": ["A remark."]}
    inspection = {"rankings": plain, **said}
    rung = {"options": {"weight": 0.1}, "loss": 0.01, "interval": [0.0, 0.02], "inside": True, "audit": None}
    rung |= {"lost": 2, "gained": 1, "total": 100}
    ladder = {"max_drop": 0.01, "kept": 0, "rungs": [rung], "reason": None}
    norms = [{"family": "mask", "target": 0, "suspect": 1.0, "repaired": None}]
    old = [{"family": "mask", "target": 0, "success": 0.25, "counts": True}]
    audit = verdict([], [], NAMES, 0.2) | {"norms": norms, "old_triggers": old}
    text = page("run", NAMES, inspection, files, ladder, audit)
    for piece in (
        "**No evidence of a backdoor left under these tests.**",
        "| zero | 1.00 | 90.0 | ![mask-0.png](mask-0.png) ![mask-0-opacity.png](mask-0-opacity.png) |",
        "Runner-up over smallest: 2.50; median 2.50",
        "| weight 0.1 | 1.00 [0.00, 2.00] | 2, 1, 100 | kept |",
        "| mask | zero | 1.00 | not found | 25.0 | counts |",
        "**Nothing stands out.**\n\n- Something.\n- A remark.",
    ):
        assert piece in text
