"""Lightning modules: each resumes from a checkpoint that holds plain values only."""

from pathlib import Path
from typing import Any

import pytest
import torch
from pytorch_lightning.callbacks import LambdaCallback

from finepruning.callbacks import PruneChannels, PruneLipschitz
from finepruning.data import AttackerData, ImageSet
from finepruning.modules import (
    ANPClassifier,
    BackdooredClassifier,
    Classifier,
    CleanClassifier,
    FinePrunedClassifier,
    PrunedClassifier,
)
from finepruning.pipeline.analysis import score_curve
from finepruning.pruning import (
    channel_count,
    mean_activations,
    prune_order,
    pruned_channels,
    set_pruned,
)
from finepruning.repair.ladder import correct
from tests.fits import KINDS, LAYER, OPTIONS, SHAPE, TRAINING, build, fit, learned, network, states


@pytest.mark.parametrize("kind", KINDS)
def test_a_resumed_training_ends_where_an_unbroken_one_does(
    kind: type[Classifier], digits: ImageSet, tmp_path: Path
) -> None:
    whole, data, callbacks = build(kind, digits)
    fit(whole, data, callbacks, tmp_path, epochs=3, stop=3)
    half, data, callbacks = build(kind, digits)
    fit(half, data, callbacks, tmp_path, epochs=3, stop=1)
    resumed, data, callbacks = build(kind, digits)
    fit(resumed, data, callbacks, tmp_path, epochs=3, stop=3, ckpt_path=str(tmp_path / "last.ckpt"))
    assert all(torch.equal(value, whole.state_dict()[name]) for name, value in resumed.state_dict().items())


def test_a_resumed_tuning_keeps_what_its_first_attempt_pruned(digits: ImageSet, tmp_path: Path) -> None:
    networks = []
    for stops in ([3], [1, 3]):
        for stop in stops:
            module, data, _ = build(FinePrunedClassifier, digits)
            past = tmp_path / "last.ckpt" if stop != stops[0] else None
            fit(module, data, [PruneLipschitz(0.5)], tmp_path, epochs=3, stop=stop, ckpt_path=past)
        networks.append(states(module))
    pruned = [int((value == 0).sum()) for name, value in networks[0].items() if name.endswith("channel_mask")]
    assert sum(pruned) > 0
    assert all(torch.equal(value, networks[1][name]) for name, value in networks[0].items())


@pytest.mark.parametrize("kind", KINDS)
def test_a_checkpoint_holds_nothing_that_runs_code(
    kind: type[Classifier], digits: ImageSet, tmp_path: Path
) -> None:
    module, data, callbacks = build(kind, digits)
    fit(module, data, callbacks, tmp_path, epochs=3, stop=1)
    kept = torch.load(tmp_path / "last.ckpt", weights_only=True)
    values = kept["hyper_parameters"].values()
    assert kept["hyper_parameters"]["learning_rate"] == (TRAINING | OPTIONS.get(kind, {}))["learning_rate"]
    assert all(isinstance(value, bool | int | float | str | list | tuple | None) for value in values)


@pytest.mark.parametrize("kind", [kind for kind in KINDS if issubclass(kind, FinePrunedClassifier)])
def test_what_is_left_is_the_repaired_network_with_its_channels_silent(
    kind: type[Classifier], digits: ImageSet, tmp_path: Path
) -> None:
    module, data, callbacks = build(kind, digits)
    before = {name: value.detach().clone() for name, value in module.network.named_parameters()}
    fit(module, data, callbacks, tmp_path, epochs=3, stop=3)
    pruning = callbacks[0]
    gone = {channel.number for channel in pruning.order[: pruning.channels_pruned]}
    assert gone
    assert set(pruned_channels(module.network)[LAYER]) >= gone
    after = dict(module.network.named_parameters())
    assert all(parameter.requires_grad for parameter in after.values())
    tuned = [name for name, value in before.items() if not torch.equal(after[name], value)]
    assert tuned == ([] if kind is ANPClassifier else list(before))  # which learns masks alone


def test_pruning_alone_changes_no_weight(digits: ImageSet, tmp_path: Path) -> None:
    _, data, callbacks = build(PrunedClassifier, digits)
    module = PrunedClassifier(network(learned()), [LAYER], SHAPE)
    before = states(module)
    fit(module, data, callbacks, tmp_path, epochs=0, stop=0)
    changed = [name for name, value in states(module).items() if not torch.equal(value, before[name])]
    assert changed == [f"{LAYER}.channel_mask"]


@pytest.mark.parametrize(
    ("schedule", "peak_at", "first", "last"),
    [("one_cycle", 0.25, 0.04, 0.02), ("cosine", 0.0, 1.0, 0.02), ("constant", 0.0, 1.0, 1.0)],
)
def test_the_learning_rate_moves_with_every_batch_and_ends_where_it_should(
    schedule: Any, peak_at: float, first: float, last: float, digits: ImageSet, tmp_path: Path
) -> None:
    rates: list[float] = []
    note = LambdaCallback(
        on_train_batch_start=lambda trainer, *_: rates.append(trainer.optimizers[0].param_groups[0]["lr"])
    )
    module = CleanClassifier(network(), learning_rate=0.1, schedule=schedule)
    data = AttackerData(digits.subset(torch.arange(640)), [digits], 64, 1)
    fit(module, data, [note], tmp_path, epochs=4, stop=4)
    assert len(rates) == 40  # ten batches an epoch
    assert max(rates) == pytest.approx(0.1)
    assert rates.index(max(rates)) == round(40 * peak_at)
    assert rates[0] == pytest.approx(0.1 * first)
    assert rates[-1] <= 0.1 * last


def test_a_resumed_fit_does_not_prune_twice(
    digits: ImageSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    half, data, callbacks = build(FinePrunedClassifier, digits)
    fit(half, data, callbacks, tmp_path, epochs=3, stop=1)
    pruned = pruned_channels(half.network)
    monkeypatch.setattr(
        "finepruning.callbacks.prune.prune_order", lambda *_, **__: pytest.fail("pruned again")
    )
    resumed, data, callbacks = build(FinePrunedClassifier, digits)
    fit(resumed, data, callbacks, tmp_path, epochs=3, stop=3, ckpt_path=str(tmp_path / "last.ckpt"))
    assert pruned[LAYER]
    assert pruned_channels(resumed.network) == pruned


@pytest.mark.parametrize(
    "limit", [{"max_drop": 0.3}, {"prune_rate": 0.25}, {"prune_count": 2, "order": "random"}]
)
def test_what_was_pruned_before_stays_so_and_the_curve_is_that_of_the_rest(
    limit: dict[str, Any], digits: ImageSet, tmp_path: Path
) -> None:
    module, data, _ = build(PrunedClassifier, digits)
    set_pruned(module.network, LAYER, [1, 2, 5, 7])
    callback = PruneChannels(**limit)
    fit(module, data, [callback], tmp_path, epochs=0, stop=1)
    pruned = pruned_channels(module.network)[LAYER]
    assert {1, 2, 5, 7} < set(pruned)
    channels = channel_count(module.network, LAYER, SHAPE)
    assert len(callback.curve) - 1 == channels - 4
    assert len(pruned) - 4 == callback.channels_pruned
    if "prune_rate" in limit:
        assert callback.channels_pruned == (channels - 4) // 4
    told = callback.curve[callback.channels_pruned].validation
    assert int(correct(module.network.eval(), data.validation[0].batches()).sum()) == told.hits


def test_channels_are_ranked_on_the_images_to_validate_with(digits: ImageSet, tmp_path: Path) -> None:
    module, data, _ = build(PrunedClassifier, digits)
    ones = data.validation[0].subset((data.validation[0].labels == 1).nonzero().squeeze(1))
    data.validation[0] = ones  # unlike those to tune on
    expected, other = (
        prune_order(mean_activations(module.network, [LAYER], (images for images, _ in some.batches())))
        for some in (ones, data.training)
    )
    callback = PruneChannels(max_drop=0.1)
    fit(module, data, [callback], tmp_path, epochs=0, stop=1)
    assert callback.order == expected != other


def test_a_layer_that_is_pruned_whole_can_lose_nothing_more(digits: ImageSet, tmp_path: Path) -> None:
    module, data, _ = build(PrunedClassifier, digits)
    set_pruned(module.network, LAYER, range(channel_count(module.network, LAYER, SHAPE)))
    callback = PruneChannels(max_drop=0.5)
    fit(module, data, [callback], tmp_path, epochs=0, stop=1)
    assert (len(callback.curve), callback.channels_pruned) == (1, 0)
    assert score_curve(module.network, callback.state_dict(), digits, None, "cpu") == []


def test_pruned_channels_stay_silent_while_tuning(digits: ImageSet, tmp_path: Path) -> None:
    module, data, callbacks = build(FinePrunedClassifier, digits)
    fit(module, data, callbacks, tmp_path, epochs=3, stop=3)
    images, _ = next(digits.batches(64))
    outputs: list[torch.Tensor] = []
    module.network.get_submodule(LAYER).register_forward_hook(lambda _, __, output: outputs.append(output))
    module.eval()(images)
    silent = pruned_channels(module.network)[LAYER]
    assert silent
    assert not outputs[0][:, silent].any()
    assert outputs[0].any()


def test_anp_takes_convolutions_that_have_neither_bias_nor_batchnorm(
    digits: ImageSet, tmp_path: Path
) -> None:
    plain = torch.nn.Sequential(
        *(torch.nn.Conv2d(1, 6, 3, bias=False), torch.nn.ReLU(), torch.nn.MaxPool2d(4)),
        *(torch.nn.Flatten(), torch.nn.Linear(54, 10)),
    )
    _, data, _ = build(FinePrunedClassifier, digits)
    module = ANPClassifier(plain, [], SHAPE, learning_rate=0.1)
    fit(module, data, [], tmp_path, epochs=1, stop=1)
    assert any((value != 1).any() for value in module.values)


def test_training_learns(digits: ImageSet, tmp_path: Path) -> None:
    module, data, callbacks = build(CleanClassifier, digits)
    fit(module, data, callbacks, tmp_path, epochs=8, stop=8)
    images, labels = next(digits.batches(1000))
    assert (module.eval()(images).argmax(1) == labels).float().mean() > 0.9


@pytest.mark.parametrize(("limit", "shortened"), [(0.05, True), (None, False)])
def test_no_gradient_is_longer_than_asked(
    limit: float | None, shortened: bool, digits: ImageSet, tmp_path: Path
) -> None:
    lengths: list[torch.Tensor] = []

    def note(module: Classifier, optimizer: torch.optim.Optimizer) -> None:
        gradients = [value.grad for value in module.parameters() if value.grad is not None]
        lengths.append(torch.nn.utils.get_total_norm(gradients))

    module = CleanClassifier(network(), **TRAINING, gradient_clip=limit)
    data = AttackerData(digits, [digits], 64, 1)
    fit(module, data, [LambdaCallback(on_before_zero_grad=lambda _, *rest: note(*rest))], tmp_path, 2, 2)
    assert (max(lengths) <= 0.05 * 1.001) == shortened


def test_pruning_refuses_other_data_than_the_defenders(digits: ImageSet, tmp_path: Path) -> None:
    module, _, callbacks = build(PrunedClassifier, digits)
    _, attacker, _ = build(BackdooredClassifier, digits)
    with pytest.raises(TypeError, match="PruneChannels sees the defender's images only"):
        fit(module, attacker, callbacks, tmp_path, epochs=1, stop=1)


def test_pruning_refuses_a_network_without_masks(digits: ImageSet, tmp_path: Path) -> None:
    module, _, _ = build(CleanClassifier, digits)
    _, defender, callbacks = build(PrunedClassifier, digits)
    with pytest.raises(TypeError, match="PruneChannels needs a PrunedClassifier, not a CleanClassifier"):
        fit(module, defender, callbacks, tmp_path, epochs=1, stop=1)
