"""Networks that draw a trigger for each image, trained together with a copy of the clean network."""

from collections.abc import Iterator

import torch
from torch import Tensor, nn
from torch.nn import functional

from finepruning.attacks.crafting.base import Plan, check_steps
from finepruning.attacks.triggers.input_aware import InputAware, diversity, drawn_by, sharpen


class Generators:
    """Train the networks of an input-aware trigger.

    Source: Nguyen and Tran 2020, arXiv:2010.08138, section 3: first the mask network (diverse, and no more
        opaque than ``density``), then, with it fixed, the pattern network and the classifier together:
        triggered images get the attacker's label, images with another one's trigger keep their own, and
        unlike images get unlike patterns. Deviations: the classifier here is a copy of the clean network,
        thrown away afterwards, and the suspect is trained from scratch on what the generators then draw;
        hundreds of steps instead of hundreds of epochs; smaller networks, without dropout; a larger
        ``share``.

    Args:
        trigger: Whose networks are trained: the attack's trigger has the same arguments.
        density: Opacity of a pixel of the mask above which it costs, in (0, 1).
        mask_steps: Steps for the mask network. At least 1.
        steps: Steps for the pattern network and the classifier. At least 1.
        batch_size: Images of a step. At least 4.
        share: Of a batch that is triggered; as many carry another image's trigger. In (0, 0.5].
        diversity: Weight of the demand for unlike patterns, at least 0.
        norm: Weight of the mask's mean opacity above the allowed one, at least 0.
        learning_rate: Of the pattern and mask networks (Adam). Above 0.
        classifier_rate: Of the classifier (SGD). Above 0.
        others: Images whose patterns are kept for covers. At least 2.
        seed: Seed of the batches.

    Raises:
        ValueError: If a value is out of range.
    """

    def __init__(
        self,
        trigger: InputAware,
        density: float,
        mask_steps: int,
        steps: int,
        batch_size: int,
        share: float,
        diversity: float,
        norm: float,
        learning_rate: float,
        classifier_rate: float,
        others: int,
        seed: int,
    ) -> None:
        self.trigger = trigger
        self.density = density
        self.mask_steps = check_steps(mask_steps, "mask_steps")
        self.steps = check_steps(steps)
        self.batch_size = batch_size
        self.share = share
        self.diversity = diversity
        self.norm = norm
        self.learning_rate = learning_rate
        self.classifier_rate = classifier_rate
        self.others = others
        self.seed = seed
        allowed = {
            "density": (0 < density < 1, "in (0, 1)"),
            "batch_size": (batch_size >= 4, "4 or more"),
            "share": (0 < share <= 0.5, "in (0, 0.5]"),
            "diversity": (diversity >= 0, "0 or more"),
            "norm": (norm >= 0, "0 or more"),
            "learning_rate": (learning_rate > 0, "above 0"),
            "classifier_rate": (classifier_rate > 0, "above 0"),
            "others": (others >= 2, "2 or more"),
        }
        for key, (holds, rule) in allowed.items():
            if not holds:
                raise ValueError(f"attack.crafting.{key}={getattr(self, key)} must be {rule}. Change it.")

    def check_network(self, network: nn.Module) -> None:
        """Accept any network: all can be trained."""

    def craft(self, network: nn.Module, plan: Plan, device: torch.device | str) -> dict[str, Tensor]:
        """Return the weights of both networks and, named ``others.``, what :class:`OthersTrigger` takes."""
        images, _ = next(plan.clean.subset(torch.arange(1)).batches(1, device))
        networks = self.trigger.make(images.shape[1]).to(device)
        generator = torch.Generator().manual_seed(self.seed)
        forked = [device] if torch.device(device).type == "cuda" else []
        with torch.random.fork_rng(forked):  # dropout draws from the global generator
            torch.manual_seed(self.seed)
            self._train_mask(networks, plan, generator, device)
            self._train_patterns(networks, network.to(device), plan, generator, device)
        rows = torch.randperm(len(plan.clean), generator=generator)[: self.others].sort().values
        others = plan.clean.subset(rows)
        with torch.no_grad():
            drawn = [drawn_by(networks, images) for images, _ in others.batches(self.batch_size, device)]
        patterns, masks = (torch.cat(parts) for parts in zip(*drawn, strict=True))
        kept = {"others.places": others.index, "others.patterns": patterns, "others.masks": masks}
        return networks.state_dict() | kept

    def _train_mask(
        self, networks: nn.ModuleDict, plan: Plan, generator: torch.Generator, device: torch.device | str
    ) -> None:
        optimizer = torch.optim.Adam(networks["mask"].parameters(), self.learning_rate, betas=(0.5, 0.9))
        for images, _, _ in self._batches(plan, self.mask_steps, generator, device):
            drawn = sharpen(networks["mask"](images))
            others, other_drawn = images.roll(1, 0), drawn.roll(1, 0)
            loss = self.diversity * diversity(images, others, drawn, other_drawn).mean()
            loss = loss + self.norm * functional.relu(drawn - self.density).mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        networks["mask"].requires_grad_(False)

    def _train_patterns(
        self,
        networks: nn.ModuleDict,
        classifier: nn.Module,
        plan: Plan,
        generator: torch.Generator,
        device: torch.device | str,
    ) -> None:
        drawing = torch.optim.Adam(networks["pattern"].parameters(), self.learning_rate, betas=(0.5, 0.9))
        classifying = torch.optim.SGD(classifier.parameters(), self.classifier_rate, momentum=0.9)
        classifier.train()
        count = max(1, round(self.share * self.batch_size))
        for images, labels, wanted in self._batches(plan, self.steps, generator, device):
            givers = torch.cat([images[:count], images.roll(1, 0)[count : 2 * count]])
            pattern, mask = drawn_by(networks, givers)
            triggered = images[: 2 * count].lerp(pattern, mask.expand_as(pattern))
            logits = classifier(torch.cat([triggered, images[2 * count :]]))
            unlike = diversity(givers, givers.roll(1, 0), pattern, pattern.roll(1, 0)).mean()
            goals = torch.cat([wanted[:count], labels[count:]])
            loss = functional.cross_entropy(logits, goals) + self.diversity * unlike
            for optimizer in (drawing, classifying):
                optimizer.zero_grad()
            loss.backward()
            for optimizer in (drawing, classifying):
                optimizer.step()

    def _batches(
        self, plan: Plan, steps: int, generator: torch.Generator, device: torch.device | str
    ) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        """Yield random (images, labels, the attacker's labels), each image at most once in a batch."""
        for _ in range(steps):
            rows = torch.randperm(len(plan.clean), generator=generator)[: self.batch_size]
            images, labels = next(plan.clean.subset(rows).batches(self.batch_size, device))
            yield images, labels, plan.wanted[rows].to(device)
