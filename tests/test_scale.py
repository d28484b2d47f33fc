"""What a stranger's network takes for white: given, or guessed where the network does badly."""

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from finepruning.data.images import ImageSet, channel_statistics
from finepruning.networks import DigitsCNN
from finepruning.suspect import normalisation, scale_warning
from tests.test_suspect import PEOPLE, lab_images, lab_network, logits, pruned_network, some_images


def test_a_wrong_input_scale_is_noticed_and_the_key_named(data_root: Path) -> None:
    images = lab_images(data_root)
    assert scale_warning(lab_network(data_root, 1), images, PEOPLE) is None
    warning = scale_warning(lab_network(data_root, 255), images, PEOPLE)
    assert warning is not None
    assert "With suspect.white=1 suspect.mean=0 suspect.std=1 it would be 95.0%" in warning


def test_the_usual_mean_and_deviation_are_tried(digits: ImageSet) -> None:
    torch.manual_seed(0)
    mean, std = channel_statistics(digits)
    network = DigitsCNN((1, 16, 16), 10, mean, std, width=4)
    optimizer = torch.optim.Adam(network.parameters(), 0.01)
    for images, labels in digits.batches(64):
        optimizer.zero_grad()
        nn.functional.cross_entropy(network(images), labels).backward()
        optimizer.step()
    assert scale_warning(network, digits, 10) is None
    network.normalise.mean.fill_(2.0)
    warning = scale_warning(network, digits, 10)
    assert warning is not None
    assert re.search(
        r"With suspect.white=1 suspect.mean=\[0.30\d\] suspect.std=\[0.3[12]\d\] it would be [89]", warning
    )


def test_trying_another_scale_leaves_the_network_as_it_was() -> None:
    network = pruned_network()
    before = logits(network)
    warning = scale_warning(network, some_images(50), 10)
    assert warning is not None
    assert "check suspect.white, suspect.mean and suspect.std" in warning
    assert torch.equal(logits(network), before)


@pytest.mark.parametrize(
    ("white", "mean", "std", "expected"),
    [(1, 0.5, 0.25, ([0.5] * 3, [0.25] * 3)), (255, [0, 51, 255], 255, ([0.0, 0.2, 1.0], [1.0] * 3))],
)
def test_normalisation_is_in_the_unit_of_white(white: Any, mean: Any, std: Any, expected: Any) -> None:
    assert tuple(normalisation(white, mean, std, 3).values()) == expected


@pytest.mark.parametrize(
    ("values", "sentence"),
    [
        ((2, 0.0, 1.0), r"suspect\.white=2 is unknown"),
        ((1, [0.0, 0.0], 1.0), r"suspect\.mean has 2 numbers, and images have 3"),
        ((1, 0.0, 0.0), r"suspect\.std=0\.0 must be above 0"),
    ],
)
def test_a_normalisation_that_makes_no_sense_is_refused(values: Any, sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        normalisation(*values, 3)
