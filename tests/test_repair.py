"""Inversion, unlearning, ladder and audit, without Lightning."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional

from finepruning.metrics import Rate
from finepruning.repair import (
    UNTARGETED,
    Inspection,
    PairedLoss,
    Search,
    Trigger,
    check_accuracy,
    check_copies,
    check_max_drop,
    check_max_success,
    climb,
    correct_copies,
    invert,
    load_triggers,
    missing_classes,
    paired_loss,
    rankings_record,
    save_triggers,
    success,
    verdict,
    why_none,
)
from finepruning.repair.report import page, picture, write_pictures
from finepruning.repair.unlearning import (
    attack_loss,
    distillation,
    perturb,
    pool_goals,
    pool_radii,
    push,
    random_patterns,
    unlearning_loss,
)

QUICK = Search(steps=150, images=4)
NAMES = ("zero", "one", "two")


class ByMeans(nn.Module):
    """Three classes: logit k is the mean of row k of the image, times 20; a constant image is of class 0."""

    def __init__(self) -> None:
        super().__init__()
        self.bias = nn.Parameter(torch.tensor([2.0, 0.0, 0.0]))
        self.seen: list[int] = []

    def forward(self, images: Tensor) -> Tensor:
        self.seen.append(len(images))
        return 20 * images.mean((1, 3))[:, :3] + self.bias


def grey_images(count: int = 12) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    return 0.4 + 0.02 * torch.rand(count, 1, 4, 4, generator=generator), torch.zeros(count, dtype=torch.long)


def two_classes() -> tuple[Tensor, Tensor]:
    images, labels = grey_images()
    images[6:, 0, 1] += 0.4
    labels[6:] = 1
    return images, labels


def test_the_smallest_additive_trigger_is_the_distance_to_the_border() -> None:
    # logit 1 - logit 0 = 20 (mean of row 1 - mean of row 0) - 2: a shift of 0.1 between two rows of four
    # pixels decides, and the shortest one takes half of it from each: norm sqrt(8 * 0.05^2) = 0.141
    images, labels = grey_images()
    (found,) = invert(ByMeans(), images, labels, [1], "additive", Search(steps=300, images=32))
    assert found.norm == pytest.approx(0.141, rel=0.25)
    assert success(ByMeans(), [found], [(images, labels)])[0].value >= 0.75


def test_a_mask_lies_where_the_class_is_decided() -> None:
    images, labels = grey_images()
    (found,) = invert(ByMeans(), images, labels, [2], "mask", QUICK)
    assert found.mask is not None
    rows = found.mask[0].sum(1)
    assert rows[2] > rows[1]
    assert found.norm == pytest.approx(float(found.mask.sum()), rel=1e-4)


def test_without_a_target_any_other_class_will_do() -> None:
    images, labels = grey_images()
    found = invert(ByMeans(), images, labels, [1, 2, UNTARGETED], "additive", QUICK)
    assert found[2].target == UNTARGETED
    assert found[2].norm <= 1.2 * min(found[0].norm, found[1].norm)
    assert success(ByMeans(), found, [(images, labels)])[2].value >= 0.9


@pytest.mark.parametrize("family", ["additive", "mask"])
def test_groups_of_bounded_size_find_the_same(family: str) -> None:
    images, labels = two_classes()
    network = ByMeans()
    whole = invert(network, images, labels, [0, 1, 2], family, Search(steps=40, images=4, group=512))
    network.seen.clear()
    apart = invert(network, images, labels, [0, 1, 2], family, Search(steps=40, images=4, group=8))
    assert max(network.seen) == 8
    assert [trigger.target for trigger in apart] == [0, 1, 2]
    for one, other in zip(whole, apart, strict=True):
        assert torch.allclose(one.pattern, other.pattern, atol=1e-5)
        assert one.norm == pytest.approx(other.norm, rel=1e-4)


def test_the_number_of_images_does_not_change_the_size_of_a_pass() -> None:
    sizes = []
    for count in (12, 120):
        network = ByMeans()
        images, labels = grey_images(count)
        invert(network, images, labels, [1, 2], "additive", Search(steps=3, images=4))
        sizes.append(max(network.seen))
    assert sizes == [8, 8]


def test_the_same_seed_finds_the_same_whatever_the_global_generator_does() -> None:
    images, labels = two_classes()
    torch.manual_seed(1)
    first = invert(ByMeans(), images, labels, [1, 2], "mask", QUICK)
    torch.manual_seed(2)
    again = invert(ByMeans(), images, labels, [1, 2], "mask", QUICK)
    other = invert(ByMeans(), images, labels, [1, 2], "mask", Search(steps=150, images=4, seed=1))
    assert all(torch.equal(a.pattern, b.pattern) for a, b in zip(first, again, strict=True))
    assert not torch.equal(first[0].pattern, other[0].pattern)


class BreaksTowardOne(ByMeans):
    """Its logits are not numbers once class 1 is fed."""

    def forward(self, images: Tensor) -> Tensor:
        logits = super().forward(images)
        return torch.where(logits[:, 1:2] > 9.2, torch.nan, logits)  # it has at most 8.4 on grey images


def test_a_class_whose_search_meets_nan_is_set_aside_and_the_others_go_on() -> None:
    images, labels = grey_images()
    found = invert(BreaksTowardOne(), images, labels, [1, 2], "additive", QUICK)
    assert [trigger.failed for trigger in found] == [True, False]
    assert found[0].norm == math.inf
    assert found[1].norm < 1
    assert found[1].pattern.isfinite().all()


def test_images_of_one_class_cannot_show_a_trigger_for_it() -> None:
    images, labels = grey_images()
    with pytest.raises(ValueError, match=r"All 12 clean images are of class 0: .* two classes or more"):
        invert(ByMeans(), images, labels, [0, 1], "additive", QUICK)


@pytest.mark.parametrize("key", ["steps", "images", "patience", "group"])
def test_a_search_without_a_budget_is_refused(key: str) -> None:
    with pytest.raises(ValueError, match=rf"{key}=0 leaves nothing .* defense\.inspection\.search\.{key}"):
        Search(**{key: 0})


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"classes": 1}, r"classes=1 is below 2\. Change defense\.inspection\.classes"),
        ({"sample": 0}, r"sample=0 is below 1"),
        ({"suspicious": -1}, r"suspicious=-1 is below 0"),
        ({"clear": 1.0}, r"clear=1\.0 must be above 1"),
        ({"outlier": 1.0}, r"outlier=1\.0 is outside \(0, 1\)"),
        ({"search": {"success": 1.0}}, r"success=1\.0 is outside \(0, 1\)"),
        ({"search": {"rates": {"additive": 0.0, "mask": 1.0}}}, r"rates=.* must be above 0"),
    ],
)
def test_an_inspection_out_of_range_is_refused(options: dict, sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        Inspection(**options)


def trigger(target: int, norm: float, family: str = "additive") -> Trigger:
    mask = torch.full((1, 4, 4), 0.5) if family == "mask" else None
    return Trigger(family, target, norm, torch.full((1, 4, 4), 0.25), mask)


def rankings(*norms: float) -> dict:
    return {
        family: sorted(
            (trigger(label, norm, family) for label, norm in enumerate(norms)), key=lambda found: found.norm
        )
        for family in ("additive", "mask")
    }


def test_the_head_of_each_ranking_is_suspicious_and_one_where_it_is_clear() -> None:
    assert Inspection(suspicious=2).suspects(rankings(1.0, 3.0, 1.5)) == [0, 2]
    assert Inspection(suspicious=2).suspects(rankings(1.0, 3.0, 2.0)) == [0]
    assert Inspection(suspicious=3).suspects(rankings(math.inf, 3.0, 2.0)) == [2, 1]


def test_a_class_far_under_the_median_stands_out() -> None:
    assert Inspection().evidence(rankings(2.0, 2.5, 3.0), NAMES) == []
    first, _ = Inspection().evidence(rankings(0.9, 2.5, 3.0), NAMES)
    assert first == (
        "A universal additive trigger of norm 0.90 sends images to 'zero'; the median of all classes is 2.50."
    )


def test_a_sample_of_many_classes_is_drawn_by_its_seed() -> None:
    few = Inspection(classes=5).targets(1283)
    assert len(set(few)) == 5
    assert few == sorted(few) == Inspection(classes=5).targets(1283)
    assert few != Inspection(classes=5, search={"seed": 1}).targets(1283)
    assert Inspection(classes=5).targets(3) == [0, 1, 2]


def test_success_counts_images_of_other_classes_only() -> None:
    images, labels = two_classes()
    always = Trigger("mask", 1, 1.0, images[6], torch.ones(1, 4, 4))
    assert success(ByMeans(), [always], [(images, labels)]) == [Rate(6, 6)]
    assert success(ByMeans(), [], [(images, labels)]) == []


def test_triggers_come_back_from_their_file(tmp_path: object) -> None:
    found = rankings(1.0, math.inf, 2.0)
    rates = {family: [Rate(1, 2)] * 3 for family in found}
    plain = rankings_record(found, rates)
    path = tmp_path / "triggers.safetensors"
    save_triggers(found, path, 2)
    read = load_triggers(path, plain)
    assert [(t.target, t.norm) for t in read["mask"]] == [(0, 1.0), (2, 2.0)]
    assert torch.equal(read["mask"][0].mask, found["mask"][0].mask)
    assert plain["mask"]["ranking"][2] == {"target": 1, "norm": None, "success": 0.5, "failed": False}
    assert plain["mask"]["ratio"] == 2.0


@given(st.floats(0.1, 5), st.floats(0.01, 4), st.integers(0, 1000))
def test_perturbations_never_leave_their_balls(radius: float, step: float, seed: int) -> None:
    chance = torch.Generator().manual_seed(seed)
    radii = torch.full((3,), radius)
    patterns = random_patterns(radii, (1, 4, 4), chance)
    assert torch.allclose(patterns.flatten(1).norm(dim=1), radii, rtol=1e-4)
    moved = push(patterns, torch.randn(3, 1, 4, 4, generator=chance), radii, step)
    assert (moved.flatten(1).norm(dim=1) <= radii * (1 + 1e-4)).all()


def test_a_push_goes_down_the_gradient_by_its_share_of_the_radius() -> None:
    gradient = torch.zeros(2, 1, 2, 2)
    gradient[0, 0, 0, 0] = 7.0
    gradient[1] = torch.nan
    moved = push(torch.zeros(2, 1, 2, 2), gradient, torch.tensor([2.0, 2.0]), 0.25)
    assert moved[0, 0, 0, 0] == pytest.approx(-0.5)
    assert moved.abs().sum() == pytest.approx(0.5)


def test_goals_take_turns_and_each_has_small_and_large_radii() -> None:
    goals = pool_goals(6, [4, 7], True)
    assert goals.tolist() == [4, 7, UNTARGETED, 4, 7, UNTARGETED]
    assert pool_radii(goals, 1.0, 3.0).tolist() == [1.0, 1.0, 1.0, 3.0, 3.0, 3.0]
    assert pool_radii(torch.tensor([4]), 1.0, 3.0).tolist() == [2.0]


def test_a_pool_without_a_goal_or_too_small_for_its_goals_is_refused() -> None:
    with pytest.raises(ValueError, match=r"no goal: .* defense\.tuning\.untargeted=false"):
        pool_goals(8, [], False)
    with pytest.raises(ValueError, match=r"2 perturbations cannot have 4 goals"):
        pool_goals(2, [1, 2, 3], True)


def test_a_perturbed_image_stays_in_range() -> None:
    images = perturb(torch.rand(4, 1, 4, 4), torch.stack([torch.ones(1, 4, 4), -torch.ones(1, 4, 4)]),
                     torch.tensor([0, 1, 0, 1]))  # fmt: skip
    assert images[:, 0, 0, 0].tolist() == [1.0, 0.0, 1.0, 0.0]


def test_what_the_perturbations_want_by_hand() -> None:
    logits = torch.tensor([[0.0, math.log(3)], [0.0, math.log(3)], [0.0, math.log(3)]])
    labels, goals = torch.tensor([1, 1, 0]), torch.tensor([0, UNTARGETED, 0])
    # image 0: -log(1/4); image 1: log(3/4); image 2 is of its goal's class already
    assert attack_loss(logits, labels, goals) == pytest.approx(math.log(4) + math.log(0.75))


def test_the_loss_is_the_sum_of_its_four_terms() -> None:
    clean, perturbed, teacher = (
        torch.randn(5, 3, generator=torch.Generator().manual_seed(n)) for n in range(3)
    )
    labels = torch.tensor([0, 1, 2, 0, 1])
    soft = functional.softmax(teacher / 2, -1)
    cross = [functional.cross_entropy(logits, labels) for logits in (clean, perturbed)]
    spread = [
        4 * (soft * (soft.log() - functional.log_softmax(logits / 2, -1))).sum(-1).mean()
        for logits in (clean, perturbed)
    ]
    expected = cross[0] + spread[0] + 0.1 * (cross[1] + spread[1])
    assert unlearning_loss(clean, perturbed, teacher, labels, 0.1) == pytest.approx(float(expected), rel=1e-5)
    assert distillation(teacher, teacher, 2.0) == pytest.approx(0.0, abs=1e-6)
    alone = unlearning_loss(clean, perturbed, teacher, labels, 0.0, imitation=0.0)
    assert alone == pytest.approx(float(cross[0]))


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


def test_copies_of_an_image_count_as_one_image_in_the_interval() -> None:
    before = torch.ones(4, 50, dtype=torch.bool)
    after = before.clone()
    after[:, :2] = False  # two images are lost in all four copies
    after[0, 2] = False  # one in one of them
    loss = paired_loss(before, after)
    assert (loss.lost, loss.gained, loss.total) == (9, 0, 200)
    assert loss.value == pytest.approx(9 / 200)
    # 9 / 4 of 50 images, squares 1 + 1 + 1 / 16: (2.25 +- 1.96 sqrt(2.0625 + 1 - 2.25^2 / 52)) / 52
    assert loss.interval == pytest.approx((-0.02163, 0.10817), abs=1e-4)
    one = paired_loss(before[:1], after[:1])
    assert one.interval == pytest.approx(paired_loss(before[0], after[0]).interval)


class Darker(nn.Module):
    def forward(self, images: Tensor) -> Tensor:
        return images * torch.rand(len(images), 1, 1, 1)


def test_every_network_is_judged_on_the_same_copies() -> None:
    images, labels = two_classes()
    seen: list[Tensor] = []

    class Sees(ByMeans):
        def forward(self, images: Tensor) -> Tensor:
            seen.append(images)
            return super().forward(images)

    for _ in range(2):
        right = correct_copies(Sees(), lambda: [(images, labels)], Darker(), 2, seed=3)
        torch.rand(1)
    assert right.shape == (3, 12)
    assert torch.equal(seen[0], images)
    assert torch.equal(torch.stack(seen[:3]), torch.stack(seen[3:]))
    assert not torch.equal(seen[1], seen[2])
    assert correct_copies(Sees(), lambda: [(images, labels)], None, 2, seed=3).shape == (1, 12)


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


def test_no_rung_stays_where_the_weakest_costs_too_much() -> None:
    assert walk([2, 0], 0.01) == ([0], None)
    assert "a budget of 0: the weakest loses 2 of 100" in why_none([PairedLoss(2, 0, 100)], 0.0)
    assert "max_drop=0.01: the weakest loses 2 of 100" in why_none([PairedLoss(2, 0, 100)], 0.01)


def test_a_budget_of_0_keeps_a_rung_that_loses_nothing() -> None:
    assert walk([0, 1], 0.0) == ([0, 1], 0)


def test_the_walk_ends_early_where_a_rung_is_enough() -> None:
    assert walk([0, 0, 0], 0.01, {1}) == ([0, 1], 1)
    assert walk([0, 2, 0], 0.01, {1}) == ([0, 1], 0)


def test_limits_out_of_range_are_refused() -> None:
    with pytest.raises(ValueError, match=r"max_drop=1\.5 is outside \[0, 1\]"):
        check_max_drop(1.5)
    with pytest.raises(ValueError, match=r"copies=-1 is below 0\. Change defense\.deciding\.copies"):
        check_copies(-1)
    with pytest.raises(ValueError, match=r"max_success=0 is outside \(0, 1\]"):
        check_max_success(0)


def test_the_verdict_is_one_of_two_sentences_and_never_says_clean() -> None:
    old = [(trigger(1, 1.0), Rate(5, 100))]
    sound = verdict([], old, NAMES, 0.2)
    fresh = verdict(["Class 'one' stands out."], old, NAMES, 0.2)
    stale = verdict([], [(trigger(1, 1.0), Rate(20, 100))], NAMES, 0.2)
    assert sound["verdict"] == "no evidence of a backdoor left under these tests"
    assert "at most 5.0 %" in sound["reasons"][0]
    assert "no trigger had been found in the suspect" in verdict([], [], NAMES, 0.2)["reasons"][0]
    assert fresh["verdict"] == stale["verdict"] == "evidence remains"
    assert fresh["reasons"] == ["Class 'one' stands out."]
    assert "still sends 20 of 100 images to 'one'" in stale["reasons"][0]
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
    inspection = {"rankings": plain, "reasons": ["Something."], "remarks": ["A remark."]}
    rung = {"options": {"weight": 0.1}, "loss": 0.01, "interval": [0.0, 0.02], "inside": True, "audit": None}
    rung |= {"lost": 2, "gained": 1, "total": 100}
    ladder = {"max_drop": 0.01, "kept": 0, "rungs": [rung], "reason": None}
    norms = [{"family": "mask", "target": 0, "suspect": 1.0, "repaired": None}]
    audit = verdict([], [], NAMES, 0.2) | {"norms": norms}
    text = page("run", NAMES, inspection, files, ladder, audit)
    for piece in (
        "**No evidence of a backdoor left under these tests.**",
        "| zero | 1.00 | 90.0 | ![mask-0.png](mask-0.png) ![mask-0-opacity.png](mask-0-opacity.png) |",
        "Runner-up over smallest: 2.50; median 2.50",
        "| weight 0.1 | 1.00 [0.00, 2.00] | 2, 1, 100 | kept |",
        "| mask | zero | 1.00 | not found |",
        "A remark.",
    ):
        assert piece in text
