"""Defenses of others: their mathematics, by hand or against a plain reference, without Lightning."""

import math

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils.parametrizations import weight_norm

from finepruning.networks import BadNetsCNN, DeepID, DigitsCNN, PreActResNet18, TorchvisionClassifier
from finepruning.pruning.passes import constant_pass, evaluating, frozen_statistics
from finepruning.repair.ft_sam import ascent
from finepruning.repair.head_shift import clean_loss, find_head, onto_sphere, shift_loss, start_head
from finepruning.repair.i_bau import implicit_gradient, inner_loss, into_ball, universal_perturbation
from finepruning.repair.nad import attention, attention_loss, features_of, stage_ends
from finepruning.repair.sau import divergence, search_loss, shared_perturbation, shared_risk

FACTS = {"mean": [0.5], "std": [0.25]}


def digits_network(seed: int = 0) -> DigitsCNN:
    torch.manual_seed(seed)
    network = DigitsCNN((1, 16, 16), 10, width=4, **FACTS)
    with torch.no_grad():
        network(torch.rand(64, 1, 16, 16))  # BatchNorm gets statistics
        for norm in (network.features.norm1, network.features.norm2, network.features.norm3):
            norm.bias.uniform_(0.1, 1.0)
    return network.eval()


def statistics(network: nn.Module) -> dict[str, Tensor]:
    names = ("running_mean", "running_var", "num_batches_tracked")
    return {name: value.clone() for name, value in network.named_buffers() if name.endswith(names)}


# --- passes


def test_a_pass_with_frozen_statistics_normalises_by_the_batch_and_updates_nothing() -> None:
    network, images = digits_network().train(), torch.rand(8, 1, 16, 16)
    before = statistics(network)
    with frozen_statistics(network):
        frozen = network(images)
    assert all(torch.equal(value, before[name]) for name, value in statistics(network).items())
    assert torch.equal(frozen, network(images))  # as training does it
    assert not torch.equal(
        statistics(network)["features.norm1.running_mean"], before["features.norm1.running_mean"]
    )


def test_evaluating_gives_each_layer_its_mode_back() -> None:
    network = DeepID((3, 55, 47), 4, [0.5] * 3, [0.25] * 3).train()
    network.conv1.eval()
    with evaluating(network):
        assert not any(module.training for module in network.modules())
    assert network.training
    assert network.dropout.training
    assert not network.conv1.training


def test_a_constant_pass_gives_the_same_logits_and_no_parameter_a_gradient() -> None:
    network, images = digits_network(), torch.rand(2, 1, 16, 16).requires_grad_()
    logits = constant_pass(network, images)
    assert torch.equal(logits, network(images))
    logits.sum().backward()
    assert images.grad is not None
    assert all(parameter.grad is None for parameter in network.parameters())


# --- FT-SAM


def test_the_worst_shift_of_two_weights_by_hand() -> None:
    # w = (3, -1), g = (1, 2): w g = (3, -2), |w g| = sqrt(13), w^2 g = (9, 2)
    (shift,) = ascent([torch.tensor([3.0, -1.0])], [torch.tensor([1.0, 2.0])], radius=2.0)
    assert shift.tolist() == pytest.approx([18 / math.sqrt(13), 4 / math.sqrt(13)])


def test_all_weights_share_one_radius_and_none_of_the_shifts_inside_it_raises_the_loss_more() -> None:
    torch.manual_seed(0)
    weights, gradients = [torch.randn(3, 2), torch.randn(4)], [torch.randn(3, 2), torch.randn(4)]
    shifts = ascent(weights, gradients, radius=0.7)
    relative = torch.cat([(shift / weight).flatten() for shift, weight in zip(shifts, weights, strict=True)])
    assert relative.norm() == pytest.approx(0.7)
    flat_weights, flat_gradients = (torch.cat([t.flatten() for t in ts]) for ts in (weights, gradients))
    rise = sum((shift * gradient).sum() for shift, gradient in zip(shifts, gradients, strict=True))
    others = functional.normalize(torch.randn(200, 10), dim=1) * 0.7 * flat_weights
    assert rise > (others @ flat_gradients).max()


def test_without_a_gradient_nothing_is_shifted() -> None:
    (shift,) = ascent([torch.ones(2)], [torch.zeros(2)], radius=1.0)
    assert shift.tolist() == [0, 0]


# --- i-BAU


def test_the_implicit_gradient_of_a_quadratic_problem_by_hand() -> None:
    # inner: a d^2 / 2 - b t d, so d* = b t / a and dd*/dt = b / a. A descent step of rate r has the slopes
    # 1 - r a in d and r b in t; k terms of the series give (b / a) (1 - (1 - r a)^k)
    a, b, rate = 2.0, 3.0, 0.1
    delta, theta = torch.tensor(1.5, requires_grad=True), torch.tensor(1.0, requires_grad=True)
    slope = torch.tensor(0.7)  # of the outer loss in delta
    for steps, share in ((1, 0.2), (5, 1 - 0.8**5), (200, 1.0)):
        inner = a * delta**2 / 2 - b * theta * delta
        (found,) = implicit_gradient(inner, delta, [theta], slope, rate, steps)
        assert found.item() == pytest.approx(0.7 * b / a * share, rel=1e-4)


def test_a_parameter_that_the_inner_problem_does_not_see_gains_nothing() -> None:
    delta, unseen = torch.ones(2, requires_grad=True), torch.ones(3, requires_grad=True)
    (found,) = implicit_gradient(delta.square().sum(), delta, [unseen], torch.ones(2), 0.1, 2)
    assert found.tolist() == [0, 0, 0]


def test_the_universal_perturbation_raises_the_loss_and_stays_in_its_ball() -> None:
    network = digits_network()
    images = torch.rand(32, 1, 16, 16)
    labels = network(images).argmax(1)
    batches = [(images[:16], labels[:16]), (images[16:], labels[16:])]
    found = universal_perturbation(network, batches, rate=10.0, penalty=0.001, radius=2.0)
    assert found.shape == (1, 1, 16, 16)
    assert found.norm() <= 2.0 + 1e-5
    before, after = (functional.cross_entropy(network(images + d), labels) for d in (0.0, found))
    assert after > before + 0.1
    assert into_ball(torch.tensor([3.0, 4.0]), 1.0).tolist() == pytest.approx([0.6, 0.8])
    assert into_ball(torch.tensor([0.3, 0.4]), 1.0).tolist() == pytest.approx([0.3, 0.4])


def test_the_inner_loss_by_hand() -> None:
    loss = inner_loss(torch.zeros(1, 4), torch.tensor([2]), torch.tensor([[3.0, 4.0]]), 0.1)
    assert loss.item() == pytest.approx(2.5 - math.log(4))


# --- NAD


def test_attention_by_hand() -> None:
    # two channels on two places: sums of squares (1 + 4, 4 + 4 * 2) -> (5, 12), of length 13
    features = torch.tensor([[[1.0, -2.0], [2.0, math.sqrt(8)]]])
    assert attention(features, 2.0)[0].tolist() == pytest.approx([5 / 13, 12 / 13])
    teacher = torch.tensor([[[1.0, 0.0], [0.0, 0.0]]])
    loss = attention_loss([features, features], [teacher, features], [10.0, 20.0], 2.0)
    assert loss.item() == pytest.approx(10 * ((8 / 13) ** 2 + (12 / 13) ** 2) / 2)


def test_a_network_with_the_same_attention_loses_nothing_whatever_its_scale() -> None:
    features = torch.rand(3, 4, 5, 5)
    assert attention_loss([features], [7 * features], [1000.0], 2.0).item() == pytest.approx(0, abs=1e-6)


def test_a_stage_ends_where_feature_maps_shrink() -> None:
    assert stage_ends(digits_network(), (1, 16, 16), 2) == [
        *("features.relu1", "features.relu2", "features.relu3", "features.pool3")
    ]
    assert stage_ends(digits_network(), (1, 16, 16), 8) == ["features.relu1", "features.relu2"]
    residual = PreActResNet18((1, 16, 16), 3, **FACTS)
    ends = stage_ends(residual, (1, 16, 16), 2)
    assert len(ends) == 4
    assert ends[-1] == "relu"  # pooling to one place is left out
    assert residual.training
    resnet = TorchvisionClassifier((3, 32, 32), 10, [0.5] * 3, [0.25] * 3, "resnet18")
    assert stage_ends(resnet, (3, 32, 32), 8) == ["model.relu", "model.layer1.1.relu"]  # not the images


def test_features_are_taken_on_the_way_to_the_same_logits() -> None:
    network, images = digits_network(), torch.rand(2, 1, 16, 16)
    logits, (features,) = features_of(network, ["features.pool2"], images)
    assert torch.equal(logits, network(images))
    assert features.shape == (2, 8, 4, 4)
    assert not network.features.pool2._forward_hooks


# --- FST and D3


def test_the_head_is_the_linear_layer_that_gives_the_logits() -> None:
    assert find_head(DeepID((3, 55, 47), 160, [0.5] * 3, [0.25] * 3), (3, 55, 47)) == "output"
    assert find_head(BadNetsCNN((1, 28, 28), 10, **FACTS), (1, 28, 28)) == "fc2"
    with pytest.raises(ValueError, match="needs a network whose logits are a linear layer's outputs"):
        find_head(nn.Sequential(nn.Flatten(), nn.Linear(4, 3), nn.Tanh()), (1, 2, 2))
    assert find_head(nn.Sequential(nn.Flatten(), Standardised(), nn.Linear(4, 3)), (1, 2, 2)) == "2"


class Standardised(nn.Module):
    """Each image less its mean, over its spread: an empty one has none."""

    def forward(self, images: Tensor) -> Tensor:
        return (images - images.mean(1, keepdim=True)) / images.std(1, keepdim=True)

    with pytest.raises(ValueError, match=r"weight of the head, '1', is computed from others"):
        find_head(nn.Sequential(nn.Flatten(), weight_norm(nn.Linear(4, 3))), (1, 2, 2))


@pytest.mark.parametrize("start", ["redraw", "random", "opposite", "keep"])
def test_a_head_starts_on_the_sphere_of_its_old_norm(start: str) -> None:
    torch.manual_seed(1)
    head = nn.Linear(50, 4)
    head.bias.data.fill_(3.0)
    old = head.weight.detach().clone()
    start_head(head, start, torch.Generator().manual_seed(0))
    assert head.weight.norm().item() == pytest.approx(old.norm().item(), rel=1e-5)
    cosine = functional.cosine_similarity(head.weight.flatten(), old.flatten(), 0).item()
    assert cosine == pytest.approx({"keep": 1.0, "opposite": -1.0}.get(start, 0.0), abs=0.25)
    assert (head.bias.abs() <= 50**-0.5).all() == (start == "redraw")


def test_the_shift_losses_by_hand() -> None:
    weight, original = torch.tensor([[3.0, 0.0]]), torch.tensor([[0.0, 4.0]])
    assert shift_loss(weight, original, 0.5, 0.0).item() == 0
    assert shift_loss(original, original, 0.5, 0.0).item() == 8
    assert shift_loss(weight, original, 0.0, 2.0).item() == -10
    onto_sphere(weight, torch.tensor(6.0))
    assert weight.tolist() == [[6, 0]]


def test_at_the_old_weights_the_distance_has_a_gradient_that_is_a_number() -> None:
    weight = torch.ones(2, 2, requires_grad=True)
    shift_loss(weight, torch.ones(2, 2), 0.0, 1.0).backward()
    assert weight.grad is not None
    assert weight.grad.isfinite().all()


def test_an_image_under_the_ceiling_counts_nothing() -> None:
    logits = torch.tensor([[0.0, 0.0], [20.0, 0.0]], requires_grad=True)  # cross-entropies log 2 and 0
    labels = torch.tensor([0, 0])
    loss = clean_loss(logits, labels, 0.1)
    assert loss.item() == pytest.approx((math.log(2) - 0.1) / 2)
    loss.backward()
    assert logits.grad is not None
    assert not logits.grad[1].any()
    assert clean_loss(logits, labels, None).item() == pytest.approx(math.log(2) / 2)


# --- SAU


def test_the_divergence_of_two_predictions_is_between_0_and_log_2() -> None:
    one = torch.tensor([[0.0, 0.0], [60.0, 0.0], [1.0, 3.0]])
    other = torch.tensor([[0.0, 0.0], [0.0, 60.0], [2.0, 1.0]])
    found = divergence(one, other)
    p, q = one.softmax(-1), other.softmax(-1)
    middle = (p + q) / 2
    by_definition = ((p * (p / middle).log()).sum(-1) + (q * (q / middle).log()).sum(-1)) / 2
    assert found[:2].tolist() == pytest.approx([0, math.log(2)], abs=1e-6)
    assert found[2].item() == pytest.approx(by_definition[2].item(), rel=1e-5)
    assert torch.allclose(found, divergence(other, one))


def test_what_the_search_still_pushes_by_hand() -> None:
    # image 0: shared (both went from 0 to 1); 1: only the repaired one left; 2: both left, apart
    repaired = torch.tensor([[0.0, 5.0, 0.0], [0.0, 5.0, 0.0], [0.0, 5.0, 0.0]])
    suspect = torch.tensor([[0.0, 4.0, 0.0], [4.0, 0.0, 0.0], [0.0, 0.0, 4.0]])
    zeros = torch.zeros(3, dtype=torch.long)
    loss, shared = search_loss(repaired, suspect, zeros, (zeros, zeros), adversarial=0.5, agreement=2.0)
    assert shared.tolist() == [True, False, False]
    entropy = functional.cross_entropy(suspect[1:2], zeros[:1])
    apart = divergence(repaired[1:], suspect[1:]).sum()
    assert loss.item() == pytest.approx(((2 * apart - 0.5 * entropy / 2) / 3).item(), rel=1e-5)


def test_the_search_asks_for_clean_labels_once_and_for_no_parameters_gradient() -> None:
    network, suspect = digits_network(0), digits_network(1)
    images, labels = torch.rand(6, 1, 16, 16), torch.arange(6)
    passes: list[bool] = []
    suspect.register_forward_hook(lambda _, __, output: passes.append(output.requires_grad))
    suspect.head.weight.register_hook(lambda _: pytest.fail("a parameter's gradient was built"))
    found = shared_perturbation(
        network, suspect, images, labels, radius=0.2, step=0.2, steps=4, adversarial=0.01, agreement=1.0
    )
    assert found.abs().max() <= 0.2
    assert not found.requires_grad
    assert passes == [False, *[True] * (len(passes) - 1)]
    assert 2 <= len(passes) <= 5
    assert all(parameter.grad is None for net in (network, suspect) for parameter in net.parameters())


def test_the_search_for_a_shared_mistake_by_hand() -> None:
    # logits (0, x1 - x2 + x3 - x4 - 0.3): class 0 for a grey image. From +0.2 everywhere one step of 0.2
    # leads to (0.2, 0, 0.2, 0), where the second logit is 0.1: both err alike, and the search is over
    def linear() -> nn.Module:
        network = nn.Sequential(nn.Flatten(), nn.Linear(4, 2))
        network[1].weight.data.copy_(torch.tensor([[0.0] * 4, [1.0, -1.0, 1.0, -1.0]]))
        network[1].bias.data.copy_(torch.tensor([0.0, -0.3]))
        return network

    images, labels = torch.full((2, 1, 2, 2), 0.5), torch.tensor([0, 0])
    found = shared_perturbation(
        linear(), linear(), images, labels, radius=0.2, step=0.2, steps=5, adversarial=0.01, agreement=1.0
    )
    assert torch.allclose(found, torch.tensor([0.2, 0.0, 0.2, 0.0]).view(1, 1, 2, 2).expand(2, 1, 2, 2))


def test_the_shared_risk_by_hand() -> None:
    # image 0: the suspect goes from 0 to 1, where the repaired one puts 1/2; 1: it errs as it did before;
    # 2: it is right
    repaired = torch.tensor([[0.0, 0.0], [0.0, 9.0], [0.0, 9.0]])
    suspect = torch.tensor([[0.0, 1.0], [0.0, 1.0], [0.0, 1.0]])
    labels, clean = torch.tensor([0, 0, 1]), torch.tensor([0, 1, 0])
    assert shared_risk(repaired, suspect, labels, clean).item() == pytest.approx(math.log(2) / 3)


def test_the_shared_risk_of_a_sure_mistake_is_finite_and_has_a_gradient() -> None:
    repaired = torch.tensor([[0.0, 80.0, 0.0]], requires_grad=True)
    risk = shared_risk(repaired, torch.tensor([[0.0, 1.0, 0.0]]), torch.tensor([0]), torch.tensor([0]))
    risk.backward()
    assert risk.item() == pytest.approx(80 - math.log(2), rel=1e-5)
    assert repaired.grad is not None
    assert repaired.grad[0, 1].item() == pytest.approx(1.0, rel=1e-4)
