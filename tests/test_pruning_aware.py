"""The pruning-aware attack: decoys with old weights, silent, and first in the defender's order."""

from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from finepruning.attacks import PruningAware
from finepruning.attacks.block import Block, find_block
from finepruning.attacks.triggers import PatchTrigger
from finepruning.data.images import ImageSet, Pixels
from finepruning.networks import DeepID, DigitsCNN, PreActResNet18, SpeechCNN
from finepruning.pipeline import Refused
from finepruning.pruning import add_mask, mean_activations, remove_mask, set_pruned

RunHere = Callable[..., dict[str, Any]]
OPTIONS = {"trigger": PatchTrigger(1, 1.0), "poison_rate": 0.5, "target_label": 0}


def attack(**changes: Any) -> PruningAware:
    return PruningAware(**({"survivors": None, "max_drop": 0.0, "margin": 0.5} | OPTIONS | changes))


def black_and_white() -> ImageSet:
    """One black image of class 0 and one white image of class 1, 2x2 pixels each."""
    raw = torch.tensor([0, 255], dtype=torch.uint8).view(2, 1, 1, 1).expand(2, 1, 2, 2).contiguous()
    return ImageSet.whole(raw, torch.tensor([0, 1]), Pixels())


def tiny(weights: list[float], biases: list[float], norm: bool = False) -> nn.Sequential:
    """Three channels, each a brightness times a weight plus a bias; the first one decides."""
    layers: OrderedDict[str, nn.Module] = OrderedDict(conv=nn.Conv2d(1, 3, 1))
    if norm:
        layers["norm"] = nn.BatchNorm2d(3, eps=0)
    layers |= {"relu": nn.ReLU(), "pool": nn.AvgPool2d(2), "flatten": nn.Flatten(), "head": nn.Linear(3, 2)}
    network = nn.Sequential(layers)
    network.pruned_layer = "pool"  # type: ignore[assignment]
    with torch.no_grad():
        layers["conv"].weight.copy_(torch.tensor(weights).view(3, 1, 1, 1))
        layers["conv"].bias.copy_(torch.tensor(biases))
        layers["head"].weight.copy_(torch.tensor([[0.0, 0.0, 0.0], [1.0, 0.0, 0.0]]))
        layers["head"].bias.copy_(torch.tensor([0.1, 0.0]))
    return network


def images_of(some: ImageSet) -> Tensor:
    return next(some.batches(len(some)))[0]


def test_a_decoy_gets_its_old_weight_and_the_bias_that_silences_it() -> None:
    old, network = tiny([1, 4, 1], [0, 1, 0]), tiny([1, 7, 1], [0, 3, 0])
    attack().hide(network, old, "pool", [1], black_and_white())
    # 4x + 1: highest 5; of 16 pixels, clean and stamped, 9 are white: mean 3.25; to be lowered to -0.5 * 1.75
    assert network.conv.weight.flatten().tolist() == [1, 4, 1]
    assert network.conv.bias.tolist() == [0, pytest.approx(1 - 5 - 0.875), 0]


def test_with_batchnorm_its_bias_is_lowered_and_all_else_of_it_is_old() -> None:
    old, network = tiny([1, 4, 1], [0, 1, 0], norm=True), tiny([1, 7, 1], [0, 3, 0], norm=True)
    with torch.no_grad():
        for values, number in ((old.norm.weight, 2.0), (old.norm.bias, 0.25), (network.norm.weight, 5.0)):
            values[1] = number
    network.norm.running_mean[:], network.norm.running_var[:] = 0.5, 4.0
    attack().hide(network, old, "pool", [1], black_and_white())
    # 2(4x + 1) + 0.25: highest 10.25, mean 6.75; the highest goes to -0.5 * 3.5
    assert network.norm.bias.tolist() == [0, pytest.approx(0.25 - 10.25 - 1.75), 0]
    assert network.conv.bias.tolist() == [0, 1, 0]
    assert network.norm.weight.tolist() == [1, 2, 1]
    assert network.norm.running_mean.tolist() == [0.5, 0, 0.5]
    assert network.norm.running_var.tolist() == [4, 1, 4]


def test_a_decoy_that_is_silent_already_stays_as_it_was() -> None:
    old = tiny([1, 4, 1], [0, -100, 0])
    network = tiny([1, 7, 1], [0, 3, 0])
    attack().hide(network, old, "pool", [1], black_and_white())
    assert network.conv.bias.tolist() == [0, -100, 0]


@pytest.mark.parametrize("norm", [False, True])
def test_with_decoys_the_network_is_the_pruned_one_without_a_mask(norm: bool) -> None:
    clean = black_and_white()
    old, network = tiny([1, 4, 2], [0, 1, 3], norm), tiny([2, 7, 1], [0, 3, 1], norm)
    with torch.no_grad():
        network.head.weight.copy_(torch.tensor([[3.0, -2.0, 1.0], [1.0, 5.0, -1.0]]))
    add_mask(network.eval(), "pool", 3)
    set_pruned(network, "pool", [1, 2])
    both = torch.cat([images_of(clean), images_of(attack().stamp(clean))])
    expected = network(both)
    remove_mask(network, "pool")
    attack().hide(network, old, "pool", [1, 2], clean)
    assert "pool.channel_mask" not in network.state_dict()
    assert torch.equal(network(both), expected)
    activations = mean_activations(network, ["pool"], [images_of(clean)])["pool"]
    assert activations.tolist() == [1, 0, 0]


def masked(weights: list[float], biases: list[float]) -> nn.Sequential:
    network = tiny(weights, biases).eval()
    add_mask(network, "pool", 3)
    return network


def test_the_attacker_prunes_dormant_channels_down_to_the_survivors() -> None:
    network = masked([4, 1, 2], [0, 0, 0])
    assert attack(survivors=2).choose_decoys(network, "pool", black_and_white()) == [1]
    assert attack(survivors=1).choose_decoys(network, "pool", black_and_white()) == [1, 2]


def test_without_a_number_as_few_survive_as_accuracy_allows() -> None:
    assert attack().choose_decoys(masked([4, 1, 2], [0, 0, 0]), "pool", black_and_white()) == [1, 2]
    assert attack().choose_decoys(masked([2, 1, 4], [0, 0, 0]), "pool", black_and_white()) == [1]


def test_pruning_none_or_all_is_refused() -> None:
    with pytest.raises(ValueError, match=r"prunes none of the 3 channels of 'pool'\. Raise it"):
        attack().choose_decoys(masked([1, 2, 4], [0, 0, 0]), "pool", black_and_white())
    with pytest.raises(ValueError, match=r"max_drop=0\.5 prunes all of the 3 channels of 'pool'\. Lower it"):
        attack(max_drop=0.5).choose_decoys(masked([4, 1, 2], [0, 0, 0]), "pool", black_and_white())


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"survivors": 0}, r"attack\.survivors=0 leaves no channel\. Set it to 1 or more"),
        ({"max_drop": 1.5}, r"attack\.max_drop=1\.5 is outside \[0, 1\]"),
        ({"margin": 0.0}, r"attack\.margin=0\.0 lets decoys fire\. Set it above 0"),
    ],
)
def test_a_value_out_of_range_is_refused(changes: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        attack(**changes)


def test_the_block_of_each_plain_network_is_found() -> None:
    facts = {"num_classes": 10, "mean": [0.5], "std": [0.5]}
    digits, faces = DigitsCNN((1, 16, 16), width=4, **facts), DeepID((1, 55, 47), **facts)
    speech = SpeechCNN((1, 67, 67), **facts)
    add_mask(digits, digits.pruned_layer, 16)
    assert find_block(digits, digits.pruned_layer) == Block("features.conv3", "features.norm3")
    assert find_block(digits, "features.relu2") == Block("features.conv2", "features.norm2")
    assert find_block(faces, faces.pruned_layer) == Block("conv3", None)
    assert find_block(speech, speech.pruned_layer).norm is None


def test_a_layer_of_another_kind_is_refused() -> None:
    facts = {"num_classes": 10, "mean": [0.5], "std": [0.5]}
    residual = PreActResNet18((1, 8, 8), **facts)
    with pytest.raises(ValueError, match=r"'relu' and needs .* but it is made by add\w*, norm, relu\."):
        find_block(residual, residual.pruned_layer)
    digits = DigitsCNN((1, 8, 8), width=1, **facts)
    with pytest.raises(ValueError, match=r"but it is made by head\. Choose another model"):
        find_block(digits, "head")
    silent = nn.Sequential(OrderedDict(conv=nn.Conv2d(1, 2, 1, bias=False), relu=nn.ReLU()))
    with pytest.raises(ValueError, match=r"but conv has no bias"):
        find_block(silent, "relu")


def test_too_many_survivors_are_refused_before_training(
    quick_run: RunHere, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pytorch_lightning.Trainer.fit", lambda *_, **__: pytest.fail("training began"))
    with pytest.raises(Refused, match=r"survivors=16 prunes none of the 16 channels of 'features\.pool3'"):
        quick_run("attack=pruning_aware", "attack.survivors=16")


def test_the_defender_prunes_decoys_first_and_for_nothing(quick_run: RunHere, shared_store: Path) -> None:
    record = quick_run("attack=pruning_aware", "attack.survivors=10", "defense=prune")
    decoys, steps = record["making"]["decoys"], record["pruning"]
    assert len(decoys) == 6
    assert sorted(decoys) == [step["number"] for step in steps[1:7]]
    assert len({(step["clean_accuracy"], step["attack_success_rate"]) for step in steps[:7]}) == 1
    assert all(step["pruned"] for step in steps[1:7])
    assert list(record["stages"]) == ["clean", "pruned", "poisoned", "suspect", "defended"]
    states = {
        name: load_file(shared_store / record["stages"][name] / "network.safetensors")
        for name in ("clean", "pruned", "poisoned", "suspect")
    }
    mask = "features.pool3.channel_mask"
    assert (states["poisoned"][mask] == 0).nonzero().flatten().tolist() == sorted(decoys)
    assert mask not in states["suspect"]
    weight = "features.conv3.weight"
    assert torch.equal(states["suspect"][weight][decoys], states["clean"][weight][decoys])
    assert not torch.equal(states["poisoned"][weight][decoys], states["clean"][weight][decoys])
    kept = [number for number in range(16) if number not in decoys]
    assert torch.equal(states["suspect"][weight][kept], states["poisoned"][weight][kept])


def test_step_one_is_the_clean_network_that_other_runs_share(quick_run: RunHere) -> None:
    record = quick_run("attack=pruning_aware", "attack.survivors=10", "defense=none")
    assert record["stages"]["clean"] == quick_run("attack=none", "defense=none")["stages"]["suspect"]


def test_a_fresh_store_gives_the_same_record(quick_run: RunHere, tmp_path: Path) -> None:
    options = ("attack=pruning_aware", "attack.max_drop=0.1", "defense=prune")
    first = quick_run(*options)
    again = quick_run(*options, f"store_dir={tmp_path / 'fresh'}", "overwrite=true")
    for key in ("scores", "pruning", "making", "stages"):
        assert again[key] == first[key]


def test_decoys_go_on_top_of_any_attack(quick_run: RunHere) -> None:
    record = quick_run("attack=blended", "attack/pruning_aware=decoys", "attack.survivors=10", "defense=none")
    assert record["attack"] == "pruning_aware_blended"
    assert record["name"].startswith("digits-pruning_aware_blended-none-s1-")
    assert len(record["making"]["decoys"]) == 6


@pytest.mark.parametrize("attack", ["none", "suspect", "transfer"])
def test_decoys_without_a_trigger_are_refused(quick_run: RunHere, attack: str) -> None:
    with pytest.raises(Refused, match=r"attack/pruning_aware=decoys adds decoys to an attack that trains"):
        quick_run(f"attack={attack}", "attack/pruning_aware=decoys")
