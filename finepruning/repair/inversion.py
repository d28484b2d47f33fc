"""Trigger inversion: the smallest universal change of clean images that sends them to a class.

The searches of all classes run as one batch: a step is one forward and one backward pass over classes times
images, so that many classes cost little more than one.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

import torch
from torch import Tensor, nn

Family = Literal["additive", "mask"]
FAMILIES: tuple[Family, ...] = ("additive", "mask")
UNTARGETED = -1  # a target: away from the true class, whichever comes instead
MEMORY = 0.95  # of the running mean of success, a step
FORCE = 1.05  # factor of the norm's weight, a step
BETAS = (0.5, 0.9)  # of Adam
NOISE = 0.01  # deviation of the first patterns
PIXELS = 512 * 32 * 32  # of the images in one pass at most, unless their number is given
START = {"additive": 0.1, "mask": 0.01}  # weight of the norm in the first step
GAIN = 0.01  # share by which a norm has to fall to count as progress
CONFIRM = 64  # images on which what was found is confirmed
ENLARGE = 1.1  # factor of a trigger that does not succeed on them
ENLARGED = 8  # times, at most
FAINT = 0.05  # opacity of a mask in the first step


@dataclass(frozen=True)
class Search:
    """How triggers are searched for.

    Args:
        steps: Of the optimizer (Adam), at least 1.
        images: Clean images of a step, the same for all classes, at least 1.
        success: Share of images that a trigger has to send to its class, in (0, 1).
        rates: Learning rate of the optimizer for each family, above 0.
        patience: Steps without progress after which a class is settled, at least 1.
        group: Images in one pass at most; more classes than fit go in groups, with the same result. None: as
            many pixels as 512 images of 32x32 have, but no fewer than one class's images.
        precision: ``"bf16-mixed"`` computes passes in bfloat16; anything else in float32.
        seed: Of the images' order and of the first triggers.

    Raises:
        ValueError: If a value is out of range.
    """

    steps: int = 400
    images: int = 4
    success: float = 0.9
    rates: dict[str, float] = field(default_factory=lambda: {"additive": 0.02, "mask": 0.3})
    patience: int = 120
    group: int | None = None
    precision: str = "32-true"
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("steps", "images", "patience", "group"):
            value = getattr(self, name)
            if value is None and name == "group":
                continue
            if not (isinstance(value, int) and value >= 1):
                raise ValueError(
                    f"{name}={value} leaves nothing to search with. Set "
                    f"defense.inspection.search.{name} to 1 or more."
                )
        if self.group is not None and self.images > self.group:
            raise ValueError(
                f"images={self.images} do not fit into passes of group={self.group}. Lower "
                "defense.inspection.search.images, or raise defense.inspection.search.group."
            )
        if not (isinstance(self.success, float) and 0 < self.success < 1):
            raise ValueError(
                f"success={self.success} is outside (0, 1). Change defense.inspection.search.success."
            )
        if set(self.rates) != set(FAMILIES):
            raise ValueError(
                f"rates={self.rates} must name {' and '.join(FAMILIES)}. Change "
                "defense.inspection.search.rates."
            )
        if not all(isinstance(rate, int | float) and 0 < rate < math.inf for rate in self.rates.values()):
            raise ValueError(
                f"rates={self.rates} must be above 0, and finite. Change defense.inspection.search.rates."
            )


@dataclass(frozen=True)
class Trigger:
    """A universal change of images that was found for one class.

    Args:
        family: ``"additive"``: a pattern is added; ``"mask"``: it is laid over the images where a mask is.
        target: The class, or ``UNTARGETED``.
        norm: Smallest norm at which enough images were sent there in the search, enlarged, within limits, for
            more of them: L2 of the pattern, or L1 of the mask, in units of a pixel's whole range; infinite
            where none was found.
        pattern: (C, H, W).
        mask: (1, H, W), opacity in [0, 1]; None of an additive one.
        failed: Whether the search met values that are not numbers, so that nothing is known of this class.
    """

    family: Family
    target: int
    norm: float
    pattern: Tensor
    mask: Tensor | None = None
    failed: bool = False

    def put_on(self, images: Tensor) -> Tensor:
        """Return triggered copies. ``images``: (B, C, H, W), float in [0, 1]; same shape out."""
        pattern = self.pattern.to(images)
        if self.mask is None:
            return (images + pattern).clamp(0, 1)
        return torch.lerp(images, pattern.expand_as(images), self.mask.to(images))


def invert(
    network: nn.Module,
    images: Tensor,
    labels: Tensor,
    targets: Sequence[int],
    family: Family,
    search: Search,
) -> list[Trigger]:
    """Return the smallest trigger of a family for each target.

    Source: Neural Cleanse, Wang et al. 2019 (IEEE S&P), section IV-B, for mask and pattern. Deviations: all
        classes in one batch; the norm's weight changes by 5 % a step, by a running mean of the success on a
        few images, above and below 90 % (paper: 99 % of all); masks start nearly transparent, at a higher
        rate; a class rests when its norm settles; what is found is enlarged until it succeeds on more
        images, too; additive patterns as a second family.

    Args:
        network: Images (B, C, H, W) in [0, 1] -> logits (B, K); is left in evaluation mode.
        images: (N, C, H, W) clean images.
        labels: (N,) their classes. An image of a target's own class is no evidence for it and not used there.
        targets: Classes, or ``UNTARGETED``.
        family: What kind of trigger.
        search: How to search.

    Raises:
        ValueError: If a target has no image of another class.
    """
    for target in targets:
        if not (labels != target).any():
            raise ValueError(
                f"All {len(labels)} clean images are of class {target}: no change can be seen to "
                "send images of other classes there. Give the defender images of two classes or more."
            )
    network.eval()
    room = search.group or PIXELS // math.prod(images.shape[2:])
    classes = max(1, room // search.images)
    groups = [targets[start : start + classes] for start in range(0, len(targets), classes)]
    found = [
        trigger
        for number, group in enumerate(groups)
        for trigger in _invert_group(network, images, labels, group, family, search, number * classes)
    ]
    chosen = torch.randperm(len(images), generator=torch.Generator().manual_seed(search.seed))[:CONFIRM]
    few, theirs = images[chosen.to(images.device)], labels[chosen.to(labels.device)]
    return [_confirmed(network, trigger, few, theirs, search.success) for trigger in found]


@torch.no_grad()
def hits(network: nn.Module, trigger: Trigger, images: Tensor, labels: Tensor) -> tuple[int, int]:
    """Return how many images of another class a trigger sends to its target, and how many there are."""
    others = labels != trigger.target
    if not others.any():
        return 0, 0
    found = network(trigger.put_on(images[others])).argmax(-1)
    won = found != labels[others] if trigger.target == UNTARGETED else found == trigger.target
    return int(won.sum()), int(others.sum())


def _confirmed(
    network: nn.Module, trigger: Trigger, images: Tensor, labels: Tensor, success: float
) -> Trigger:
    """Return a trigger made stronger, within limits, until it succeeds on more images than a step has."""
    if not math.isfinite(trigger.norm):
        return trigger
    for _ in range(ENLARGED):
        won, total = hits(network, trigger, images, labels)
        if won >= success * total:
            break
        if trigger.mask is None:
            pattern = trigger.pattern * ENLARGE
            trigger = replace(trigger, pattern=pattern, norm=float(pattern.norm()))
        else:
            mask = (trigger.mask * ENLARGE).clamp(max=1)
            trigger = replace(trigger, mask=mask, norm=float(mask.sum()))
    return trigger


def _invert_group(
    network: nn.Module,
    images: Tensor,
    labels: Tensor,
    targets: Sequence[int],
    family: Family,
    search: Search,
    first: int,
) -> list[Trigger]:
    """Invert some targets in one batch; ``first`` is the place of the first among all of them."""
    device, count, shape = images.device, len(targets), images.shape[1:]
    goal = torch.tensor(targets, device=device)
    noise = [_noise(shape, search.seed, first + place) for place in range(count)]
    pattern = torch.stack(noise).to(device).requires_grad_()
    opacity = torch.full((count, 1, *shape[1:]), FAINT, device=device).logit().requires_grad_()
    parameters = [pattern] if family == "additive" else [pattern, opacity]
    optimizer = torch.optim.Adam(parameters, search.rates[family], betas=BETAS)
    weight = torch.full((count,), START[family], device=device)
    success = torch.zeros(count, device=device)
    smallest = torch.full((count,), torch.inf, device=device)
    kept = [parameter.detach().clone() for parameter in parameters]
    idle = torch.zeros(count, dtype=torch.long, device=device)  # steps since a smaller norm was found
    failed = torch.zeros(count, dtype=torch.bool, device=device)
    order = torch.Generator().manual_seed(search.seed)
    for _ in range(search.steps):
        active = (~failed & (idle < search.patience)).nonzero().squeeze(1)
        if len(active) == 0:
            break
        rows = torch.randint(len(images), (min(search.images, len(images)),), generator=order).to(device)
        now = [parameter[active] for parameter in parameters]
        norm = _norm(family, now)
        with torch.autocast(device.type, torch.bfloat16, enabled=search.precision == "bf16-mixed"):
            logits = network(_put_on(family, now, images[rows]))
        logits = logits.float().unflatten(0, (len(active), -1))
        loss, rate = _loss_and_success(logits, goal[active], labels[rows])
        total = loss + weight[active] * norm
        gradients = torch.autograd.grad(total.sum(), now)
        with torch.no_grad():
            finite = total.isfinite()
            for parameter, gradient in zip(parameters, gradients, strict=True):
                finite &= gradient.flatten(1).isfinite().all(1)
                parameter.grad = torch.zeros_like(parameter).index_copy_(0, active, gradient)
                parameter.grad[active[~finite]] = 0
            failed[active] = ~finite
            success[active] = torch.where(
                rate.isnan(), success[active], MEMORY * success[active] + (1 - MEMORY) * rate
            )
            enough = (success[active] >= search.success) & finite
            # the running mean lags behind a shrinking norm, so what is kept works on this batch, too
            better = enough & (rate >= search.success) & (norm < smallest[active])
            progress = better & (norm < (1 - GAIN) * smallest[active])
            idle[active] = torch.where(progress | smallest[active].isinf(), 0, idle[active] + 1)
            smallest[active[better]] = norm[better]
            for best, value in zip(kept, now, strict=True):
                best[active[better]] = value[better]
            weight[active] *= torch.where(enough, FORCE, 1 / FORCE)
        optimizer.step()
    return [
        _trigger(family, target, smallest[place].item(), [best[place] for best in kept], bool(failed[place]))
        for place, target in enumerate(targets)
    ]


def _noise(shape: torch.Size, seed: int, place: int) -> Tensor:
    """Return where the search of one target starts, whichever group it is in."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed * 1_000_003 + place)) * NOISE


def _norm(family: Family, now: list[Tensor]) -> Tensor:
    """Return the norm (K,) of each candidate."""
    return now[0].flatten(1).norm(dim=1) if family == "additive" else now[1].sigmoid().flatten(1).sum(1)


def _put_on(family: Family, now: list[Tensor], images: Tensor) -> Tensor:
    """Return each image (B, C, H, W) with each candidate: (K * B, C, H, W)."""
    if family == "additive":
        return (images + now[0][:, None]).clamp(0, 1).flatten(0, 1)
    return torch.lerp(images[None], now[0].sigmoid()[:, None], now[1].sigmoid()[:, None]).flatten(0, 1)


def _loss_and_success(logits: Tensor, goal: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Return the mean loss and the share that goes to its goal, both (K,), of logits (K, B, classes).

    Images that are of a goal's own class do not count; where no other is left, the share is NaN.
    """
    counts = (labels[None] != goal[:, None]).float()  # none is of the class UNTARGETED
    wanted = torch.where(goal == UNTARGETED, 0, goal)[:, None, None].expand(-1, len(labels), 1)
    log_chance = logits.log_softmax(-1)
    reached = log_chance.gather(-1, wanted).squeeze(-1)
    own = labels[None, :, None].expand(len(goal), -1, 1)
    left = log_chance.scatter(-1, own, -torch.inf).logsumexp(-1)  # no rounding where a network is very sure
    away = (goal == UNTARGETED)[:, None]
    found = logits.argmax(-1)
    hits = torch.where(away, found != labels, found == goal[:, None]).float()
    loss = -torch.where(away, left, reached)
    share = (hits * counts).sum(1) / counts.sum(1)
    return (loss * counts).sum(1) / counts.sum(1).clamp(min=1), share


def _trigger(family: Family, target: int, norm: float, best: list[Tensor], failed: bool) -> Trigger:
    """Return what was found for one target, as images."""
    norm = math.inf if failed else norm  # whatever was found before it failed
    if family == "additive":
        return Trigger(family, target, norm, best[0], None, failed)
    return Trigger(family, target, norm, best[0].sigmoid(), best[1].sigmoid(), failed)
