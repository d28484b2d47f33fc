"""Defenses that silence channels, CLP and ANP: their mathematics, by hand or against a plain reference."""

import copy
import math
from collections.abc import Iterator

import pytest
import torch
from pytorch_lightning import Trainer
from torch import Tensor, nn
from torch.nn.utils.parametrizations import weight_norm

from finepruning.modules import PrunedClassifier
from finepruning.networks import BadNetsCNN, DigitsCNN, PreActResNet18, TorchvisionClassifier
from finepruning.pipeline.training import _CheckMasks
from finepruning.pruning import add_mask, convolution_chains, set_pruned
from finepruning.pruning.masks import mask_of
from finepruning.repair import PairedLoss
from finepruning.repair.anp import (
    find_neurons,
    prune_below,
    prune_by_threshold,
    scaled_weights,
    thresholds,
    worsen,
)
from finepruning.repair.clp import channel_bounds, channel_lipschitz, outliers
from tests.test_comparators import FACTS, digits_network


def test_each_convolution_is_paired_with_the_norm_right_behind_it() -> None:
    assert [tuple(chain) for chain in convolution_chains(digits_network())] == [
        (f"features.conv{n}", f"features.norm{n}", f"features.pool{n}") for n in (1, 2, 3)
    ]
    plain = [chain.norm for chain in convolution_chains(BadNetsCNN((1, 28, 28), 10, **FACTS))]
    assert plain == [None, None]
    residual = {
        chain.convolution: chain for chain in convolution_chains(PreActResNet18((1, 8, 8), 3, **FACTS))
    }
    first, second = residual["stage1.0.conv1"], residual["stage1.0.conv2"]
    assert (first.norm, first.output) == ("stage1.0.norm2", "stage1.0.relu2")
    assert (second.norm, second.output) == (None, "stage1.0.conv2")  # a residual sum follows


class Gated(nn.Module):
    """Squeeze and excitation, and a SiLU that is written out."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.down, self.up, self.last = (nn.Conv2d(4, 4, 1) for _ in range(4))
        self.head = nn.Linear(4, 2)

    def forward(self, images: Tensor) -> Tensor:
        maps = self.first(images)
        maps = maps * torch.sigmoid(maps)
        gate = torch.sigmoid(self.up(torch.relu(self.down(maps.mean((2, 3), keepdim=True)))))
        return self.head(self.last(maps * gate).mean((2, 3)))


def test_gates_are_not_pruned_since_a_gate_of_zero_is_half_open() -> None:
    assert [chain.convolution for chain in convolution_chains(Gated())] == ["first", "down", "last"]
    network = TorchvisionClassifier((3, 32, 32), 10, [0.5] * 3, [0.25] * 3, "mobilenet_v3_small")
    pruned = {chain.convolution for chain in convolution_chains(network)}
    every = {name for name, layer in network.named_modules() if isinstance(layer, nn.Conv2d)}
    assert every - pruned == {name for name in every if name.endswith("fc2")}


def test_channels_that_are_the_classes_are_not_pruned() -> None:
    network = TorchvisionClassifier((3, 32, 32), 10, [0.5] * 3, [0.25] * 3, "squeezenet1_1")
    last = "model.classifier.1"  # no linear layer comes behind it
    assert isinstance(network.get_submodule(last), nn.Conv2d)
    pruned = {chain.convolution for chain in convolution_chains(network)}
    every = {name for name, layer in network.named_modules() if isinstance(layer, nn.Conv2d)}
    assert every - pruned == {last}


def test_synchronised_norms_are_norms_and_their_masks_are_refused() -> None:
    plain = digits_network()
    chains = convolution_chains(plain)
    assert convolution_chains(nn.SyncBatchNorm.convert_sync_batchnorm(copy.deepcopy(plain))) == chains
    module = PrunedClassifier(plain, ["features.norm2"], (1, 16, 16))
    with pytest.raises(ValueError, match=r"cannot keep the mask of features\.norm2\. Choose defense\.layers"):
        _CheckMasks().setup(Trainer(logger=False, accelerator="cpu"), module, "fit")


def test_a_channels_lipschitz_bound_by_hand() -> None:
    convolution, norm = nn.Conv2d(2, 2, 2, bias=False), nn.BatchNorm2d(2, eps=0.0)
    with torch.no_grad():
        convolution.weight.zero_()
        convolution.weight[0, 0, 0, 0] = 3.0  # as a matrix (2 inputs, 4 places): singular values 3 and 2
        convolution.weight[0, 1, 0, 1] = 2.0
        convolution.weight[1] = 1.0  # eight ones: sqrt(8)
        norm.weight.copy_(torch.tensor([-2.0, 1.0]))
        norm.running_var.copy_(torch.tensor([4.0, 0.25]))
    assert channel_lipschitz(convolution, None).tolist() == pytest.approx([3.0, math.sqrt(8)])
    assert channel_lipschitz(convolution, norm).tolist() == pytest.approx([3.0, 2 * math.sqrt(8)])


def test_outliers_stand_u_deviations_above_their_layers_mean() -> None:
    bounds = torch.tensor([1.0] * 15 + [2.0])  # mean 1.0625, deviation 0.25: the last is 3.75 above
    assert outliers(bounds, 3.0) == [15]
    assert outliers(bounds, 3.8) == []
    assert outliers(torch.tensor([1.0] * 9 + [1e6]), 3.0) == []  # of ten values none can be


def test_a_planted_amplifier_is_what_stands_out() -> None:
    network = digits_network()
    with torch.no_grad():
        network.features.norm3.weight[5] = 40.0
    found = {layer: outliers(bounds, 3.0) for layer, bounds in channel_bounds(network).items()}
    assert found == {"features.pool1": [], "features.pool2": [], "features.pool3": [5]}


def test_convolutions_whose_weight_is_computed_are_measured_and_not_scaled() -> None:
    network = nn.Sequential(nn.Conv2d(1, 3, 3), nn.ReLU(), nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Linear(64, 2))
    plain = channel_bounds(network)
    weight_norm(network[2])
    assert all(torch.allclose(bounds, plain[layer]) for layer, bounds in channel_bounds(network).items())
    assert [neurons.scaled for neurons in find_neurons(network)] == ["0"]


class Untraceable(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 2, 3)

    def forward(self, images: Tensor) -> Tensor:
        return self.conv(images).mean((2, 3)) if images.sum() > 0 else self.conv(-images).mean((2, 3))


def test_a_network_that_cannot_be_traced_is_refused_by_name() -> None:
    with pytest.raises(
        ValueError, match=r"cannot be traced .* what follows its convolutions\. Choose another"
    ):
        channel_bounds(Untraceable())


@pytest.mark.parametrize("network", [digits_network(), BadNetsCNN((1, 16, 16), 10, **FACTS).eval()])
def test_scales_of_1_leave_a_network_as_it_is_and_scales_of_0_silence_weights_alone(
    network: nn.Module,
) -> None:
    images, neurons = torch.rand(3, 1, 16, 16), find_neurons(network)
    ones, zeros = ([torch.full((n.count,), value) for n in neurons] for value in (1.0, 0.0))

    def logits(weights: list[Tensor], biases: list[Tensor]) -> Tensor:
        changed = scaled_weights(network, neurons, weights, biases)
        return torch.func.functional_call(network, changed, (images,))

    assert torch.equal(logits(ones, ones), network(images))
    assert torch.equal(logits(zeros, zeros), logits(zeros, zeros)[:1].expand(3, -1))  # no image gets through
    assert not torch.equal(logits(zeros, ones), logits(zeros, zeros))  # the bias does


def test_noise_goes_one_step_up_and_stays_in_its_interval() -> None:
    (noise,) = worsen([torch.tensor([0.3, -0.1, 0.2])], [torch.tensor([2.0, -1.0, 0.0])], 0.4)
    assert noise.tolist() == pytest.approx([0.4, -0.4, 0.2])


def test_thresholds_rise_from_0_to_less_than_1() -> None:
    assert thresholds(0.25) == [0.0, 0.25, 0.5, 0.75]
    assert len(thresholds(0.05)) == 20


def masked_network() -> DigitsCNN:
    network = digits_network()
    for neurons in find_neurons(network):
        add_mask(network, neurons.output, neurons.count)
    return network


def test_a_channel_that_is_pruned_lets_no_bias_through() -> None:
    network = masked_network()
    values = [torch.ones(neurons.count) for neurons in find_neurons(network)]
    values[1][3] = 0.2
    outputs: list[Tensor] = []
    network.features.pool2.register_forward_hook(lambda _, __, output: outputs.append(output))
    network(torch.rand(4, 1, 16, 16))
    prune_below(network, find_neurons(network), values, 0.2)
    network(torch.rand(4, 1, 16, 16))
    assert outputs[0][:, 3].any()
    assert not outputs[1][:, 3].any()
    assert outputs[1][:, [0, 1, 2, 4, 5, 6, 7]].flatten(2).any(2).any(0).all()


def losses(*lost: int) -> Iterator[PairedLoss]:
    return (PairedLoss(count, 0, 100) for count in lost)


def test_pruning_goes_to_the_last_threshold_before_one_that_costs_too_much() -> None:
    network, steps = masked_network(), [0.0, 0.25, 0.5, 0.75]
    neurons = find_neurons(network)
    set_pruned(network, "features.pool1", [2])  # by somebody before
    values = [torch.linspace(0.2, 0.9, layer.count) for layer in neurons]
    found = losses(0, 1, 3, 0)  # what comes after a step that costs too much is not tried
    kept = prune_by_threshold(network, neurons, values, steps, lambda: next(found), 0.01)
    assert kept == 0.25
    assert len(list(found)) == 1
    assert mask_of(network, "features.pool1").tolist() == [0, 1, 0, 1]
    assert [int((mask_of(network, layer.output) == 0).sum()) for layer in neurons[1:]] == [1, 2]


def test_where_no_threshold_is_affordable_nothing_more_is_pruned() -> None:
    network = masked_network()
    neurons, found = find_neurons(network), losses(2)
    values = [torch.zeros(layer.count) for layer in neurons]
    assert prune_by_threshold(network, neurons, values, [0.0], lambda: next(found), 0.01) is None
    assert all(mask_of(network, layer.output).all() for layer in neurons)


def test_a_network_without_channels_to_scale_is_refused() -> None:
    with pytest.raises(
        ValueError, match=r"needs convolutions that run once in a pass, and this network has none"
    ):
        find_neurons(nn.Sequential(nn.Flatten(), nn.Linear(4, 2)))
