"""What only the referee can say: each layer alone, and an order that knows the trigger. Neither decides."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
import torchvision
from torch import Tensor, nn

from finepruning.callbacks import PruneChannels
from finepruning.dashboard.table import layers_table
from finepruning.data.images import ImageSet, Pixels
from finepruning.networks import DeepID, DigitsCNN, PreActResNet18
from finepruning.pipeline import Refused
from finepruning.pruning import convolution_outputs
from finepruning.referee import trigger_change_order
from tests.test_curve import Untraceable, plain
from tests.test_table import printed

RunHere = Callable[..., dict[str, Any]]
FACTS = {"mean": [0.0] * 3, "std": [1.0] * 3}


def test_each_convolution_is_pruned_behind_its_nonlinearity_and_pooling() -> None:
    assert convolution_outputs(DigitsCNN((1, 16, 16), 10, [0.0], [1.0])) == [
        f"features.pool{number}" for number in (1, 2, 3)
    ]
    assert convolution_outputs(plain()) == ["2", "5"]
    assert convolution_outputs(DeepID((3, 55, 47), 5, **FACTS)) == ["pool1", "pool2", "pool3", "relu4"]
    residual = convolution_outputs(PreActResNet18((3, 32, 32), 5, **FACTS))
    assert residual[:3] == ["conv", "stage1.0.relu2", "stage1.0.conv2"]  # before what is added


def test_a_layer_that_runs_twice_is_passed_by_and_every_name_can_be_pruned() -> None:
    network = torchvision.models.resnet18(num_classes=5).eval()
    found = convolution_outputs(network)
    assert found[:2] == ["maxpool", "layer1.0.bn1"]  # the block's one ReLU runs twice
    assert len(found) == 20


def test_a_network_that_cannot_be_traced_has_its_convolutions_named() -> None:
    assert convolution_outputs(Untraceable()) == ["layers.0", "layers.3"]


def test_each_layer_alone_is_pruned_as_far_as_validation_allows(quick_run: RunHere) -> None:
    record = quick_run("analysis=per_layer", "defense=prune", "analysis.max_drop=0.1", "defense.max_drop=0.1")
    rows = {row["layer"]: row for row in record["layers"]}
    assert list(rows) == ["features.pool1", "features.pool2", "features.pool3"]
    assert [row["channels"] for row in rows.values()] == [4, 8, 16]
    last, scores = rows["features.pool3"], record["scores"]["defended"]
    stop = sum(step["pruned"] for step in record["pruning"])
    assert stop > 0
    assert last["prunable"] == stop
    assert last["validation_accuracy"] == record["pruning"][stop]["validation_accuracy"]
    assert last["clean_accuracy"] == scores["clean_accuracy"]
    assert last["attack_success_rate"] == scores["attack_success_rate"]
    text = printed(layers_table(record))
    assert "the referee's analysis" in text
    assert f"{stop}/16" in text


def test_layers_can_be_named(quick_run: RunHere) -> None:
    record = quick_run("analysis=per_layer", "analysis.layers=[features.relu2]", "defense=none")
    assert [row["layer"] for row in record["layers"]] == ["features.relu2"]


@pytest.mark.parametrize(
    ("override", "sentence"),
    [
        ("analysis.layers=[conv9]", r"no layer 'conv9'\. Choose analysis\.layers among: .*features\.pool3"),
        ("analysis.max_drop=4", r"analysis\.max_drop=4 is outside \[0, 1\]"),
    ],
)
def test_an_analysis_that_makes_no_sense_is_refused(
    override: str, sentence: str, quick_run: RunHere, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pytorch_lightning.Trainer.fit", lambda *_, **__: pytest.fail("training began"))
    with pytest.raises(Refused, match=sentence):
        quick_run("analysis=per_layer", override)


def test_the_oracle_prunes_what_the_trigger_raises_most_and_says_so(quick_run: RunHere) -> None:
    options = ("defense=prune", "defense.max_drop=null", "defense.prune_count=4")
    record = quick_run(*options, "defense.order=trigger_change")
    plain_record = quick_run(*options)
    assert record["oracle"] is True
    assert plain_record["oracle"] is False
    assert record["stages"]["defended"] != plain_record["stages"]["defended"]
    order = [step["number"] for step in record["pruning"][1:]]
    assert sorted(order) == list(range(16))
    assert order != [step["number"] for step in plain_record["pruning"][1:]]


class Brighter:
    """Triggered images have 50, 10 and 90 levels more in their three channels."""

    untargeted = False

    def wanted(self, images: ImageSet) -> Tensor:
        return torch.zeros_like(images.labels)

    def stamp(self, images: ImageSet) -> ImageSet:
        rise = torch.tensor([50, 10, 90], dtype=torch.uint8).view(3, 1, 1)
        return replace(images, raw=images.raw + rise)


def test_an_oracles_order_begins_with_what_the_trigger_raises_most() -> None:
    raw = torch.randint(100, (20, 3, 4, 4), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    test = ImageSet.whole(raw, torch.arange(20) % 2, Pixels())
    order = trigger_change_order(nn.Sequential(nn.ReLU()), ["0"], test, Brighter())
    assert order == [("0", 2), ("0", 0), ("0", 1)]


def test_an_oracle_needs_a_trigger(quick_run: RunHere, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pytorch_lightning.Trainer.fit", lambda *_, **__: pytest.fail("training began"))
    with pytest.raises(Refused, match=r"defense\.order=trigger_change needs a trigger"):
        quick_run("attack=none", "defense=prune", "defense.order=trigger_change")


def test_a_defender_cannot_rank_by_the_trigger() -> None:
    callback = PruneChannels(order="trigger_change", max_drop=0.1)
    with pytest.raises(ValueError, match=r"order='trigger_change' is an oracle's"):
        callback.rank(plain(), ["5"], [])
