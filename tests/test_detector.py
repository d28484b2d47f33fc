"""GoodNet in a run: what it rejects, what the referee counts, and the network that it is written as."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from finepruning.data.images import ImageSet, Pixels
from finepruning.metrics import Drop, Rate
from finepruning.networks import DigitsCNN
from finepruning.pipeline.exports import load_goodnet
from finepruning.referee import DetectorScores, score_detector
from finepruning.store import load_weights
from tests.conftest import composed, run_here

RunHere = Callable[..., dict[str, Any]]
LABELS = torch.tensor([0, 1, 2, 1, 2])
CLEAN = [0, 1, 3, 1, 1]  # what the detector says; 3 is "triggered"
TRIGGERED = [3, 0, 3, 1, 0]


class Lookup(nn.Module):
    """Four logits for an image, by its brightness."""

    def forward(self, images: Tensor) -> Tensor:
        rows = (images[:, 0, 0, 0] * 255).round().long()
        return nn.functional.one_hot(torch.tensor(CLEAN + TRIGGERED)[rows], 4).float()


class ToZero:
    """Images 5 to 9 are images 0 to 4 with the trigger; it leads to class 0, or anywhere."""

    def __init__(self, untargeted: bool) -> None:
        self.untargeted = untargeted

    def wanted(self, images: ImageSet) -> Tensor:
        return (images.labels + 1) % 3 if self.untargeted else torch.zeros_like(images.labels)

    def stamp(self, images: ImageSet) -> ImageSet:
        return replace(images, index=images.index + 5)


def lookup_scores(untargeted: bool) -> DetectorScores:
    raw = torch.arange(10, dtype=torch.uint8).view(10, 1, 1, 1)
    test = ImageSet(raw, torch.arange(5), LABELS, Pixels())
    return score_detector(Lookup(), 3, test, ToZero(untargeted))


def test_what_a_detector_rejects_is_counted_by_hand() -> None:
    scores = lookup_scores(untargeted=False)
    assert scores.clean_accuracy == Rate(3, 5)
    assert scores.clean_rejected == Rate(1, 5)
    assert scores.triggered_rejected == Rate(1, 4)  # an image of class 0 proves nothing
    assert scores.attack_success_rate == Rate(2, 4)
    assert scores.robust_accuracy == Rate(1, 4)


def test_a_rejected_image_is_no_success_of_an_untargeted_attack() -> None:
    scores = lookup_scores(untargeted=True)
    assert scores.attack_success_rate == Drop(Rate(3, 5), Rate(1 + 2, 5))


def test_rejected_shares_have_counts_and_intervals_in_a_record() -> None:
    record = lookup_scores(untargeted=False).to_record()
    assert record["triggered_rejected"] == 0.25
    assert record["counts"]["clean_rejected"] == {"hits": 1, "total": 5}  # type: ignore[index]
    low, high = record["intervals"]["triggered_rejected"]  # type: ignore[index]
    assert low == pytest.approx(0.0456, abs=1e-4)  # Wilson's, by hand
    assert high == pytest.approx(0.6994, abs=1e-4)


def digits_network() -> nn.Module:
    return DigitsCNN((1, 16, 16), 10, [0.0], [1.0], width=4).eval()


def test_a_runs_goodnet_says_n_plus_one_where_its_two_networks_disagree(
    quick_run: RunHere, tmp_path: Path, shared_store: Path
) -> None:
    record = quick_run("defense=prune", "defense.max_drop=0.3", "detector=disagreement")
    networks = {
        name: load_weights(digits_network(), shared_store / record["stages"][name] / "network.safetensors")
        for name in ("suspect", "defended")
    }
    directory = tmp_path / "runs" / record["name"] / "repaired"
    guard = load_goodnet(digits_network(), digits_network(), directory).eval()
    images = torch.rand(300, 1, 16, 16, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        before, after = (networks[name](images).argmax(1) for name in ("suspect", "defended"))
        logits = guard(images)
    assert logits.shape == (300, 11)
    assert torch.equal(logits.argmax(1), torch.where(before == after, before, 10))
    assert 0 < int((before != after).sum()) < 300
    scores = record["scores"]
    assert 0 < scores["goodnet"]["clean_rejected"] < 1
    assert scores["goodnet"]["clean_accuracy"] <= scores["suspect"]["clean_accuracy"]
    assert scores["goodnet"]["counts"]["triggered_rejected"]["total"] == 450 - 45
    assert "goodnet.safetensors" in record["export"]["files"]


def test_without_a_detector_there_is_no_goodnet_and_nothing_is_written(
    quick_run: RunHere, tmp_path: Path
) -> None:
    record = quick_run("defense=prune", "defense.max_drop=0.3")
    assert set(record["scores"]) == {"suspect", "defended"}
    assert not (tmp_path / "runs" / record["name"] / "repaired").exists()


def test_a_detector_without_a_defense_has_nothing_to_compare(
    quick_run: RunHere, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level("WARNING"):
        record = quick_run("defense=none", "detector=disagreement")
    assert "goodnet" not in record["scores"]
    assert "detector=disagreement compares the suspect with a repaired network" in caplog.text


def test_the_lab_writes_a_table_and_a_curve_over_all_its_limits(data_root: Path, tmp_path: Path) -> None:
    from finepruning.pipeline.lab import WriteLab

    places = (f"runs_dir={tmp_path / 'runs'}", f"store_dir={tmp_path / 'store'}")
    lab = ("experiment=pruning_lab", "defender.validation_share=0.98", *places)
    for limit in ("0.1", "0.02"):
        record = run_here(*lab, f"defense.max_drop={limit}")
        files = {path.name for path in (tmp_path / "runs" / record["name"] / "repaired").iterdir()}
        assert files == {"network.safetensors", "goodnet.safetensors", "channels.json", "REPORT.md"}
    WriteLab("pruning_lab").on_multirun_end(composed(*lab))
    text = (tmp_path / "runs" / "pruning_lab" / "table.txt").read_text()
    assert text.index("2 % ") < text.index("10 % ")
    assert "G rejects" in text
    assert (tmp_path / "runs" / "pruning_lab" / "curve.png").read_bytes().startswith(b"\x89PNG")
