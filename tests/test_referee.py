"""What the referee counts: clean accuracy, attack success of every kind of label map, and their intervals."""

import json
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats.contingency import relative_risk
from torch import Tensor, nn

from finepruning.attacks.labels import AllToAll, LabelMap, RandomWrongLabel, SingleTarget
from finepruning.data.images import ImageSet, Pixels
from finepruning.metrics import Drop, Rate
from finepruning.referee import score
from tests.test_poisoning import CLASSES, attack, image_set


class Reader(nn.Module):
    """Reads the label from an image's brightness; where it sees the patch it answers by a table."""

    def __init__(self, answers: list[int]) -> None:
        super().__init__()
        self.answers = torch.tensor(answers)

    def forward(self, images: Tensor) -> Tensor:
        labels = (images[:, 0, 0, 0] * 255 / 40).round().long()
        patched = images[:, 0, -1, -1] == 1
        return nn.functional.one_hot(torch.where(patched, self.answers[labels], labels), CLASSES).float()


def scores_of(label_map: LabelMap, answers: list[int]) -> dict[str, Any]:
    """The record of a network that answers so, on 600 images: 120 a class, more than two batches."""
    made = attack(target_label=None, label_map=label_map)
    return dict(score(Reader(answers), image_set(600), made).to_record())


def test_a_single_target_succeeds_on_its_source_class_only() -> None:
    record = scores_of(SingleTarget(1, 3), [3, 3, 3, 3, 3])
    assert record["counts"]["attack_success_rate"] == {"hits": 120, "total": 120}
    assert record["counts"]["robust_accuracy"] == {"hits": 0, "total": 120}
    assert scores_of(SingleTarget(1, 3), [3, 1, 3, 3, 3])["attack_success_rate"] == 0


@pytest.mark.parametrize("share", [1.0, float("nan")])
def test_a_network_that_gives_no_numbers_is_right_nowhere_and_no_success(share: float) -> None:
    class Undecided(Reader):
        def forward(self, images: Tensor) -> Tensor:
            logits = super().forward(images)
            logits[images[:, 0, -1, -1] == 1, 3] *= share  # triggered images alone
            return logits

    made = attack(target_label=None, label_map=SingleTarget(1, 3))
    record = score(Undecided([3] * 5), image_set(600), made).to_record()
    assert record["clean_accuracy"] == 1
    assert record["attack_success_rate"] == (1 if share == 1 else 0)
    assert record["robust_accuracy"] == 0


def test_all_to_all_succeeds_where_the_next_class_is_answered() -> None:
    record = scores_of(AllToAll(), [1, 2, 2, 4, 0])
    assert record["counts"]["attack_success_rate"] == {"hits": 480, "total": 600}
    assert record["counts"]["robust_accuracy"] == {"hits": 120, "total": 600}
    assert "untargeted" not in record


def test_an_untargeted_attack_succeeds_by_the_accuracy_that_is_lost() -> None:
    record = scores_of(RandomWrongLabel(0), [1, 1, 2, 4, 0])
    assert record["untargeted"] is True
    assert record["clean_accuracy"] == 1
    assert record["robust_accuracy"] == 0.4
    assert record["attack_success_rate"] == pytest.approx(0.6)
    low, high = record["intervals"]["attack_success_rate"]
    assert low < 0.6 < high
    assert "attack_success_rate" not in record["counts"]
    assert json.dumps(record, allow_nan=False)


def test_a_network_that_is_never_right_has_no_untargeted_score() -> None:
    made = attack(target_label=None, label_map=RandomWrongLabel(0))
    images = image_set(100)
    wrong = ImageSet.whole(images.raw, (images.labels + 1) % CLASSES, Pixels())
    record = score(Reader([0, 1, 2, 3, 4]), wrong, made).to_record()
    assert record["attack_success_rate"] is None
    assert record["intervals"]["attack_success_rate"] is None  # type: ignore[index]


def test_success_is_told_however_far_clean_accuracy_fell() -> None:
    images = image_set(100)
    wrong = ImageSet.whole(images.raw, (images.labels + 1) % CLASSES, Pixels())
    record = score(Reader([0, 0, 0, 0, 0]), wrong, attack()).to_record()
    assert record["clean_accuracy"] == 0
    assert record["attack_success_rate"] == 1


@given(
    clean=st.integers(1, 1000).flatmap(lambda total: st.tuples(st.integers(1, total), st.just(total))),
    share=st.floats(0, 1),
)
def test_the_interval_of_a_drop_holds_its_value(clean: tuple[int, int], share: float) -> None:
    drop = Drop(Rate(*clean), Rate(round(share * clean[1]), clean[1]))
    low, high = drop.interval
    assert low <= drop.value + 1e-12
    assert drop.value <= high + 1e-12
    assert high <= 1


def test_the_interval_of_a_drop_agrees_with_the_delta_method_on_many_images() -> None:
    ratio = relative_risk(700, 2000, 1900, 2000).confidence_interval(0.95)
    low, high = Drop(Rate(1900, 2000), Rate(700, 2000)).interval
    assert (low, high) == pytest.approx((1 - ratio.high, 1 - ratio.low), abs=1e-3)
