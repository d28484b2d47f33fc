"""How the suspect comes to be: one stage for most attacks, several for those that plan ahead."""

import copy
import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save
from torch import nn

from finepruning.attacks import Attack, PruningAware, Transfer
from finepruning.data import AttackerData, ImageSet
from finepruning.modules import (
    BackdooredClassifier,
    Classifier,
    CleanClassifier,
    TransferredClassifier,
    take_frozen,
)
from finepruning.pipeline.parts import Parts, Source
from finepruning.pruning import add_mask, channel_count, remove_mask, set_pruned
from finepruning.store import WEIGHTS, Stage, Store, save_weights, write_file

log = logging.getLogger(__name__)

SUSPECT_KEYS = ("model", "attack", "training", "trainer", "seed")  # beside the attacker's images
CRAFTED = "crafted.safetensors"
WATCHED = 512  # training images that the attacker scores after each epoch


@dataclass(frozen=True)
class SuspectMaker:
    """The attacker at work.

    Args:
        plain: The configuration, as plain values.
        parts: What the run is made of.
        store: Keeps the stages.
        fit: Trains a module on data, in a stage's folder; ``max_epochs`` may differ from the configuration's.
        device: Where to compute beside training.
    """

    plain: Mapping[str, Any]
    parts: Parts
    store: Store
    fit: Callable[..., None]
    device: str

    def make(self) -> dict[str, Stage]:
        """Return the stages that make the suspect, itself last."""
        attack = self.parts.attack
        if self.parts.suspect is not None:
            return {"suspect": self._stage("suspect", self._keep)}
        if isinstance(attack, Transfer) and self.parts.source is not None:
            return self._transferred(attack, self.parts.source)
        crafted = {} if attack is None or attack.crafting is None else self._crafted(attack)
        if isinstance(attack, PruningAware):
            return crafted | self._with_decoys(attack)
        return crafted | {"suspect": self._stage("suspect", lambda directory: self._train(attack, directory))}

    @property
    def made_by(self) -> dict[str, Any]:
        """What decides the suspect, as plain values."""
        made_by: dict[str, Any] = copy.deepcopy({key: self.plain.get(key) for key in SUSPECT_KEYS})
        made_by["data"] = self.parts.packed.fingerprint
        made_by["rows"] = self.parts.attacker.rows_hash  # and not how the defender splits the others
        devices = made_by["trainer"]["devices"]  # how many counts, and not which
        made_by["trainer"] |= {"devices": len(devices) if isinstance(devices, list) else devices}
        if self.parts.source is not None:
            made_by["attack"] = _without(made_by["attack"], "source")
            made_by["source"] = self.parts.source.made_by
        for section in ("attack", "model"):  # what files hold counts, and not only where they lie
            if files := {key: held for key, held in self.parts.files.items() if key.startswith(section)}:
                made_by[section] = {**made_by[section], "files": files}
        if self.parts.suspect is not None:
            # its hash stands for its file; what is known of the attack is the referee's
            known = _without(self.plain["suspect"], "weights", "layer_map")
            made_by |= {"suspect": known | {"hash": self.parts.suspect.hash}, "attack": None}
            made_by["model"] = _without(made_by["model"], "file")
        return made_by

    def _keep(self, directory: Path) -> Mapping[str, Any]:
        """Take a stranger's network as it is."""
        save_weights(self.parts.network, directory / WEIGHTS)
        return {}

    def _clean(self) -> Stage:
        """Return the clean network: the suspect of attack=none."""
        return self._stage("suspect", lambda directory: self._train(None, directory, "clean"), attack={})

    def _crafted(self, attack: Attack) -> dict[str, Stage]:
        """Craft the attack's triggers on a clean network; the suspect starts anew, from its first weights."""
        first = copy.deepcopy(self.parts.network.state_dict())

        def craft(directory: Path) -> Mapping[str, Any]:
            log.info("Crafting the trigger ...")
            network = clean.load_into(copy.deepcopy(self.parts.network))
            tensors = attack.craft(network, self.parts.attacker, self.device)
            write_file(directory / CRAFTED, save(tensors))
            return {}

        clean = self._clean()
        crafted = self._stage("crafted", craft)
        attack.take(load_file(crafted.directory / CRAFTED))
        self.parts.network.load_state_dict(first)
        return {"clean": clean, "crafted": crafted}

    def _with_decoys(self, attack: PruningAware) -> dict[str, Stage]:
        """Take the four steps of the pruning-aware attack (Fine-Pruning, the section of that name)."""
        network, images = self.parts.network, self.parts.attacker
        layer = str(network.pruned_layer)

        def prune(directory: Path) -> Mapping[str, Any]:
            clean.load_into(network)
            add_mask(network, layer, channel_count(network, layer, images.image_shape))
            decoys = attack.choose_decoys(network, layer, images, self.device)
            set_pruned(network, layer, decoys)
            save_weights(network, directory / WEIGHTS)
            return {"decoys": decoys}

        def poison(directory: Path) -> Mapping[str, Any]:
            pruned.load_into(network)
            return self._train(attack, directory)

        def hide(directory: Path) -> Mapping[str, Any]:
            poisoned.load_into(network)
            remove_mask(network, layer)
            old = clean.load_into(copy.deepcopy(network))
            decoys = pruned.about["result"]["decoys"]
            attack.hide(network, old, layer, decoys, images, self.device)
            save_weights(network, directory / WEIGHTS)
            return {"decoys": decoys}

        clean = self._clean()
        pruned = self._stage("pruned", prune)
        poisoned = self._stage("poisoned", poison)
        suspect = self._stage("suspect", hide)
        remove_mask(network, layer)
        return {"clean": clean, "pruned": pruned, "poisoned": poisoned, "suspect": suspect}

    def _transferred(self, attack: Transfer, source: Source) -> dict[str, Stage]:
        """Train on the source, strengthen, and retrain the linear layers here (BadNets, section 5.3)."""

        def train(directory: Path) -> Mapping[str, Any]:
            log.info("Training the network that is transferred ...")
            module = BackdooredClassifier(
                source.network, untargeted=attack.at_source.untargeted, **self._options(source.training)
            )
            data = self._data(attack.at_source, source.images, source.training, source.augment)
            self.fit(module, data, [], directory, max_epochs=source.max_epochs)
            return {}

        def retrain(directory: Path) -> Mapping[str, Any]:
            log.info("Retraining its linear layers ...")
            donor = trained.load_into(source.network)
            strengthened = attack.strengthen(donor, source.images, self.device)
            take_frozen(self.parts.network, donor)
            module = TransferredClassifier(
                self.parts.network, untargeted=True, **self._options(self.plain["training"])
            )
            data = self._data(None, self.parts.attacker, self.plain["training"], self.parts.augment)
            data.validation.append(attack.watched(data.validation[0]))
            self.fit(module, data, [], directory)
            return {"strengthened": strengthened}

        trained = self.store.stage("source", self.made_by["source"], train)
        return {"source": trained, "suspect": self._stage("suspect", retrain)}

    def _stage(self, kind: str, make: Callable[[Path], Mapping[str, Any]], **changes: Any) -> Stage:
        return self.store.stage(kind, self.made_by | changes, make)

    def _train(self, attack: Attack | None, directory: Path, logs: str | None = None) -> Mapping[str, Any]:
        """Train a network as its maker would, poisoned if there is an attack."""
        log.info("Training the %s network ...", logs or "suspect")
        training = self.plain["training"]
        data = self._data(attack, self.parts.attacker, training, self.parts.augment)
        network, options = self.parts.network, self._options(training)
        if attack is None:
            module: Classifier = CleanClassifier(network, **options)
        else:
            module = BackdooredClassifier(network, untargeted=attack.untargeted, **options)
        self.fit(module, data, [], directory, logs=logs)
        return {}

    def _options(self, training: Mapping[str, Any]) -> dict[str, Any]:
        """Return a module's options."""
        trainer = self.plain["trainer"]
        speed = {key: trainer[key] for key in ("channels_last", "compile")}
        return _without(training, "batch_size", "augment") | speed

    @staticmethod
    def _data(
        attack: Attack | None, clean: ImageSet, training: Mapping[str, Any], augment: nn.Module | None
    ) -> AttackerData:
        """Return the attacker's data: poisoned if there is an attack, watched on a part of it."""
        both = [_thinned(clean)]
        if attack is not None:  # a loss of accuracy is seen on the same images, success on those that show it
            both.append(attack.watched(both[0]) if attack.untargeted else _thinned(attack.watched(clean)))
        poisoned = clean if attack is None else attack.poison(clean)
        return AttackerData(poisoned, both, training["batch_size"], training["seed"], augment)


def _thinned(images: ImageSet) -> ImageSet:
    """Return about as many images as are watched, spread over the set."""
    return images.subset(torch.arange(len(images))[:: max(1, len(images) // WATCHED)])


def _without(values: Mapping[str, Any], *keys: str) -> dict[str, Any]:
    return {key: value for key, value in values.items() if key not in keys}
