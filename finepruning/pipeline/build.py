"""A configuration becomes objects, all of them built and checked before any training."""

import logging
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf
from pytorch_lightning import Callback, seed_everything
from torch import nn

from finepruning.attacks import Attack, Transfer
from finepruning.callbacks import PruneChannels
from finepruning.data import DefenderData, ImageSet, Packed, channel_statistics, pack, split_roles
from finepruning.modules import (
    ANPClassifier,
    FinePrunedClassifier,
    FTSAMClassifier,
    HeadShiftClassifier,
    IBAUClassifier,
    NADClassifier,
    PrunedClassifier,
    SAUClassifier,
    UnlearnedClassifier,
)
from finepruning.pipeline.analysis import check_analysis
from finepruning.pipeline.parts import Defense, Parts, Source, Stress, Suspect, Tuning
from finepruning.repair import Inspection, check_max_drop, check_max_success
from finepruning.suspect import (
    KnownAttack,
    find_file,
    load_suspect,
    network_hash,
    normalisation,
    require_onnx,
    scale_warning,
    split_defender,
)

log = logging.getLogger(__name__)

ALLOWED_TARGETS = ("finepruning.", "pytorch_lightning.")
NO_TUNING = {"max_epochs": 0, "batch_size": 256}
TUNERS: dict[str, type[PrunedClassifier]] = {
    "finetune": FinePrunedClassifier,
    "unlearn": UnlearnedClassifier,
    "ft_sam": FTSAMClassifier,
    "anp": ANPClassifier,
    "i_bau": IBAUClassifier,
    "nad": NADClassifier,
    "head_shift": HeadShiftClassifier,
    "sau": SAUClassifier,
}


def build(config: DictConfig | None, **more: Any) -> Any:
    """Build what ``_target_`` names, from this package and Lightning only; None of an empty group.

    Raises:
        ValueError: If a target is not on the allow-list.
    """
    if not config:
        return None
    for target in _targets(OmegaConf.to_container(config)):
        if not target.startswith(ALLOWED_TARGETS):
            raise ValueError(
                f"_target_ {target!r} is not allowed; it must begin with {' or '.join(ALLOWED_TARGETS)}."
            )
    return instantiate(config, _convert_="all", **more)


def _targets(node: Any) -> list[str]:
    if isinstance(node, dict):
        return [
            target
            for key, value in node.items()
            for target in ([str(value)] if key == "_target_" else _targets(value))
        ]
    return [target for value in node for target in _targets(value)] if isinstance(node, list) else []


def _quieten() -> None:
    """Keep Lightning from saying what a record says, or what does not hold here."""
    logging.getLogger("pytorch_lightning").setLevel(logging.WARNING)  # devices, tips, the end of each fit
    warnings.filterwarnings("ignore", ".isinstance.treespec, LeafSpec")  # Lightning 2.6's own use of torch
    warnings.filterwarnings("ignore", "The `srun` command is available")  # whoever wants it uses it
    warnings.filterwarnings("ignore", "The number of training batches")  # losses are logged once an epoch
    warnings.filterwarnings("ignore", ".*does not have many workers")  # batches are cut from a tensor
    warnings.filterwarnings("ignore", ".*configure_optimizers. returned")  # pruning alone trains nothing
    warnings.filterwarnings("ignore", "Found .* module.* in eval mode")  # the frozen layers of a transfer
    warnings.filterwarnings("ignore", "It is recommended to use .*sync_dist")  # logged values are equal
    warnings.filterwarnings("ignore", "Checkpoint directory .* exists and is not empty")  # a resumed stage


def _check_gpus(trainer: DictConfig) -> None:
    """Refuse more GPUs than there are; ``devices=auto`` takes what there is."""
    there = torch.cuda.device_count()
    wanted = int(trainer.devices) if str(trainer.devices).isdecimal() else 1
    if trainer.accelerator == "gpu" and wanted > there:
        raise ValueError(
            f"trainer.devices={trainer.devices} with trainer.accelerator=gpu, but this machine has {there} "
            "GPUs. Lower trainer.devices, or use trainer=cpu."
        )


def build_parts(config: DictConfig) -> Parts:
    """Build and check all parts of a run.

    Raises:
        ValueError: If a value is out of range or two parts do not fit each other.
    """
    _quieten()
    _check_gpus(config.trainer)
    torch.set_num_threads(config.trainer.threads)
    _check_decoys(config)
    stress = _build_stress(config)
    if config.export.onnx:
        require_onnx()
    packed = pack(build(config.dataset), Path(config.store_dir) / "data")
    parts = _build_suspect(config, packed) if config.get("suspect") else _build_ours(config, packed)
    parts = replace(parts, stress=stress)
    parts.check()
    if config.get("analysis"):
        check_analysis(parts.network, **config.analysis)
    return parts


def _build_ours(config: DictConfig, packed: Packed) -> Parts:
    """Build the parts of a run whose suspect is trained here."""
    roles = split_roles(
        packed.train_labels,
        packed.classes,
        **config.defender,
        seed=config.seed,
        groups=packed.train_groups,
    )
    train = ImageSet.whole(packed.train, packed.train_labels, packed.signal)
    attacker = train.subset(roles.attacker)
    mean, std = channel_statistics(attacker)
    facts = {"image_shape": train.image_shape, "num_classes": len(packed.classes), "mean": mean, "std": std}
    seed_everything(config.seed, verbose=False)
    network = _build_network(config, facts)
    attack = build_attack(config)
    if attack is not None:
        attack.check(attacker, len(packed.classes))
        attack.check_network(network)
    augment = build(config.training.get("augment"))
    tuned = _build_network(config, facts)
    return Parts(
        packed=packed,
        network=network,
        attacker=attacker,
        validation=train.subset(roles.validation),
        test=ImageSet.whole(packed.test, packed.test_labels, packed.signal),
        attack=attack,
        defense=_build_defense(config, tuned, train, roles.tuning, roles.validation, augment),
        detector=build(config.get("detector")),
        augment=augment,
        source=_build_source(config, attack, train.image_shape) if isinstance(attack, Transfer) else None,
    )


def _check_decoys(config: DictConfig) -> None:
    attack = config.get("attack") or {}
    planned = str(attack.get("_target_")).endswith(".PruningAware")
    if planned and ("trigger" not in attack or "strengthen" in attack):
        raise ValueError(
            "attack/pruning_aware=decoys adds decoys to an attack that trains a network with a trigger. "
            "Choose one, such as attack=badnet; none, suspect and transfer have nothing to add them to."
        )


def _build_network(config: DictConfig, facts: dict[str, Any]) -> nn.Module:
    """Build a network in the memory layout in which it is trained, so that it always rounds alike."""
    network: nn.Module = build(config.model, **facts)
    return network.to(memory_format=torch.channels_last) if config.trainer.channels_last else network


def build_attack(config: DictConfig) -> Attack | None:
    """Build the attack of a configuration, without the data set that it may bring along."""
    plain: Any = OmegaConf.to_container(config, resolve=True)
    own = {key: value for key, value in (plain.get("attack") or {}).items() if key != "source"}
    attack: Attack | None = build(OmegaConf.create(own))
    return attack


def _build_stress(config: DictConfig) -> Stress | None:
    """Build the stress tests, and check that there is a trigger for them."""
    if not config.get("stress"):
        return None
    stress = Stress(**build(config.stress))
    stress.check_trigger(config.get("attack") or {}, "suspect" in config)
    return stress


def _build_source(config: DictConfig, attack: Transfer, image_shape: tuple[int, int, int]) -> Source:
    """Build what the attacker trains on, all of whose training images are the attacker's.

    Raises:
        ValueError: If its images have another shape than those of the run's data set.
    """
    source = config.attack.source
    packed = pack(build(source.dataset), Path(config.store_dir) / "data")
    images = ImageSet.whole(packed.train, packed.train_labels, packed.signal)
    if images.image_shape != image_shape:
        theirs, ours = ("x".join(map(str, shape)) for shape in (images.image_shape, image_shape))
        raise ValueError(
            f"Images of the source are {theirs} (channels, height, width), those of the data set {ours}; a "
            "network cannot move between them. Choose another dataset, or change dataset.size or "
            "attack.source.dataset.size."
        )
    attack.at_source.check(images, len(packed.classes))
    mean, std = channel_statistics(images)
    facts = {"image_shape": image_shape, "num_classes": len(packed.classes), "mean": mean, "std": std}
    plain: Any = OmegaConf.to_container(config, resolve=True)
    training = plain["attack"]["source"]["training"]
    later = ("_target_", "source", "strengthen", "dedication")  # what comes after this training
    made_by = {
        "model": plain["model"],
        "attack": {key: value for key, value in plain["attack"].items() if key not in later},
        "training": training,
        "trainer": plain["trainer"] | plain["attack"]["source"]["trainer"],
        "seed": plain["seed"],
        "data": packed.fingerprint,
    }
    return Source(
        images=images,
        test=ImageSet.whole(packed.test, packed.test_labels, packed.signal),
        network=_build_network(config, facts),
        augment=build(source.training.get("augment")),
        training=training,
        max_epochs=source.trainer.max_epochs,
        made_by=made_by,
    )


def _build_suspect(config: DictConfig, packed: Packed) -> Parts:
    """Build the parts of a run whose suspect comes in a file."""
    options: dict[str, Any] = OmegaConf.to_container(config.suspect, resolve=True)  # type: ignore[assignment]
    if not options["weights"]:
        raise ValueError("attack=suspect needs suspect.weights: the file of a network that somebody trained.")
    weights = find_file(options["weights"], "suspect.weights")
    train = ImageSet.whole(packed.train, packed.train_labels, packed.signal)
    test = ImageSet.whole(packed.test, packed.test_labels, packed.signal)
    roles = split_defender(
        packed.train_labels,
        options["fraction"],
        config.defender.validation_share,
        config.seed,
        packed.train_groups,
    )
    shape = train.image_shape
    facts = {"image_shape": shape, "num_classes": len(packed.classes)}
    facts |= normalisation(options["white"], options["mean"], options["std"], shape[0])
    seed_everything(config.seed, verbose=False)
    network, tuned = _build_network(config, facts), _build_network(config, facts)
    load_suspect(network, weights, shape, len(packed.classes), options["layer_map"])
    attack: KnownAttack | None = build(config.get("attack"))
    if attack is not None:
        attack.check(test, packed.classes)
    warning = scale_warning(network, train.subset(roles.validation), len(packed.classes))
    if warning is not None:
        log.warning(warning)
    augment = build(config.training.get("augment"))
    program = config.model.get("file")
    programs = [find_file(program, "model.file")] if program else []
    return Parts(
        packed=packed,
        network=network,
        attacker=train.subset(roles.attacker),
        validation=train.subset(roles.validation),
        test=test,
        attack=None,
        defense=_build_defense(config, tuned, train, roles.tuning, roles.validation, augment),
        detector=build(config.get("detector")),
        augment=augment,
        suspect=Suspect(weights, network_hash(network, *programs), attack, warning),
    )


def _build_defense(
    config: DictConfig,
    network: nn.Module,
    train: ImageSet,
    tuning_rows: torch.Tensor,
    validation: torch.Tensor,
    augment: nn.Module | None,
) -> Defense | None:
    """Build the defense around a network that will get the suspect's weights."""
    if not config.get("defense"):
        return None
    defense: dict[str, Any] = OmegaConf.to_container(config.defense, resolve=True)  # type: ignore[assignment]
    named = [str(network.pruned_layer)] if defense["layers"] is None else list(defense["layers"])
    tuning, checked = train.subset(tuning_rows), train.subset(validation)

    def tuned(values: dict[str, Any], layers: list[str], callbacks: list[Callback], **more: Any) -> Tuning:
        tuner = values.pop("tuner", "finetune")
        max_epochs, batch_size = values.pop("max_epochs"), values.pop("batch_size")
        if tuner not in TUNERS:
            raise ValueError(f"The tuner {tuner!r} is unknown; choose {', '.join(TUNERS)} in defense.")
        values |= {"channels_last": config.trainer.channels_last, "compile": config.trainer.compile}
        kind = TUNERS[tuner] if max_epochs else PrunedClassifier
        module = kind(network, layers, train.image_shape, **values)
        data = DefenderData(tuning, checked, batch_size, config.seed, augment)
        return Tuning(module, layers, data, callbacks, max_epochs, **more)

    callbacks = _build_callbacks(config.defense)
    options = defense.get("tuning") or NO_TUNING
    if len(tuning) < options["batch_size"] and options["max_epochs"]:
        log.warning(
            "The defender has %s images to tune on, fewer than defense.tuning.batch_size=%s: an epoch "
            "is one step.",
            len(tuning),
            options["batch_size"],
        )
    ladder = []
    for rung in defense.get("ladder") or ():
        tuners = {"unlearn": {"tuning": defense["tuning"]}, **defense["tuners"]}
        tuner = rung.get("tuner", "unlearn")
        if tuner not in tuners:
            raise ValueError(
                f"The tuner {tuner!r} of a rung is unknown. Choose {', '.join(tuners)} in defense.ladder, or "
                "give its options in defense.tuners."
            )
        own = {key: value for key, value in rung.items() if key not in ("prune", "tuner")}
        first: list[Callback] = [] if rung.get("prune") is None else [PruneChannels(max_drop=rung["prune"])]
        acting = _build_callbacks(config.defense.tuners.get(tuner, {}))
        values = (tuners[tuner].get("tuning") or NO_TUNING) | own
        ladder.append(tuned(values, named if first else [], first + acting, options=rung))
    if "ladder" in defense:
        check_max_drop(defense["max_drop"])
        check_max_success(defense["audit"]["max_success"])
        if not ladder:
            raise ValueError("defense.ladder is empty. Give it a rung, such as {weight: 0.05}.")
    base = tuned(dict(options), [] if ladder else named, callbacks)
    inspection: Inspection | None = build(config.defense.get("inspection"))
    return Defense(**vars(base), inspection=inspection, ladder=ladder)


def _build_callbacks(defense: DictConfig) -> list[Callback]:
    return [build(callback) for callback in (defense.get("callbacks") or {}).values()]
