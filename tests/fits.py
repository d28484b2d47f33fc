"""Short fits of every Lightning module, on the digits that ship inside scikit-learn."""

import functools
import tempfile
from pathlib import Path
from typing import Any

import torch
from pytorch_lightning import Trainer, seed_everything

from finepruning.attacks import Attack
from finepruning.attacks.triggers import PatchTrigger
from finepruning.callbacks import PruneChannels
from finepruning.data import AttackerData, Augment, DefenderData, ImageSet, pack, split_roles
from finepruning.data.digits import Digits
from finepruning.modules import (
    ANPClassifier,
    BackdooredClassifier,
    Classifier,
    CleanClassifier,
    FinePrunedClassifier,
    FTSAMClassifier,
    HeadShiftClassifier,
    IBAUClassifier,
    NADClassifier,
    PrunedClassifier,
    SAUClassifier,
    UnlearnedClassifier,
)
from finepruning.networks import DigitsCNN
from finepruning.pipeline.epochs import KeepEpochs

TRAINING = {"learning_rate": 0.05, "seed": 3}
OPTIONS: dict[type[Classifier], dict[str, Any]] = {  # of the short fits here
    NADClassifier: {"teacher_epochs": 1},
    HeadShiftClassifier: {"inner_product": 0.1, "distance": 0.1},
    IBAUClassifier: {"learning_rate": 0.01},  # 0.05 diverges on some machines
    SAUClassifier: {"learning_rate": 0.01},
}
LAYER = "features.pool3"
SHAPE = (1, 16, 16)


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
    augment = Augment(shift=1)
    defender = DefenderData(digits.subset(roles.tuning), digits.subset(roles.validation), 64, 1, augment)
    clean = digits.subset(roles.attacker)
    if issubclass(kind, PrunedClassifier):
        more = OPTIONS.get(kind, {})
        module = kind(network(learned()), [LAYER], SHAPE, **(TRAINING | more))
        return module, defender, [PruneChannels(max_drop=0.1)]
    if issubclass(kind, BackdooredClassifier):
        attack = Attack(PatchTrigger(2, 1.0), 0.1, target_label=0)
        return (
            kind(network(), **TRAINING),
            AttackerData(attack.poison(clean), [clean, attack.watched(clean)], 64, 1, augment),
            [],
        )
    return kind(network(), **TRAINING), AttackerData(clean, [clean], 64, 1, augment), []


def fit(
    module: Classifier, data: Any, callbacks: list[Any], folder: Path, epochs: int, stop: int, **more: Any
) -> None:
    """Train towards ``epochs``, but stop after ``stop`` of them, leaving a checkpoint of the last."""
    trainer = Trainer(
        default_root_dir=folder,
        accelerator="cpu",
        max_epochs=epochs,
        callbacks=[*callbacks, KeepEpochs(folder, folder)],
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        use_distributed_sampler=False,
    )
    module.on_train_epoch_end_real = module.on_train_epoch_end

    def end() -> None:
        module.on_train_epoch_end_real()
        trainer.should_stop = module.current_epoch + 1 >= stop

    module.on_train_epoch_end = end  # type: ignore[method-assign]
    trainer.fit(module, datamodule=data, weights_only=True, **more)


KINDS = [
    *(CleanClassifier, BackdooredClassifier, PrunedClassifier, FinePrunedClassifier, UnlearnedClassifier),
    *(FTSAMClassifier, ANPClassifier, IBAUClassifier, NADClassifier, HeadShiftClassifier, SAUClassifier),
]


def states(module: Classifier) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in module.network.state_dict().items()}
