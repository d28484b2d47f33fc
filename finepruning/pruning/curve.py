"""Every step of pruning for about the price of one pass.

What lies before the pruned layer runs once per batch. Of what follows only that is repeated which a step can
change: images on which the channel was awake. Where the tail begins with something affine (pooling, a linear
layer, a convolution) a step subtracts the channel's share of it; predictions too close to call after that
are made again in full, so that the curve stays exact.
"""

import itertools
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from finepruning.metrics import clean_hits, predicted
from finepruning.pruning.affine import AffineTail, affine_tail
from finepruning.pruning.cut import Cut, cut_at, hooked_cut, is_faithful
from finepruning.pruning.masks import mask_of
from finepruning.pruning.passes import evaluating
from finepruning.pruning.ranking import Channel, mean_activations, prune_order
from finepruning.pruning.stop import PrunePoint, count_steps

TOO_CLOSE = 1e-4  # of the largest logit: 100 times what float32 rounding was seen to move
TOO_CLOSE_TF32 = 1e-2  # the same where a GPU's convolutions round to ten bits
CHUNK = 2**20  # numbers held at once beside the features; 4 MB of float32, about a cache
PROBE = 4  # images that check a cut


@torch.no_grad()
def step_predictions(cut: Cut, images: Tensor, order: Sequence[Channel]) -> Tensor:
    """Return what the network predicts before the first and after each channel of ``order`` is pruned.

    Args:
        cut: The network, cut at the layers that ``order`` names; those behind the cut must be masked layers.
        images: (B, C, H, W).
        order: Channels in the order in which they go.

    Returns:
        Predicted classes, shape (len(order) + 1, B).
    """
    cut = _checked(cut, images)
    values = cut.before(images)
    by_image = all(isinstance(value, Tensor) and value.shape[:1] == images.shape[:1] for value in values)
    if not cut.first or not by_image or any(channel.layer not in cut.first for channel in order):
        return _one_by_one(cut, values, order, by_image)
    batch = _Batch.of(cut, values, order)
    predictions = torch.zeros_like(batch.changed, dtype=torch.long)
    tail = _affine_tail(cut, batch)
    if tail is None:
        _predict_in_full(cut, batch, batch.changed, predictions)
    else:
        _predict_by_shares(cut, tail, batch, predictions)
    steps = torch.arange(len(predictions), device=images.device)[:, None]
    return predictions.gather(0, torch.where(batch.changed, steps, 0).cummax(0).values)


def _by_channel(features: Tensor) -> Tensor:
    """Return features (B, C, ...) as (B, C, S)."""
    return features.reshape(*features.shape[:2], -1)


class _Batch(NamedTuple):
    """What crosses the cut for some images, and when which channel goes.

    Args:
        heads: Features of each pruned layer, (B, C, ...).
        others: Whatever else crosses the cut, (B, ...) each.
        places: (steps,) the place of each step's channel among all channels of all heads.
        last_steps: For each head (C,) the last step at which a channel is still there.
        changed: (steps + 1, B) whether a step changes anything in an image.
    """

    heads: tuple[Tensor, ...]
    others: tuple[Tensor, ...]
    places: Tensor
    last_steps: tuple[Tensor, ...]
    changed: Tensor

    @classmethod
    def of(cls, cut: Cut, values: Sequence[Tensor], order: Sequence[Channel]) -> "_Batch":
        heads, others = tuple(values[: len(cut.first)]), tuple(values[len(cut.first) :])
        widths = [head.shape[1] for head in heads]
        starts = dict(zip(cut.first, itertools.accumulate(widths, initial=0), strict=False))
        places = torch.tensor([starts[layer] + number for layer, number in order], dtype=torch.long)
        last_steps = torch.full((sum(widths),), len(order)).index_put((places,), torch.arange(len(order)))
        places, last_steps = places.to(heads[0].device), last_steps.to(heads[0].device)
        awake = torch.cat([(_by_channel(head) != 0).any(2) for head in heads], dim=1)
        changed = torch.cat([torch.ones_like(awake[:, :1]), awake[:, places]], dim=1).T
        return cls(heads, others, places, last_steps.split(widths), changed)

    def rows(self, images: Tensor, steps: Tensor) -> list[Tensor]:
        """Return a copy of what crosses the cut for some images (N,), each at a step (N,) of its own."""
        kept = [(last[None, :] >= steps[:, None]) for last in self.last_steps]
        heads = [
            head[images].mul_(keep.view(*keep.shape, *[1] * (head.ndim - 2)))
            for head, keep in zip(self.heads, kept, strict=True)
        ]
        return [*heads, *(other[images] for other in self.others)]


def _predict_in_full(cut: Cut, batch: _Batch, wanted: Tensor, predictions: Tensor) -> None:
    """Run the whole tail for the wanted (steps + 1, B) pairs, as many at once as there are images."""
    for pairs in wanted.nonzero().split(len(wanted[0])):
        steps, images = pairs.unbind(1)
        predictions[steps, images] = predicted(cut.after(*batch.rows(images, steps)))


def _predict_by_shares(cut: Cut, tail: AffineTail, batch: _Batch, predictions: Tensor) -> None:
    """Subtract channel by channel from what the affine part gives, run the rest for all steps together."""
    steps = len(batch.places)
    close = torch.zeros_like(batch.changed)
    backwards = batch.places.flip(0)
    width = tail.slopes[0].shape[2]
    all_go = all(bool((last < steps).all()) for last in batch.last_steps)
    empty = tail.value(*(torch.zeros_like(head[:1]) for head in batch.heads))  # with no channel left
    tolerance = _too_close(predictions)
    for images in torch.arange(predictions.shape[1], device=predictions.device).split(
        max(1, CHUNK // ((steps + 1) * width))
    ):
        shares = _shares(tail, [head[images] for head in batch.heads])
        states = shares.new_empty(steps + 1, len(images), width)
        end = [] if all_go else batch.rows(images, torch.full_like(images, steps))
        states[0] = empty if all_go else tail.value(*end[: len(batch.heads)])
        torch.index_select(shares, 0, backwards, out=states[1:])
        states.cumsum_(0)  # row r is the network before the last r channels went
        changed = batch.changed[:, images].flip(0)
        pairs = changed.nonzero()
        for rows in pairs.split(max(len(images), CHUNK // width)):
            back, which = rows.unbind(1)
            values = states.flatten(0, 1).index_select(0, back * len(images) + which)
            logits = tail.rest(values, *(other[images[which]] for other in batch.others))
            top, best = logits.max(-1)
            scale = torch.maximum(top.abs(), logits.amin(-1).abs())
            second = logits.scatter_(1, best[:, None], -torch.inf).amax(-1)
            predictions[steps - back, images[which]] = best
            close[steps - back, images[which]] = ~(top - second > tolerance * scale)
    _predict_in_full(cut, batch, close, predictions)


def _shares(tail: AffineTail, heads: Sequence[Tensor]) -> Tensor:
    """Return what each channel of each head adds to the values, (channels, B, Z)."""
    shares = [
        torch.bmm(_by_channel(head).transpose(0, 1), slope)
        for head, slope in zip(heads, tail.slopes, strict=True)
    ]
    return torch.cat(shares) if shares[1:] else shares[0]


def _too_close(like: Tensor) -> float:
    """Return which share of the largest logit two logits must differ by to count as apart."""
    return TOO_CLOSE_TF32 if like.is_cuda and torch.backends.cudnn.allow_tf32 else TOO_CLOSE


def _one_by_one(cut: Cut, values: Sequence[Any], order: Sequence[Channel], by_image: bool) -> Tensor:
    """Run the tail step by step, where a pruned layer follows another or a value belongs to no image."""
    features = {layer: values[place].clone() for place, layer in enumerate(cut.first)}
    crossing = values[len(cut.first) :]
    masks = {layer: mask_of(cut.network, layer) for layer, _ in order if layer not in cut.first}
    unpruned = {layer: mask.clone() for layer, mask in masks.items()}

    def predict(some: Tensor | None = None) -> Tensor:
        inputs = [
            (value.clone() if some is None else value[some]) if isinstance(value, Tensor) else value
            for value in (*features.values(), *crossing)
        ]
        return predicted(cut.after(*inputs))

    steps = [predict()]
    try:
        for layer, number in order:
            if layer in masks:
                masks[layer][number] = 0.0
                steps.append(predict())
                continue
            channel = features[layer][:, number]
            awake = channel.flatten(1).any(1) if channel.ndim > 1 else channel != 0
            channel.zero_()
            if by_image and not awake.all():
                predictions = steps[-1].clone()
                if awake.any():
                    predictions[awake] = predict(awake)
                steps.append(predictions)
            else:
                steps.append(predict())
    finally:
        for layer, mask in masks.items():
            mask.copy_(unpruned[layer])
    return torch.stack(steps)


def _checked(cut: Cut, images: Tensor) -> Cut:
    """Return a cut that is known to give the network's own logits: this one, or one by a hook."""
    if "checked" not in cut.cache:
        faithful = is_faithful(cut, images[:PROBE])
        reason = "its parts do not give its logits"
        cut.cache["checked"] = cut if faithful else hooked_cut(cut.network, cut.layers, reason)
    checked: Cut = cut.cache["checked"]
    return checked


def _affine_tail(cut: Cut, batch: _Batch) -> AffineTail | None:
    """Return the affine part of the tail, if summing up its shares gives the tail's own logits.

    They must agree far better than what is too close to call: in a network whose logits are small differences
    of large numbers, rounding alone would decide.
    """
    if "affine" not in cut.cache:
        some = torch.arange(min(PROBE, len(batch.heads[0])), device=batch.changed.device)
        values = batch.rows(some, torch.zeros_like(some))
        heads, others = values[: len(batch.heads)], values[len(batch.heads) :]
        tail = affine_tail(cut, heads) if heads[0].dtype == torch.float32 else None
        if tail is not None:
            shares = _shares(tail, heads)
            shares[0] += tail.value(*(torch.zeros_like(head) for head in heads))
            logits, whole = tail.rest(shares.cumsum(0)[-1], *others), cut.after(*heads, *others)
            error, scale = (values.abs().amax(-1) for values in (logits - whole, whole))
            if not (error <= _too_close(whole) / 10 * scale).all():
                tail = None
        cut.cache["affine"] = tail
    known: AffineTail | None = cut.cache["affine"]
    return known


def validation_curve(
    network: nn.Module,
    layers: Sequence[str],
    order: Sequence[Channel],
    batches: Iterable[tuple[Tensor, Tensor]],
) -> list[PrunePoint]:
    """Return the accuracy before the first and after each channel of ``order`` is pruned.

    Args:
        network: The network; its mode is as before afterwards.
        layers: Names of the layers that ``order`` names; masked layers if one follows another.
        order: Channels in the order in which they go.
        batches: Images (B, C, H, W) and labels (B,) of the defender.
    """
    hits, total = torch.zeros(len(order) + 1, dtype=torch.long), 0
    with evaluating(network):
        cut = cut_at(network, layers)
        for images, labels in batches:
            hits += clean_hits(step_predictions(cut, images, order), labels)[0].cpu()
            total += len(labels)
    return count_steps(order, hits.tolist(), total)


def prune_alone(
    network: nn.Module, layers: Sequence[str], batches: Callable[[], Iterable[tuple[Tensor, Tensor]]]
) -> dict[str, list[PrunePoint]]:
    """Return the curve of each layer, pruned alone in ascending activation: which layer can spare what.

    Args:
        network: The network; its mode is as before afterwards.
        layers: Names of the layers.
        batches: Gives the images (B, C, H, W) and labels (B,) of the defender, anew for each layer.
    """
    activations = mean_activations(network, layers, (images for images, _ in batches()))
    return {
        layer: validation_curve(network, [layer], prune_order({layer: activations[layer]}), batches())
        for layer in layers
    }
