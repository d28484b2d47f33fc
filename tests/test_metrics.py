"""Hand-worked counts."""

import math

import pytest
import torch

from finepruning.metrics import (
    AttackSuccessRate,
    CleanAccuracy,
    Rate,
    RobustAccuracy,
    attack_hits,
    clean_hits,
    robust_hits,
    untargeted_drop,
)

LABELS = torch.tensor([0, 1, 2, 0, 1])
WANTED = torch.zeros(5, dtype=torch.long)
PREDICTED = torch.tensor([0, 0, 2, 1, 0])  # of triggered images


def test_an_image_of_the_target_class_is_no_success() -> None:
    hits, total = attack_hits(PREDICTED, LABELS, WANTED)
    assert (int(hits), int(total)) == (2, 3)


def test_robust_accuracy_counts_the_same_images_as_attack_success() -> None:
    hits, total = robust_hits(PREDICTED, LABELS, WANTED)
    assert (int(hits), int(total)) == (1, 3)


def test_steps_are_counted_apart() -> None:
    hits, total = clean_hits(torch.stack([LABELS, PREDICTED]), LABELS)
    assert hits.tolist() == [5, 2]
    assert int(total) == 5


def test_the_interval_is_wilsons() -> None:
    low, high = Rate(8, 10).interval  # worked by hand: centre (8 + z2/2) / (10 + z2), z = 1.959964
    assert low == pytest.approx(0.490162, abs=1e-6)
    assert high == pytest.approx(0.943318, abs=1e-6)


def test_nothing_counted_is_not_zero() -> None:
    assert math.isnan(Rate(0, 0).value)
    assert Rate(0, 0).interval == (0.0, 1.0)


def test_untargeted_success_is_the_share_of_accuracy_lost() -> None:
    assert untargeted_drop(0.8, 0.2) == pytest.approx(0.75)


@pytest.mark.parametrize("batch_size", [1, 2, 5])
def test_the_batch_size_never_changes_a_score(batch_size: int) -> None:
    logits = torch.nn.functional.one_hot(PREDICTED, 3).float()
    clean, attack, robust = CleanAccuracy(), AttackSuccessRate(), RobustAccuracy()
    for start in range(0, 5, batch_size):
        part = slice(start, start + batch_size)
        clean.update(logits[part], LABELS[part])
        attack.update(logits[part], LABELS[part], WANTED[part])
        robust.update(logits[part], LABELS[part], WANTED[part])
    assert (clean.rate, attack.rate, robust.rate) == (Rate(2, 5), Rate(2, 3), Rate(1, 3))
    assert float(attack.compute()) == pytest.approx(2 / 3)
