"""Lightning modules: each resumes from a checkpoint that holds plain values only."""

import functools
import tempfile
from pathlib import Path
from typing import Any

import pytest
import torch
from pytorch_lightning import Trainer, seed_everything

from finepruning.attacks import Attack
from finepruning.attacks.triggers import PatchTrigger
from finepruning.callbacks import PruneChannels
from finepruning.data import AttackerData, DefenderData, ImageSet, pack, split_roles
from finepruning.data.digits import Digits
from finepruning.modules import (
    BackdooredClassifier,
    Classifier,
    CleanClassifier,
    FinePrunedClassifier,
    PrunedClassifier,
    UnlearnedClassifier,
)
from finepruning.networks import DigitsCNN
from finepruning.pruning import pruned_channels

TRAINING = {"learning_rate": 0.05, "seed": 3}
LAYER = "features.pool3"
SHAPE = (1, 16, 16)


@pytest.fixture(scope="module")
def digits(tmp_path_factory: pytest.TempPathFactory) -> ImageSet:
    packed = pack(Digits(size=16), tmp_path_factory.mktemp("data"))
    return ImageSet.whole(packed.train, packed.train_labels, packed.signal)


@functools.cache
def learned() -> dict[str, torch.Tensor]:
    """Return the weights of a network that knows the digits, so that pruning it costs accuracy."""
    with tempfile.TemporaryDirectory() as folder:
        packed = pack(Digits(size=16), Path(folder))
        images = ImageSet.whole(packed.train, packed.train_labels, packed.signal)
        module, data, _ = build(CleanClassifier, images)
        fit(module, data, [], Path(folder), epochs=8, stop=8)
    return module.network.state_dict()


def network(weights: dict[str, torch.Tensor] | None = None) -> DigitsCNN:
    seed_everything(0, verbose=False)
    result = DigitsCNN(SHAPE, 10, [0.3], [0.3], width=4)
    if weights:
        result.load_state_dict(weights)
    return result


def build(kind: type[Classifier], digits: ImageSet) -> tuple[Classifier, Any, list[Any]]:
    """Return a module, its data and its callbacks."""
    roles = split_roles(digits.labels, [str(k) for k in range(10)], 0.3, 0.5, 1)
    defender = DefenderData(digits.subset(roles.tuning), digits.subset(roles.validation), 64, 1)
    clean = digits.subset(roles.attacker)
    if issubclass(kind, PrunedClassifier):
        return kind(network(learned()), [LAYER], SHAPE, **TRAINING), defender, [PruneChannels(max_drop=0.1)]
    if issubclass(kind, BackdooredClassifier):
        attack = Attack(PatchTrigger(2, 1.0), 0.1, target_label=0)
        return (
            kind(network(), **TRAINING),
            AttackerData(attack.poison(clean), [clean, attack.watched(clean)], 64, 1),
            [],
        )
    return kind(network(), **TRAINING), AttackerData(clean, [clean], 64, 1), []


def fit(
    module: Classifier, data: Any, callbacks: list[Any], folder: Path, epochs: int, stop: int, **more: Any
) -> None:
    """Train towards ``epochs``, but stop after ``stop`` of them, leaving a checkpoint."""
    trainer = Trainer(
        default_root_dir=folder,
        accelerator="cpu",
        max_epochs=epochs,
        callbacks=callbacks,
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        enable_checkpointing=False,
        num_sanity_val_steps=0,
        use_distributed_sampler=False,
    )
    module.on_train_epoch_end_real = module.on_train_epoch_end

    def end() -> None:
        module.on_train_epoch_end_real()
        trainer.should_stop = module.current_epoch + 1 >= stop

    module.on_train_epoch_end = end  # type: ignore[method-assign]
    trainer.fit(module, datamodule=data, weights_only=True, **more)
    trainer.save_checkpoint(folder / "last.ckpt")


KINDS = [CleanClassifier, BackdooredClassifier, PrunedClassifier, FinePrunedClassifier, UnlearnedClassifier]


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


@pytest.mark.parametrize("kind", KINDS)
def test_a_checkpoint_holds_nothing_that_runs_code(
    kind: type[Classifier], digits: ImageSet, tmp_path: Path
) -> None:
    module, data, callbacks = build(kind, digits)
    fit(module, data, callbacks, tmp_path, epochs=1, stop=1)
    kept = torch.load(tmp_path / "last.ckpt", weights_only=True)
    values = kept["hyper_parameters"].values()
    assert kept["hyper_parameters"]["learning_rate"] == 0.05
    assert all(isinstance(value, bool | int | float | str | list | tuple | None) for value in values)


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


def test_training_learns(digits: ImageSet, tmp_path: Path) -> None:
    module, data, callbacks = build(CleanClassifier, digits)
    fit(module, data, callbacks, tmp_path, epochs=8, stop=8)
    images, labels = next(digits.batches(1000))
    assert (module.eval()(images).argmax(1) == labels).float().mean() > 0.9


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
