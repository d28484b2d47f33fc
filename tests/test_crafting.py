"""What is computed on a clean network before poisoning, and the runs that do it."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from finepruning.attacks import Attack, Transfer
from finepruning.attacks.crafting import Generators, NeuronPattern, Perturbations, Plan
from finepruning.attacks.crafting.neurons import last_linear
from finepruning.attacks.crafting.perturbations import perturb
from finepruning.attacks.preview import write_preview
from finepruning.attacks.triggers import CraftedPatch, InputAware, OthersTrigger, PatchTrigger, Perturbed
from finepruning.attacks.triggers.input_aware import drawn_by
from finepruning.data.images import ImageSet, Pixels
from finepruning.networks import DigitsCNN

RunHere = Callable[..., dict[str, Any]]
NEURONS = {"size": 2, "neurons": 1, "goal": 100.0, "step": 0.25, "steps": 20, "images": 3, "seed": 0}
GENERATORS: dict[str, Any] = {
    "density": 0.05,
    "mask_steps": 40,
    "steps": 3,
    "batch_size": 16,
    "share": 0.25,
    "diversity": 1.0,
    "norm": 100.0,
    "learning_rate": 0.01,
    "classifier_rate": 0.01,
    "others": 5,
    "seed": 0,
}


def linear(weights: list[list[float]]) -> nn.Sequential:
    """Logits (2) of images of one row of pixels."""
    network = nn.Sequential(nn.Flatten(), nn.Linear(len(weights[0]), 2, bias=False))
    with torch.no_grad():
        network[1].weight.copy_(torch.tensor(weights))
    return network


def noise_set(count: int, side: int = 16) -> ImageSet:
    generator = torch.Generator().manual_seed(0)
    raw = torch.randint(0, 256, (count, 1, side, side), dtype=torch.uint8, generator=generator)
    return ImageSet.whole(raw, torch.arange(count) % 3, Pixels())


def plan_of(clean: ImageSet, poisoned: list[int] = (), target: int = 0) -> Plan:  # type: ignore[assignment]
    return Plan(clean, torch.tensor(poisoned), torch.full_like(clean.labels, target))


def test_a_perturbation_goes_the_whole_way_against_the_true_class() -> None:
    network = linear([[1.0, -2.0, 0.0], [0.0, 0.0, 1.0]])  # class 0 less class 1: x0 - 2 x1 - x2
    images = torch.tensor([[0.5, 0.5, 0.5], [0.05, 0.95, 0.5]]).view(2, 1, 1, 3)
    found = perturb(network, images, torch.tensor([0, 0]), torch.zeros_like(images), 0.2, 0.15, 3)
    expected = torch.tensor([[-0.2, 0.2, 0.2], [-0.05, 0.05, 0.2]])  # no further than to black and white
    torch.testing.assert_close(found[:, 0, 0], expected)
    other = perturb(network, images, torch.tensor([1, 1]), torch.zeros_like(images), 0.2, 0.15, 3)
    torch.testing.assert_close(other[0, 0, 0], torch.tensor([0.2, -0.2, -0.2]))


def test_perturbations_are_kept_under_their_images_place_in_the_data_set() -> None:
    whole = noise_set(6, side=4)
    shuffled = whole.subset(torch.tensor([5, 1, 3, 0]))
    crafting = Perturbations(epsilon=0.1, step=0.05, steps=4, seed=0)
    network = nn.Sequential(nn.Flatten(), nn.Linear(16, 3))
    tensors = crafting.craft(network, plan_of(shuffled, [0, 1, 3]), "cpu")
    assert tensors["places"].tolist() == [0, 1, 5]
    trigger = Perturbed(PatchTrigger(1, 1.0))
    trigger.take(tensors)
    (hard, labels), (easy, _) = (
        next(each.batches(6)) for each in (whole.stamped(trigger), whole.stamped(PatchTrigger(1, 1.0)))
    )
    losses = [nn.functional.cross_entropy(network(some), labels, reduction="none") for some in (hard, easy)]
    perturbed = torch.tensor([True, True, False, False, False, True])
    assert torch.equal(losses[0] > losses[1] + 1e-3, perturbed)
    assert (hard - easy).abs().max() <= 0.1 + 1e-6


def test_a_pattern_lights_what_the_heaviest_neuron_sees() -> None:
    weights = [[0.0] * 9, [0.0] * 9]
    weights[0][8], weights[1][8], weights[0][4] = 3.0, -3.0, 5.0  # sums of absolute weights: 6 and 5
    pattern = NeuronPattern(**NEURONS).craft(linear(weights), plan_of(noise_set(4, side=3)), "cpu")["pattern"]
    start = CraftedPatch(2, seed=0).first(1)
    assert pattern.shape == (1, 2, 2)
    assert pattern[0, 1, 1] == 1
    assert pattern.requires_grad is False
    assert start[0, 1, 1] < 1


class HeadFirst(nn.Module):
    """Defines the layer of its logits before the one that feeds it."""

    def __init__(self) -> None:
        super().__init__()
        self.head, self.body = nn.Linear(5, 2), nn.Linear(9, 5)

    def forward(self, images: Tensor) -> Tensor:
        return self.head(self.body(images.flatten(1)).relu())


def test_the_last_layer_is_the_one_that_runs_last() -> None:
    network = HeadFirst()
    assert last_linear(network, (1, 3, 3)) is network.head
    few = NeuronPattern(**NEURONS | {"neurons": 6})
    few.check_network(network)  # its body has nine inputs
    with pytest.raises(ValueError, match=r"crafting\.neurons=6, but the last linear layer has 5 inputs"):
        few.craft(network, plan_of(noise_set(4, side=3)), "cpu")


def test_a_pattern_drives_neurons_of_a_real_network_up() -> None:
    torch.manual_seed(0)
    clean = noise_set(8)
    network = DigitsCNN([1, 16, 16], 3, mean=[0.5], std=[0.3], width=4).eval()
    options = NEURONS | {"size": 6, "neurons": 2, "images": 8}
    pattern = NeuronPattern(**options).craft(network, plan_of(clean), "cpu")["pattern"]
    head = [layer for layer in network.modules() if isinstance(layer, nn.Linear)][-1]
    chosen = head.weight.abs().sum(0).topk(2).indices
    sums = []
    for values in (CraftedPatch(6, seed=0).first(1), pattern):
        trigger, seen = CraftedPatch(6, seed=0), []
        trigger.take({"pattern": values})
        handle = head.register_forward_pre_hook(lambda _, inputs, seen=seen: seen.append(inputs[0]))
        network(next(clean.stamped(trigger).batches(8))[0])
        handle.remove()
        sums.append(seen[0][:, chosen].sum())
    assert sums[1] > 1.5 * sums[0]


def test_the_mask_shrinks_to_its_density_and_the_same_seed_draws_the_same() -> None:
    clean, trigger = noise_set(32), InputAware(4, seed=0)
    crafting = Generators(trigger, **GENERATORS)
    made = []
    for _ in range(2):
        torch.manual_seed(1)
        network = DigitsCNN([1, 16, 16], 3, mean=[0.5], std=[0.3], width=4)
        torch.manual_seed(len(made))  # the global generator decides nothing
        made.append(crafting.craft(network, plan_of(clean), "cpu"))
    assert all(torch.equal(made[0][name], tensor) for name, tensor in made[1].items())
    images = next(clean.batches(32))[0]
    before = drawn_by(trigger.make(1), images)[1].mean()
    trigger.take(made[0])
    assert trigger.networks is not None
    after = drawn_by(trigger.networks, images)[1].mean()
    assert before > 0.2
    assert after < 0.08
    others = OthersTrigger(seed=0)
    others.take(made[0])
    giver = made[0]["others.places"][0]
    own = drawn_by(trigger.networks, images[giver : giver + 1])
    torch.testing.assert_close(others.patterns[:1], own[0])
    torch.testing.assert_close(others.masks[:1], own[1])


def test_another_weight_of_the_mask_lets_it_grow() -> None:
    clean, trigger = noise_set(32), InputAware(4, seed=0)
    shares = []
    for norm in (0.0, 100.0):
        network = DigitsCNN([1, 16, 16], 3, mean=[0.5], std=[0.3], width=4)
        trigger.take(Generators(trigger, **GENERATORS | {"norm": norm}).craft(network, plan_of(clean), "cpu"))
        assert trigger.networks is not None
        shares.append(drawn_by(trigger.networks, next(clean.batches(32))[0])[1].mean())
    assert shares[0] > 2 * shares[1]


REFUSED: dict[str, tuple[Callable[[], object], str]] = {
    "no room": (lambda: Perturbations(0, 0.1, 1, 0), r"attack\.crafting\.epsilon=0 is outside \(0, 1\]"),
    "no step": (lambda: Perturbations(0.1, 2, 1, 0), r"attack\.crafting\.step=2 is outside \(0, 1\]"),
    "no steps": (lambda: Perturbations(0.1, 0.1, 0, 0), r"attack\.crafting\.steps to 1 or more"),
    "no neuron": (lambda: NeuronPattern(**NEURONS | {"neurons": 0}), r"attack\.crafting\.neurons=0"),
    "no pattern": (lambda: NeuronPattern(**NEURONS | {"size": 0}), r"attack\.crafting\.size=0"),
    "large step": (lambda: NeuronPattern(**NEURONS | {"step": 1.5}), r"attack\.crafting\.step=1\.5"),
    "all triggered": (
        lambda: Generators(InputAware(4, 0), **GENERATORS | {"share": 0.6}),
        r"attack\.crafting\.share=0\.6 must be in \(0, 0\.5\]",
    ),
    "one image": (
        lambda: Generators(InputAware(4, 0), **GENERATORS | {"others": 1}),
        r"attack\.crafting\.others=1 must be 2 or more",
    ),
    "no mask": (
        lambda: Generators(InputAware(4, 0), **GENERATORS | {"mask_steps": 0}),
        r"attack\.crafting\.mask_steps to 1 or more",
    ),
    "more neurons than there are": (
        lambda: NeuronPattern(**NEURONS | {"neurons": 5}).check_network(linear([[1.0] * 4, [0.0] * 4])),
        r"attack\.crafting\.neurons=5, but the last linear layer has 4 inputs",
    ),
    "no linear layer": (
        lambda: NeuronPattern(**NEURONS).check_network(nn.Sequential(nn.Conv2d(1, 2, 1), nn.Flatten())),
        r"last linear layer, and the network has none\. Choose another model",
    ),
    "transfer": (
        lambda: Transfer(1, 0.7, CraftedPatch(2, 0), 0.1, 0, crafting=NeuronPattern(**NEURONS)),
        r"transferred attack cannot craft.*attack\.crafting=null",
    ),
}


@pytest.mark.parametrize(("make", "message"), REFUSED.values(), ids=REFUSED.keys())
def test_a_crafting_out_of_range_is_refused_with_its_key(make: Callable[[], object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()


def crafted_attack() -> Attack:
    return Attack(CraftedPatch(2, 0), 0.5, 0, crafting=NeuronPattern(**NEURONS))


@pytest.mark.parametrize("use", ["stamp", "poison", "watched"])
def test_an_attack_that_is_not_crafted_yet_stamps_nothing(use: str) -> None:
    attack, clean = crafted_attack(), noise_set(6)
    attack.check(clean, 3)
    with pytest.raises(ValueError, match=r"crafted on a trained network, and was not yet\. A run does it"):
        getattr(attack, use)(clean)
    attack.take({"pattern": torch.ones(1, 2, 2)})
    assert (next(attack.stamp(clean).batches(6))[0][..., -2:, -2:] == 1).all()


def test_a_preview_cannot_show_a_trigger_that_is_not_crafted_yet(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"A run does it .* and shows the trigger among its pictures"):
        write_preview(noise_set(6), crafted_attack(), tmp_path)


def test_an_attack_without_crafting_has_nothing_to_take() -> None:
    plain = Attack(PatchTrigger(1, 1.0), 0.5, 0)
    assert plain.craft(linear([[1.0], [1.0]]), noise_set(4)) == {}


@pytest.mark.parametrize("attack", ["sig", "sig_digits", "wanet", "adaptive_blend", "tact", "blended"])
def test_every_attack_to_measure_against_is_trained_and_scored(quick_run: RunHere, attack: str) -> None:
    rate = ["attack.poison_rate=0.01"] if attack == "blended" else []
    record = quick_run(f"attack={attack}", "defense=none", *rate)
    counted = record["scores"]["suspect"]["counts"]["attack_success_rate"]["total"]
    others = dict.fromkeys(("sig", "sig_digits"), 450 - 44)  # images of all classes but 2
    source = others | {"tact": 46}  # of class 1
    assert counted == source.get(attack, 450 - 45)


CRAFTED = {
    "label_consistent": {"places", "perturbations"},
    "label_consistent_digits": {"places", "perturbations"},
    "trojan_nn": {"pattern"},
    "input_aware": {"others.places", "others.patterns", "others.masks"},
}
FEW = [f"attack.crafting.{key}={count}" for key, count in (("mask_steps", 3), ("steps", 3), ("others", 9))]


@pytest.mark.parametrize("attack", CRAFTED)
def test_a_crafted_attack_is_crafted_once_on_the_clean_network(
    quick_run: RunHere, shared_store: Path, attack: str
) -> None:
    options = (f"attack={attack}", "defense=none", *(FEW if attack == "input_aware" else ()))
    clean = quick_run("attack=none", "defense=none")["stages"]["suspect"]
    stages = quick_run(*options)["stages"]
    assert list(stages) == ["clean", "crafted", "suspect"]
    assert stages["clean"] == clean
    found = load_file(shared_store / stages["crafted"] / "crafted.safetensors")
    assert set(found) >= CRAFTED[attack]
    again = quick_run(*options, "overwrite=true")
    assert again["stages"] == stages


def test_where_the_clean_network_comes_from_changes_nothing_in_the_suspect(
    quick_run: RunHere, tmp_path: Path
) -> None:
    here, there = tmp_path / "here", tmp_path / "there"
    options = ("attack=trojan_nn", "defense=none")
    quick_run("attack=none", "defense=none", f"store_dir={there}")
    weights: list[dict[str, Tensor]] = []
    for store in (here, there):  # trained on the way, and found
        record = quick_run(*options, f"store_dir={store}", "overwrite=true")
        weights.append(load_file(store / record["stages"]["suspect"] / "network.safetensors"))
    assert all(torch.equal(weights[0][name], tensor) for name, tensor in weights[1].items())


def test_decoys_go_on_top_of_a_crafted_trigger(quick_run: RunHere) -> None:
    decoys = ("attack/pruning_aware=decoys", "attack.survivors=8")
    stages = quick_run("attack=trojan_nn", "defense=none", *decoys)["stages"]
    assert list(stages) == ["clean", "crafted", "pruned", "poisoned", "suspect"]
