"""Inversion and inspection, without Lightning."""

import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from finepruning.metrics import Rate
from finepruning.repair import (
    UNTARGETED,
    Inspection,
    Search,
    Trigger,
    failures,
    invert,
    load_triggers,
    rankings_record,
    save_triggers,
    success,
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


def test_larger_images_go_in_smaller_passes() -> None:
    for side, most in ((32, 12), (256, 8), (1024, 4)):
        network = ByMeans()
        images = torch.rand(6, 1, side, side, generator=torch.Generator().manual_seed(0))
        labels = torch.tensor([0, 1, 2, 0, 1, 2])
        invert(network, images, labels, [0, 1, 2], "additive", Search(steps=2, images=4))
        assert network.seen[0] == most


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


def test_what_stands_out_is_suspicious_or_else_the_head_of_each_ranking() -> None:
    assert Inspection(suspicious=2).suspects(rankings(1.0, 3.0, 1.5)) == [0, 2]
    assert Inspection(suspicious=2).suspects(rankings(1.0, 3.0, 3.0)) == [0]
    assert Inspection(suspicious=3).suspects(rankings(math.inf, 3.0, 2.0)) == [2, 1]
    one = {"additive": rankings(2.0, 2.5, 3.0)["additive"], "mask": rankings(3.0, 1.0, 3.0)["mask"]}
    assert Inspection().suspects(one) == [1]
    assert Inspection(suspicious=1).suspects(rankings(0.5, 0.4, 3.0, 3.0, 3.0)) == [1]


def test_classes_that_are_named_are_suspicious_whatever_their_norms() -> None:
    inspection = Inspection(suspicious=[1, 0, 1], classes=2, search={"seed": 1})
    assert inspection.suspects(rankings(1.0, 3.0, 1.5)) == [1, 0]
    assert inspection.most_suspects(3) == 2
    assert {0, 1} <= set(inspection.targets(50))
    with pytest.raises(ValueError, match=r"Class 50 is named as suspicious, but classes go from 0 to 49\."):
        Inspection(suspicious=[50]).targets(50)
    with pytest.raises(ValueError, match=r"Class 'stop' is named as suspicious"):
        Inspection(suspicious=["stop"]).targets(50)


def test_an_inspection_is_clear_where_a_class_stands_out_or_is_named() -> None:
    level, outlying = rankings(2.0, 2.5, 3.0, 3.0, 3.0), rankings(0.5, 0.4, 3.0, 3.0, 3.0)
    assert not Inspection().clear(level)
    assert Inspection().clear(outlying)
    assert Inspection().clear({"additive": level["additive"], "mask": outlying["mask"]})
    assert Inspection(suspicious=[3]).clear(level)
    assert Inspection(suspicious=[3]).clear(rankings(math.inf, math.inf))


def test_a_trigger_counts_in_the_audit_if_it_stood_out_or_its_class_is_named() -> None:
    inspection = Inspection(outlier=0.4)
    assert inspection.counts(trigger(1, 0.9), 2.5)
    assert not inspection.counts(trigger(1, 1.1), 2.5)
    assert inspection.counts(trigger(1, 9.0), None)  # for most classes none was found
    assert not inspection.counts(trigger(1, math.inf), None)
    assert not inspection.counts(trigger(UNTARGETED, 0.9), None)
    assert Inspection(suspicious=[1]).counts(trigger(1, math.inf), None)


def test_a_class_stands_out_that_alone_has_a_trigger_and_a_failed_search_says_nothing() -> None:
    alone = rankings(5.0, math.inf, math.inf)
    assert Inspection().suspects(alone) == [0]
    assert Inspection().clear(alone)
    assert Inspection().evidence(alone, NAMES)[0] == (
        "A universal additive trigger of norm 5.00 sends images to 'zero'; for most classes none was found."
    )
    broken = {"mask": [trigger(0, 2.0), trigger(1, 3.0), replace(trigger(2, math.inf), failed=True)]}
    assert Inspection().evidence(broken, NAMES) == []
    assert failures(broken, NAMES) == [
        "The additive search for what sends images to 'two' met values that are not numbers; it was set "
        "aside, and nothing is known of it."
    ]
    assert failures(alone, NAMES) == []


def test_triggers_of_suspicious_classes_are_kept_wherever_they_stand(tmp_path: Path) -> None:
    ranked = rankings(1.0, 3.0, 1.5)
    save_triggers(ranked, tmp_path / "t.safetensors", 1, classes=[1])
    record = rankings_record(ranked, {family: [Rate(0, 0)] * 3 for family in ranked})
    kept = load_triggers(tmp_path / "t.safetensors", record)
    assert {family: [found.target for found in kept[family]] for family in kept} == {
        "additive": [0, 1],
        "mask": [0, 1],
    }


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
