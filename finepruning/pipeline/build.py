"""A configuration becomes objects, all of them built and checked before any training."""

import logging
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig, ListConfig, OmegaConf
from pytorch_lightning import seed_everything
from torch import nn

from finepruning.attacks import Attack, Transfer
from finepruning.data import ImageSet, Packed, channel_statistics, pack, split_roles
from finepruning.pipeline.analysis import check_analysis
from finepruning.pipeline.defenses import build_defense
from finepruning.pipeline.devices import GPUS, threads
from finepruning.pipeline.parts import Parts, Source, Stress, Suspect
from finepruning.pipeline.resolvers import file_hashes
from finepruning.pipeline.targets import build
from finepruning.pipeline.training import check_trainer
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
    there, devices = torch.cuda.device_count(), trainer.devices
    if isinstance(devices, ListConfig):
        wanted = max(map(int, devices), default=0) + 1
    else:
        wanted = int(devices) if str(devices).isdecimal() else 1
    if trainer.accelerator in GPUS and wanted > there:
        raise ValueError(
            f"trainer.devices={devices} with trainer.accelerator={trainer.accelerator}, but this machine has "
            f"{there} GPUs. Lower trainer.devices, or use trainer=cpu."
        )


def _check_seed(seed: Any) -> None:
    """Raise ValueError if a run's seed is no whole number that NumPy takes as one."""
    if not isinstance(seed, int) or isinstance(seed, bool) or not 0 <= seed < 2**32:
        raise ValueError(f"seed={seed} is no seed. Set it to a whole number from 0 to {2**32 - 1}.")


def build_parts(config: DictConfig) -> Parts:
    """Build and check all parts of a run.

    Raises:
        ValueError: If a value is out of range or two parts do not fit each other.
    """
    _quieten()
    check_trainer(config.trainer)
    _check_gpus(config.trainer)
    torch.set_num_threads(threads(config.trainer))
    _check_seed(config.seed)
    _check_decoys(config)
    stress = _build_stress(config)
    if config.export.onnx:
        require_onnx()
    packed = pack(build(config.dataset), Path(config.store_dir) / "data")
    parts = _build_suspect(config, packed) if config.get("suspect") else _build_ours(config, packed)
    parts = replace(parts, stress=stress, files=file_hashes(config))
    parts.check()
    if config.get("analysis"):
        check_analysis(parts.network, **config.analysis)
    return parts


def _build_ours(config: DictConfig, packed: Packed) -> Parts:
    """Build the parts of a run whose suspect is trained here."""
    _check_training(config)
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
        defense=build_defense(config, tuned, train, roles, packed, augment),
        detector=build(config.get("detector")),
        augment=augment,
        source=_build_source(config, attack, train.image_shape) if isinstance(attack, Transfer) else None,
    )


def _check_training(config: DictConfig) -> None:
    """Refuse a training of the suspect that would train nothing, or have no end."""
    epochs, rate = config.trainer.max_epochs, config.training.learning_rate
    if not (isinstance(epochs, int) and epochs >= 1):
        raise ValueError(f"trainer.max_epochs={epochs} is no number of epochs. Set it to 1 or more.")
    if rate is None:
        raise ValueError("Without training.learning_rate nothing is trained. Set it to a number above 0.")


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
    attack: Attack | None = build(OmegaConf.create({"attack": own}).attack)  # keys keep their full names
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
        "files": file_hashes(config),
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


def _normalisation(network: nn.Module) -> dict[str, Any]:
    """Return what a network subtracts from images, and divides them by."""
    return {name: value.tolist() for name, value in network.named_buffers() if "normalise." in name}


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
    scaled = {key: options[key] for key in ("white", "mean", "std")}
    if scaled != {"white": 1, "mean": 0, "std": 1} and _normalisation(network) != _normalisation(tuned):
        log.warning(
            "%s brings its normalisation, so that suspect.white, suspect.mean and suspect.std are not used.",
            weights,
        )
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
        defense=build_defense(config, tuned, train, roles, packed, augment),
        detector=build(config.get("detector")),
        augment=augment,
        suspect=Suspect(weights, network_hash(network, *programs), attack, warning),
    )
