"""What each tuner of a repair changes in a network, and what it leaves alone."""

from pathlib import Path
from typing import Any

import pytest
import torch
from pytorch_lightning import Callback, Trainer

from finepruning.data import AttackerData, ImageSet
from finepruning.modules import (
    ANPClassifier,
    Classifier,
    CleanClassifier,
    DivergedError,
    FinePrunedClassifier,
    FTSAMClassifier,
    HeadShiftClassifier,
    IBAUClassifier,
    NADClassifier,
    PrunedClassifier,
    SAUClassifier,
    UnlearnedClassifier,
)
from finepruning.repair.ladder import correct
from finepruning.repair.unlearning import perturb
from finepruning.stress import whole
from tests.fits import LAYER, OPTIONS, SHAPE, TRAINING, build, fit, learned, network, states


def test_a_parameter_that_nothing_uses_stays_as_it_is(digits: ImageSet, tmp_path: Path) -> None:
    module, data, _ = build(FTSAMClassifier, digits)
    module.network.unused = torch.nn.Parameter(torch.ones(3))
    fit(module, data, [], tmp_path, epochs=1, stop=1)
    assert module.network.unused.tolist() == [1, 1, 1]


def test_statistics_follow_the_first_pass_of_each_step_alone(digits: ImageSet, tmp_path: Path) -> None:
    module, data, _ = build(FTSAMClassifier, digits)
    fit(module, data, [], tmp_path, epochs=1, stop=1)
    steps = len(data.training) // data.batch_size
    seen = module.network.features.norm1.num_batches_tracked - learned()["features.norm1.num_batches_tracked"]
    assert seen == steps


def test_adversarial_pruning_changes_masks_alone_and_says_how_far_it_went(
    digits: ImageSet, tmp_path: Path
) -> None:
    module, data, _ = build(ANPClassifier, digits)
    module.hparams["max_drop"] = 1.0
    before = states(module)
    fit(module, data, [], tmp_path, epochs=1, stop=1)
    after = states(module)
    assert all(torch.equal(after[name], before[name]) for name in before if "channel_mask" not in name)
    assert all(((value >= 0) & (value <= 1)).all() for value in module.values)
    assert any((value < 1).any() for value in module.values)
    assert module.findings == {"threshold": 0.95}


@pytest.mark.parametrize(
    ("kind", "option", "one", "other"),
    [
        (FTSAMClassifier, "radius", 2.0, 1e-9),
        (IBAUClassifier, "fixed_point_rate", 0.1, 1e-9),
        (NADClassifier, "betas", [1e3], [0.0]),
        (HeadShiftClassifier, "distance", 1.0, 0.0),
        (HeadShiftClassifier, "inner_product", 1.0, 0.0),
        (SAUClassifier, "shared", 1.0, 0.0),
        (ANPClassifier, "noise", 0.4, 1e-9),
        (UnlearnedClassifier, "weight", 0.5, 0.0),
    ],
)
def test_what_makes_a_defense_counts_in_its_training(
    kind: type[PrunedClassifier], option: str, one: Any, other: Any, digits: ImageSet, tmp_path: Path
) -> None:
    ends = []
    for value in (one, other):
        _, data, _ = build(kind, digits)
        options = TRAINING | OPTIONS.get(kind, {}) | {option: value}
        module = kind(network(learned()), [], SHAPE, **options)
        fit(module, data, [], tmp_path / str(value), epochs=2, stop=2)
        learnt = module.values if kind is ANPClassifier else module.network.parameters()
        ends.append(torch.cat([values.flatten().float() for values in learnt]))
    assert not torch.equal(*ends)


def test_unlearning_makes_the_network_right_under_its_perturbations(digits: ImageSet, tmp_path: Path) -> None:
    rights = []
    for weight in (0.0, 0.5):  # the pool is pushed either way
        _, data, _ = build(UnlearnedClassifier, digits)
        module = UnlearnedClassifier(network(learned()), [], SHAPE, learning_rate=0.01, seed=3, weight=weight)
        fit(module, data, [], tmp_path / str(weight), epochs=6, stop=6)
        (images, labels), places = whole(data.validation[0], "cpu"), range(len(module.patterns))
        right = [
            correct(module.network, [(perturb(images, module.patterns, torch.full_like(labels, k)), labels)])
            for k in places
        ]
        rights.append(torch.cat(right).float().mean())
    assert rights[1] > rights[0] + 0.05, rights


def test_adversarial_pruning_costs_at_most_its_budget(digits: ImageSet, tmp_path: Path) -> None:
    module, data, _ = build(ANPClassifier, digits)
    module.hparams["max_drop"] = 0.0
    for values in module.values:
        values.data.fill_(0.5)  # as if any channel were as bad as the others
    before = int(correct(module.network, data.validation[0].batches()).sum())
    fit(module.train(), data, [], tmp_path, epochs=1, stop=1)
    assert int(correct(module.network, data.validation[0].batches()).sum()) >= before


class LastStepAstray(Callback):
    """Leaves a weight infinite after the last step of an epoch, whose loss was computed before."""

    def on_train_batch_end(self, trainer: Trainer, pl_module: Classifier, *_: Any) -> None:
        if trainer.is_last_batch:
            pl_module.network.head.weight.data.fill_(torch.inf)


def test_a_training_whose_last_step_went_astray_has_diverged(digits: ImageSet, tmp_path: Path) -> None:
    module, data, _ = build(CleanClassifier, digits)
    with pytest.raises(DivergedError, match=r"weight head\.weight became no number in epoch 1 \(train\)"):
        fit(module, data, [LastStepAstray()], tmp_path, epochs=1, stop=1)


@pytest.mark.parametrize("option", [{"optimizer": "adamw"}, {"weight_decay": 0.5}, {"label_smoothing": 0.5}])
def test_an_option_of_training_changes_what_is_learned(
    option: dict[str, Any], digits: ImageSet, tmp_path: Path
) -> None:
    ends = []
    for name, more in (("plain", {}), ("with", option)):
        module = CleanClassifier(network(), **(TRAINING | more))
        fit(module, AttackerData(digits, [digits], 64, 1), [], tmp_path / name, epochs=1, stop=1)
        ends.append(module.network.head.weight.clone())
    assert not torch.equal(*ends)


def test_the_teacher_is_the_tuned_network_and_the_suspect_is_taught(digits: ImageSet, tmp_path: Path) -> None:
    tuned, data, callbacks = build(FinePrunedClassifier, digits)
    tuned.rate_scale = lambda done: 1.0  # type: ignore[method-assign]
    fit(tuned, data, callbacks, tmp_path, epochs=1, stop=1)
    module, data, callbacks = build(NADClassifier, digits)
    module.rate_scale = lambda done: 1.0  # type: ignore[method-assign]
    teachers = []
    module.teardown = lambda stage: teachers.append(module.teacher)  # type: ignore[method-assign]
    fit(module, data, callbacks, tmp_path, epochs=2, stop=2)
    (teacher,) = teachers
    assert all(torch.equal(value, states(tuned)[name]) for name, value in teacher.state_dict().items())
    assert not torch.equal(module.network.head.weight, teacher.head.weight)


def test_the_teachers_epochs_and_the_students_each_begin_at_the_peak() -> None:
    module = NADClassifier(network(), [], SHAPE, teacher_epochs=4, **TRAINING)
    module.trainer = Trainer(max_epochs=8, logger=False, accelerator="cpu", enable_checkpointing=False)
    rates = [module.rate_scale((epoch + part) / 8) for epoch in range(8) for part in (0.0, 0.9)]
    assert rates == pytest.approx([1, 1, 1, 1, 0.1, 0.1, 0.1, 0.1] * 2)


def test_a_teacher_that_leaves_no_epoch_to_distill_in_is_refused(digits: ImageSet, tmp_path: Path) -> None:
    module, data, callbacks = build(NADClassifier, digits)
    with pytest.raises(ValueError, match=r"teacher_epochs=1 leave none of max_epochs=1 .*tuning\.max_epochs"):
        fit(module, data, callbacks, tmp_path, epochs=1, stop=1)


@pytest.mark.parametrize("start", ["redraw", "random", "keep"])
def test_the_head_moves_on_the_sphere_of_its_old_weights(
    start: str, digits: ImageSet, tmp_path: Path
) -> None:
    module, data, _ = build(HeadShiftClassifier, digits)
    module.hparams["start"] = start
    old = module.network.head.weight.detach().clone()
    fit(module, data, [], tmp_path, epochs=1, stop=1)
    assert torch.equal(module.original, old)
    assert module.network.head.weight.norm().item() == pytest.approx(old.norm().item(), rel=1e-5)
    assert not torch.allclose(module.network.head.weight, old)


@pytest.mark.parametrize("kind", [IBAUClassifier, SAUClassifier])
def test_statistics_stay_where_the_network_is_evaluated(
    kind: type[Classifier], digits: ImageSet, tmp_path: Path
) -> None:
    module, data, _ = build(kind, digits)
    fit(module, data, [], tmp_path, epochs=1, stop=1)
    for name, value in module.network.named_buffers():
        assert torch.equal(value, learned().get(name, torch.ones_like(value)))


def test_a_bilevel_search_sees_all_classes_of_a_sorted_data_set(digits: ImageSet, tmp_path: Path) -> None:
    module, data, _ = build(IBAUClassifier, digits)
    data.training = data.training.subset(data.training.labels.argsort())
    _, in_order = next(data.training.batches(64))
    fit(module, data, [], tmp_path, epochs=1, stop=1)
    assert len(in_order.unique()) < 5
    assert len(module._first[1].unique()) > 8


def test_noise_on_weights_takes_any_seed(digits: ImageSet, tmp_path: Path) -> None:
    module, data, _ = build(ANPClassifier, digits)
    module.hparams["seed"] = 2**32 - 1
    fit(module, data, [], tmp_path, epochs=1, stop=1)
    assert module.findings


@pytest.mark.parametrize("kind", [UnlearnedClassifier, HeadShiftClassifier, SAUClassifier])
def test_labels_are_not_said_to_be_smoothed_where_they_are_not(kind: type[PrunedClassifier]) -> None:
    with pytest.raises(ValueError, match=r"label_smoothing=0\.1 has no place in the loss of this tuner"):
        kind(network(), [LAYER], SHAPE, label_smoothing=0.1)


BAD = [
    (FTSAMClassifier, {"gradient_clip": 0}, r"gradient_clip=0 must be above 0, or null for none"),
    (FTSAMClassifier, {"radius": 0}, r"radius=0 must be above 0\. Change defense\.tuning\.radius"),
    (ANPClassifier, {"alpha": 2}, r"alpha=2 is outside \[0, 1\]\. Change defense\.tuning\.alpha"),
    (ANPClassifier, {"noise": 0}, r"noise=0 must be above 0"),
    (IBAUClassifier, {"perturbed": -1}, r"perturbed=-1 is outside \[0, 1\]"),
    (IBAUClassifier, {"fixed_point_steps": 0}, r"fixed_point_steps=0 is below 1\. Set defense\.tuning"),
    (NADClassifier, {"betas": []}, r"betas=\[\] are no factors of 0 or more"),
    (
        NADClassifier,
        {"smallest_map": 17},
        r"No layer of this network has feature maps of smallest_map=17 places",
    ),
    (NADClassifier, {"decay_epochs": 0}, r"decay_epochs=0 is below 1"),
    (
        HeadShiftClassifier,
        {"start": "zero"},
        r"start='zero' is unknown\. Set defense\.tuning\.start to redraw",
    ),
    (HeadShiftClassifier, {"ceiling": -1}, r"ceiling=-1 is below 0"),
    (SAUClassifier, {"steps": 0}, r"steps=0 is below 1"),
    (SAUClassifier, {"radius": -0.1}, r"radius=-0\.1 must be above 0"),
]


@pytest.mark.parametrize(("kind", "options", "sentence"), BAD)
def test_a_value_out_of_range_is_refused(
    kind: type[PrunedClassifier], options: dict[str, Any], sentence: str
) -> None:
    with pytest.raises(ValueError, match=sentence):
        kind(network(), [], SHAPE, **options, **TRAINING)
