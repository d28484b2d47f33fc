"""Order, stop rules, masks, GoodNet and removal; each fault of other toolkits once."""

import copy
from collections.abc import Sequence

import pytest
import torch
from torch import Tensor, fx, nn

from finepruning.callbacks import PruneChannels
from finepruning.metrics import Rate
from finepruning.pruning import (
    Channel,
    GoodNet,
    PrunePoint,
    activation_change,
    add_mask,
    count_steps,
    mean_activations,
    prune_count,
    prune_order,
    prune_rate,
    prune_until,
    pruned_channels,
    random_scores,
    remove_channels,
    set_pruned,
    silent_layers,
    weight_norms,
)
from tests.test_curve import IMAGES, Branches, Untraceable, plain, residual, trained_a_little


def curve(*hits: int) -> list[PrunePoint]:
    return count_steps([Channel("conv", number) for number in range(len(hits) - 1)], hits, 100)


def test_the_step_that_broke_the_limit_is_undone() -> None:
    assert prune_until(curve(90, 90, 87, 86, 85, 90), max_drop=0.04) == 3


def test_the_last_step_within_the_limit_is_taken_to_the_image() -> None:
    assert prune_until(curve(90, 86), max_drop=0.04) == 1
    assert prune_until(curve(90, 85), max_drop=0.04) == 0


def test_a_gain_never_stops() -> None:
    assert prune_until(curve(50, 70, 99, 100, 46), max_drop=0.04) == 4


def test_a_fixed_rate_is_the_nearest_number_of_channels() -> None:
    assert [prune_rate(60, rate) for rate in (0.0, 0.8, 1.0)] == [0, 48, 60]
    assert [prune_rate(5, rate) for rate in (0.29, 0.5, 0.7)] == [1, 3, 4]
    assert prune_rate(100, 0.29) == 29


def test_a_fixed_count_is_taken_unless_there_are_too_few_channels() -> None:
    assert prune_count(60, 48) == 48
    with pytest.raises(ValueError, match=r"prune_count=61.*60 channels.*defense\.prune_count"):
        prune_count(60, 61)


@pytest.mark.parametrize("limits", [{}, {"max_drop": 0.1, "prune_rate": 0.5}])
def test_exactly_one_limit_must_be_given(limits: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=r"defense\.max_drop, defense\.prune_rate and defense\.prune_count"):
        PruneChannels(**limits)


def test_a_limit_out_of_range_is_refused() -> None:
    with pytest.raises(ValueError, match=r"prune_rate=1\.5 is outside \[0, 1\]"):
        PruneChannels(prune_rate=1.5)
    with pytest.raises(ValueError, match="prune_count=-1 is below 0"):
        PruneChannels(prune_count=-1)


def test_equal_scores_go_by_index() -> None:
    scores = {"a": torch.tensor([1.0, 0.0, 1.0, 0.0])}
    assert [number for _, number in prune_order(scores)] == [1, 3, 0, 2]
    assert [number for _, number in prune_order(scores, descending=True)] == [0, 2, 1, 3]


def test_layers_take_turns_by_width_or_share_one_order() -> None:
    scores = {"a": torch.tensor([10.0, 20.0]), "b": torch.tensor([4.0, 1.0, 3.0, 15.0])}
    each = [tuple(channel) for channel in prune_order(scores)]
    assert each == [("b", 1), ("a", 0), ("b", 2), ("b", 0), ("a", 1), ("b", 3)]
    common = [tuple(channel) for channel in prune_order(scores, joint="common")]
    assert common == [("b", 1), ("b", 2), ("b", 0), ("a", 0), ("b", 3), ("a", 1)]
    assert [tuple(c) for c in prune_order(scores, True, "common")] == common[::-1]


def test_a_score_that_is_no_number_is_refused() -> None:
    with pytest.raises(ValueError, match="Channel 1 of layer 'a' has no score"):
        prune_order({"a": torch.tensor([0.0, float("nan")])})


def test_a_random_order_depends_on_its_own_seed_only() -> None:
    torch.manual_seed(1)
    first = prune_order(random_scores({"a": 50}, seed=4))
    torch.manual_seed(2)
    assert prune_order(random_scores({"a": 50}, seed=4)) == first
    assert prune_order(random_scores({"a": 50}, seed=5)) != first


def test_mean_activations_are_those_of_evaluation_over_all_batches() -> None:
    network = plain().train()
    state = copy.deepcopy(network.state_dict())
    parts = mean_activations(network, ["5"], IMAGES.split(7))["5"]
    with torch.no_grad():
        whole = network.eval()[:6](IMAGES).mean((0, 2, 3))
    torch.testing.assert_close(parts.float(), whole)
    assert all(torch.equal(state[name], value) for name, value in network.state_dict().items())


class SharedReLU(nn.Module):
    """Two norms in front of one ReLU that runs twice, and a third in front of a sum."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two, self.three = (nn.BatchNorm2d(3) for _ in range(3))
        self.relu = nn.ReLU(inplace=True)

    def forward(self, images: Tensor) -> Tensor:
        return self.three(nn.functional.relu(self.two(self.relu(self.one(images))))) + images


def test_channels_are_ranked_behind_the_relu_that_follows() -> None:
    network = SharedReLU().eval()
    nn.init.constant_(network.one.bias, -0.5)
    nn.init.constant_(network.three.bias, -9.0)
    means = mean_activations(network, ["one", "two", "three"], IMAGES.split(7))
    with torch.no_grad():
        first = network.one(IMAGES)
        second = network.two(first.relu())
        third = network.three(second.relu())
    assert (first < 0).any()
    for layer, output in (("one", first.relu()), ("two", second.relu()), ("three", third)):
        torch.testing.assert_close(means[layer].float(), output.mean((0, 2, 3)))


def test_activation_change_is_the_rise_of_each_channels_mean() -> None:
    change = activation_change(
        nn.Sequential(nn.ReLU()), ["0"], [IMAGES], [IMAGES + torch.tensor([0, 1, 2]).view(3, 1, 1)]
    )
    torch.testing.assert_close(change["0"].float(), torch.tensor([0.0, 1.0, 2.0]), atol=1e-5, rtol=0)


def test_weight_norms_are_found_through_normalisation_and_in_both_branches_of_a_sum() -> None:
    network = plain()
    expected = network[3].weight.double().abs().sum((1, 2, 3))
    torch.testing.assert_close(weight_norms(network, ["5"])["5"], expected)
    network = residual(pre=True)
    makers = [network[0], network[1].conv2, network[2].conv2]
    summed = sum(conv.weight.double().abs().sum((1, 2, 3)) for conv in makers)
    torch.testing.assert_close(weight_norms(network, ["2"])["2"], summed)


def test_weight_norms_that_cannot_be_found_are_refused() -> None:
    with pytest.raises(ValueError, match=r"'6' was found.*defense\.order"):
        weight_norms(plain(), ["6"])
    with pytest.raises(ValueError, match=r"cannot be traced.*defense\.order"):
        weight_norms(Untraceable(), ["layers.5"])


@pytest.mark.parametrize(("network", "layer"), [(plain(), "1"), (residual(pre=False), "1.norm2")])
def test_pruned_channels_are_exactly_zero_after_batchnorm_and_before_a_residual_sum(
    network: nn.Module, layer: str
) -> None:
    trained_a_little(network, IMAGES)
    add_mask(network, layer, 12)
    set_pruned(network, layer, [2, 7])
    outputs: list[Tensor] = []
    network.get_submodule(layer).register_forward_hook(lambda _, __, output: outputs.append(output.clone()))
    with torch.no_grad():
        network(IMAGES)
    assert (outputs[0] == 0).all(dim=(0, 2, 3)).nonzero().flatten().tolist() == [2, 7]


def test_the_mask_is_saved_and_restored_with_the_network() -> None:
    network, other = plain(), plain()
    for each in (network, other):
        add_mask(each, "5", 12)
    set_pruned(network, "5", [1, 2])
    other.load_state_dict(network.state_dict())
    assert pruned_channels(other) == {"5": [1, 2]}


def test_each_order_ranks_by_its_own_score() -> None:
    network = plain()
    add_mask(network, "5", 12)
    mean = mean_activations(network, ["5"], [IMAGES])
    scores = {"activation": mean, "descending": mean, "l1": weight_norms(network, ["5"])}
    scores["random"] = random_scores({"5": 12}, 4)
    found = {
        order: PruneChannels(order, order_seed=4, max_drop=0.1).rank(network, ["5"], [IMAGES])
        for order in scores
    }
    assert found == {order: prune_order(each, order == "descending") for order, each in scores.items()}
    assert len({tuple(order) for order in found.values()}) == 4


def test_a_restored_callback_does_not_prune_again() -> None:
    callback = PruneChannels(max_drop=0.1)
    callback.curve = [PrunePoint(0, None, Rate(9, 10)), PrunePoint(1, Channel("5", 3), Rate(9, 10))]
    callback.channels_pruned = 1
    other = PruneChannels(max_drop=0.1)
    other.load_state_dict(callback.state_dict())
    assert (other.curve, other.channels_pruned) == (callback.curve, 1)
    other.on_fit_start(None, None)  # type: ignore[arg-type]  # would fail if it looked at either


def test_goodnet_answers_n_plus_one_exactly_where_the_two_disagree() -> None:
    suspect = trained_a_little(plain(), IMAGES)
    repaired = copy.deepcopy(suspect)
    add_mask(repaired, "5", 12)
    set_pruned(repaired, "5", range(6))
    good = GoodNet(suspect, repaired).eval()
    with torch.no_grad():
        logits, before, after = good(IMAGES), suspect(IMAGES).argmax(1), repaired(IMAGES).argmax(1)
        traced = fx.symbolic_trace(good)(IMAGES)
    assert 0 < int((before == after).sum()) < len(IMAGES)
    assert torch.equal(logits.argmax(1), torch.where(before == after, before, 7))
    assert torch.equal(traced, logits)
    assert logits.shape == (40, 8)


def test_goodnet_refuses_one_network_twice() -> None:
    network = plain()
    with pytest.raises(ValueError, match="are one network"):
        GoodNet(network, network)


@pytest.mark.parametrize(
    ("network", "layer", "channels", "side"),
    [(plain(), "5", 12, 16), (plain(), "2", 12, 16), (plain(), "9", 16, 16), (Branches(), "late", 4, 14)],
)
def test_removed_channels_leave_equal_logits_and_fewer_weights(
    network: nn.Module, layer: str, channels: int, side: int
) -> None:
    images = IMAGES[..., :side, :side]
    trained_a_little(network, images)
    add_mask(network, layer, channels)
    set_pruned(network, layer, [0, 2])
    smaller = remove_channels(network, layer, images.shape[1:])
    with torch.no_grad():
        torch.testing.assert_close(smaller(images), network(images), atol=1e-5, rtol=1e-5)
    assert sum(p.numel() for p in smaller.parameters()) < sum(p.numel() for p in network.parameters())
    assert pruned_channels(smaller) == {}
    assert pruned_channels(network) == {layer: [0, 2]}


class OverPlaces(nn.Module):
    """A linear layer that reads places, channel by channel."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.linear, self.head = nn.Conv2d(3, 12, 3), nn.Linear(196, 5), nn.Linear(60, 4)

    def forward(self, images: Tensor) -> Tensor:
        return self.head(self.linear(self.conv(images).flatten(2)).flatten(1))


@pytest.mark.parametrize(
    ("network", "layer", "reason"),
    [
        (residual(pre=True), "1.conv2", "residual sum"),
        (plain(groups=12), "3", "grouped convolution"),
        (plain(groups=3), "2", "grouped convolution"),
        (Untraceable(), "layers.5", "cannot be traced"),
        (OverPlaces(), "conv", "has other weights"),
    ],
)
def test_a_mask_without_a_physical_twin_is_refused_with_the_reason(
    network: nn.Module, layer: str, reason: str
) -> None:
    add_mask(network, layer, 12)
    set_pruned(network, layer, [0])
    with pytest.raises(ValueError, match=f"cannot be removed.*{reason}"):
        remove_channels(network, layer, IMAGES.shape[1:])


def test_a_layer_without_a_channel_is_named() -> None:
    network = plain()
    add_mask(network, "5", 4)
    set_pruned(network, "5", [0, 1, 2])
    assert silent_layers(network) == []
    set_pruned(network, "5", [0, 1, 2, 3])
    assert silent_layers(network) == ["5"]


def test_a_layer_with_no_channel_left_is_not_removed() -> None:
    network: Sequence[nn.Module] | nn.Module = plain()
    add_mask(network, "5", 12)
    set_pruned(network, "5", range(12))
    with pytest.raises(ValueError, match="no channel is left"):
        remove_channels(network, "5", IMAGES.shape[1:])
