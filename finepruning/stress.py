"""Stress after repair: does the backdoor come back? It knows the trigger: nothing here is for a defense."""

from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from finepruning.data import ImageSet
from finepruning.metrics import Drop, Rate
from finepruning.referee import Scores, Triggering, score


@dataclass(frozen=True)
class Retune:
    """Tune a network on a few triggered images among clean ones, as whoever uses it later may do unknowingly.

    Source: Min et al. 2024, arXiv:2410.09838, section 3 (retuning attack). Deviation: the triggered images
        come beside the clean ones, not out of their number.

    Args:
        clean: Clean images, at least 1.
        triggered: Triggered images with the attacker's labels, at least 1.
        epochs: Over all of them, at least 1.
        batch_size: Images of a step, at least 2.
        learning_rate: Of plain SGD, above 0.
        momentum: In [0, 1).
        weight_decay: L2 penalty, at least 0.
        seed: Of the choice of images, their order and whatever else is drawn.

    Raises:
        ValueError: If a value is out of range.
    """

    clean: int
    triggered: int
    epochs: int
    batch_size: int
    learning_rate: float
    momentum: float
    weight_decay: float
    seed: int

    def __post_init__(self) -> None:
        for name, least in (("clean", 1), ("triggered", 1), ("epochs", 1), ("batch_size", 2)):
            _at_least(f"retune.{name}", getattr(self, name), least)
        _above_zero("retune.learning_rate", self.learning_rate)
        _at_least("retune.weight_decay", self.weight_decay, 0)
        if not 0 <= self.momentum < 1:
            raise ValueError(f"stress.retune.momentum={self.momentum} is outside [0, 1). Change it.")

    def choose(self, changed: Tensor) -> tuple[Tensor, Tensor]:
        """Return which images stay clean and which get the trigger, rows of a set; none is in both.

        Args:
            changed: (N,) whether the attacker would give an image another label: only those get the trigger.

        Raises:
            ValueError: If there are too few images.
        """
        order = torch.randperm(len(changed), generator=torch.Generator().manual_seed(self.seed))
        triggered = order[changed[order]][: self.triggered]
        clean = order[~torch.isin(order, triggered)][: self.clean]
        for name, rows in (("triggered", triggered), ("clean", clean)):
            if len(rows) < getattr(self, name):
                raise ValueError(
                    f"stress.retune.{name}={getattr(self, name)}, but only {len(rows)} of the attacker's "
                    f"{len(changed)} training images can be that. Lower it."
                )
        return clean, triggered

    def sample(
        self, train: ImageSet, attack: Triggering, device: torch.device | str
    ) -> tuple[Tensor, Tensor]:
        """Return images (N, C, H, W) with labels (N,): clean ones, then triggered ones with the attacker's.

        Args:
            train: The attacker's clean training images.
            attack: The attack.
            device: Where they go.
        """
        clean, triggered = self.choose(attack.wanted(train) != train.labels)
        images, labels = whole(train.subset(clean), device)
        stamped, _ = whole(attack.stamp(train.subset(triggered)), device)
        wanted = attack.wanted(train.subset(triggered)).to(device)
        return torch.cat([images, stamped]), torch.cat([labels, wanted])

    def tune(self, network: nn.Module, images: Tensor, labels: Tensor) -> None:
        """Tune a network in place, all of its parameters; pruned channels stay silent.

        Args:
            network: Images (B, C, H, W) -> logits (B, K); left in evaluation mode.
            images: (N, C, H, W) in [0, 1].
            labels: (N,).

        Raises:
            ValueError: If weights are no numbers in the end.
        """
        network.requires_grad_(True).train()
        optimizer = torch.optim.SGD(
            network.parameters(), self.learning_rate, momentum=self.momentum, weight_decay=self.weight_decay
        )
        chance = torch.Generator().manual_seed(self.seed)
        devices = [images.device] if images.is_cuda else []
        with torch.random.fork_rng(devices), torch.enable_grad():
            torch.manual_seed(self.seed)  # of dropout
            for _ in range(self.epochs):
                for rows in torch.randperm(len(images), generator=chance).split(self.batch_size):
                    if len(rows) > 1:  # BatchNorm has no statistics of a single image
                        optimizer.zero_grad()
                        rows = rows.to(images.device)
                        cross_entropy(network(images[rows]), labels[rows]).backward()
                        optimizer.step()
        network.eval()
        if not all(weight.isfinite().all() for weight in network.parameters()):
            raise ValueError(
                f"stress.retune.learning_rate={self.learning_rate:g} left weights that are no numbers. "
                "Lower it."
            )


@dataclass(frozen=True)
class Reactivation:
    """Search a small perturbation, the same for all images, that brings the trigger back to work.

    Source: Zhu et al. 2024, arXiv:2405.16134, section 4 (universal attack on top of the trigger, white box).
        Deviations: against an untargeted attack the perturbation leads away from the true class; in sound it
        is added to the spectrogram.

    Args:
        images: Triggered images that are searched on, at least 1.
        radius: Largest change of a pixel, in (0, 1].
        steps: Steps of plain SGD, at least 1.
        batch_size: Images of a step, at least 1.
        learning_rate: Above 0.
        seed: Of the choice of images and their order.

    Raises:
        ValueError: If a value is out of range.
    """

    images: int
    radius: float
    steps: int
    batch_size: int
    learning_rate: float
    seed: int

    def __post_init__(self) -> None:
        for name in ("images", "steps", "batch_size"):
            _at_least(f"reactivation.{name}", getattr(self, name), 1)
        _above_zero("reactivation.learning_rate", self.learning_rate)
        if not 0 < self.radius <= 1:
            raise ValueError(
                f"stress.reactivation.radius={self.radius} is outside (0, 1]. It is the largest change of a "
                "pixel, in units of its whole range."
            )

    def choose(self, changed: Tensor) -> Tensor:
        """Return the rows of a set that get the trigger, ascending.

        Args:
            changed: (N,) whether the attacker would give an image another label: only those count.

        Raises:
            ValueError: If there is none.
        """
        rows = changed.nonzero().squeeze(1)
        if len(rows) == 0:
            raise ValueError("No training image would get another label from this attack. Set stress=none.")
        order = torch.randperm(len(rows), generator=torch.Generator().manual_seed(self.seed))
        return rows[order[: self.images]].sort().values

    def sample(
        self, train: ImageSet, attack: Triggering, device: torch.device | str
    ) -> tuple[Tensor, Tensor]:
        """Return triggered images (N, C, H, W) and where each is to go (N,): the attacker's label.

        Against an untargeted attack these are the true labels, to get away from. There are ``images`` of
        them, or all that the attacker would relabel if those are fewer.
        """
        some = train.subset(self.choose(attack.wanted(train) != train.labels))
        labels = some.labels if attack.untargeted else attack.wanted(some)
        return whole(attack.stamp(some), device)[0], labels.to(device)

    def search(self, network: nn.Module, images: Tensor, labels: Tensor, untargeted: bool) -> Tensor:
        """Return the perturbation (C, H, W).

        Args:
            network: Images (B, C, H, W) -> logits (B, K); left in evaluation mode, its parameters frozen.
            images: (N, C, H, W) triggered images in [0, 1].
            labels: (N,) where they are to go, or what they are to get away from.
            untargeted: Whether it is the latter.
        """
        network.requires_grad_(False).eval()
        pattern = torch.zeros_like(images[0])
        chance = torch.Generator().manual_seed(self.seed)
        order = torch.arange(0)
        for _ in range(self.steps):
            if len(order) == 0:
                order = torch.randperm(len(images), generator=chance)
            rows, order = order[: self.batch_size].to(images.device), order[self.batch_size :]
            with torch.enable_grad():
                moved = pattern.clone().requires_grad_()
                logits = network((images[rows] + moved).clamp(0, 1))
                loss = away_loss(logits, labels[rows]) if untargeted else toward_loss(logits, labels[rows])
                (gradient,) = torch.autograd.grad(loss, moved)
            pattern = (pattern - self.learning_rate * gradient).clamp(-self.radius, self.radius)
        return pattern


def toward_loss(logits: Tensor, labels: Tensor) -> Tensor:
    """Return the mean of -log p(label) - log(1 - p(strongest other class)).

    Source: Zhu et al. 2024, arXiv:2405.16134, section 4.

    Args:
        logits: (B, K).
        labels: (B,) the classes that are wanted.
    """
    others = logits.scatter(1, labels[:, None], -torch.inf)
    strongest = others.argmax(1, keepdim=True)
    rest = logits.scatter(1, strongest, -torch.inf)  # log(1 - p) without a difference of near numbers
    return cross_entropy(logits, labels) - (rest.logsumexp(1) - logits.logsumexp(1)).mean()


def away_loss(logits: Tensor, labels: Tensor) -> Tensor:
    """Return the mean of -log(1 - p(label)) over ``logits`` (B, K), ``labels`` (B,) the true classes."""
    rest = logits.scatter(1, labels[:, None], -torch.inf)
    return (logits.logsumexp(1) - rest.logsumexp(1)).mean()


class WithPattern(nn.Module):
    """A network all of whose inputs are perturbed alike.

    Args:
        network: Images (B, C, H, W) in [0, 1] -> logits (B, K).
        pattern: (C, H, W), added to each image.
    """

    pattern: Tensor

    def __init__(self, network: nn.Module, pattern: Tensor) -> None:
        super().__init__()
        self.network = network
        self.register_buffer("pattern", pattern)

    def forward(self, images: Tensor) -> Tensor:
        """Return logits (B, K) of the perturbed images, cut to [0, 1]."""
        logits: Tensor = self.network((images + self.pattern).clamp(0, 1))
        return logits


def score_perturbed(
    network: nn.Module,
    pattern: Tensor,
    test: ImageSet,
    attack: Triggering,
    clean: Rate,
    device: torch.device | str = "cpu",
) -> Scores:
    """Score a network whose inputs are perturbed: clean accuracy is that of clean images with the pattern.

    An untargeted attack's success is the loss against clean images without it.

    Args:
        network: The network; left in evaluation mode.
        pattern: (C, H, W), added to each image, clean or triggered.
        test: The data set's own test images.
        attack: The attack.
        clean: Its clean accuracy without the pattern.
        device: Where to compute.
    """
    found = score(WithPattern(network, pattern), test, attack, device)
    if isinstance(found.attack_success_rate, Drop):
        lost = Drop(clean, found.attack_success_rate.backdoor)
        return replace(found, attack_success_rate=lost)
    return found


def whole(images: ImageSet, device: torch.device | str) -> tuple[Tensor, Tensor]:
    """Return all images (N, C, H, W) of a set and their labels (N,)."""
    pairs = list(images.batches(device=device))
    return torch.cat([pair[0] for pair in pairs]), torch.cat([pair[1] for pair in pairs])


def _at_least(key: str, value: float, least: float) -> None:
    if value < least:
        raise ValueError(f"stress.{key}={value} is below {least}. Raise it.")


def _above_zero(key: str, value: float) -> None:
    if not value > 0:
        raise ValueError(f"stress.{key}={value} must be above 0. Change it.")
