"""Lightning modules: each resumes from a checkpoint that holds plain values only."""

import functools
import tempfile
from pathlib import Path
from typing import Any

import pytest
import torch
from pytorch_lightning import Trainer, seed_everything
from pytorch_lightning.callbacks import LambdaCallback

from finepruning.attacks import Attack
from finepruning.attacks.triggers import PatchTrigger
from finepruning.callbacks import PruneChannels, PruneLipschitz
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
from finepruning.pruning import pruned_channels

TRAINING = {"learning_rate": 0.05, "seed": 3}
OPTIONS: dict[type[Classifier], dict[str, Any]] = {  # of the short fits here
    NADClassifier: {"teacher_epochs": 1},
    HeadShiftClassifier: {"inner_product": 0.1, "distance": 0.1},
    IBAUClassifier: {"learning_rate": 0.01},  # 0.05 diverges on some machines
    SAUClassifier: {"learning_rate": 0.01},
}
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


def test_a_parameter_that_nothing_uses_stays_as_it_is(digits: ImageSet, tmp_path: Path) -> None:
    module, data, _ = build(FTSAMClassifier, digits)
    module.network.unused = torch.nn.Parameter(torch.ones(3))
    fit(module, data, [], tmp_path, epochs=1, stop=1)
    assert module.network.unused.tolist() == [1, 1, 1]


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


def states(module: Classifier) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in module.network.state_dict().items()}


@pytest.mark.parametrize("kind", [kind for kind in KINDS if issubclass(kind, FinePrunedClassifier)])
def test_what_is_left_is_the_repaired_network_with_its_channels_silent(
    kind: type[Classifier], digits: ImageSet, tmp_path: Path
) -> None:
    module, data, callbacks = build(kind, digits)
    before = states(module)
    fit(module, data, callbacks, tmp_path, epochs=3, stop=3)
    assert any(not torch.equal(value, before[name]) for name, value in states(module).items())
    assert set(pruned_channels(module.network)[LAYER]) >= {c.number for c in callbacks[0].order[:1]}
    assert all(parameter.requires_grad for parameter in module.network.parameters())


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
