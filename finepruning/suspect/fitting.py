"""Weights of somebody else's are put into a network, if they fit it."""

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from finepruning.data.hdf5 import printable
from finepruning.pruning import add_mask, channel_count
from finepruning.pruning.masks import MASK
from finepruning.suspect.keras import from_keras, read_keras
from finepruning.suspect.weights import KERAS, PREFIXES, UnreadableError, read_weights

SLACK = 2**22  # bytes that any file may have
NESTED = 8  # wrappers around a network, at most
OPTIONAL = (".num_batches_tracked", "normalise.mean", "normalise.std")  # a stranger's file may lack them


def load_suspect(
    network: nn.Module,
    path: Path,
    image_shape: Sequence[int],
    num_classes: int,
    layer_map: Mapping[str, str] | None = None,
) -> nn.Module:
    """Return ``network`` with the weights, and channel masks if any, of a file that somebody else wrote.

    Args:
        network: Images (B, C, H, W) in [0, 1] -> logits (B, K); untouched if the file does not fit it.
        path: safetensors, PyTorch (weights only), or Keras weights in HDF5.
        image_shape: (C, H, W) of the images.
        num_classes: Classes of the data set.
        layer_map: For Keras: the file's name for each layer of the network; None pairs like names.

    Raises:
        UnreadableError: If the file is damaged, unsafe, for another network or for other classes, or holds
            values that are not finite.
    """
    if path.suffix.lower() in KERAS:
        largest = SLACK + 4 * sum(values.nbytes for values in network.state_dict().values())
        state = from_keras(read_keras(path, largest), network, image_shape, layer_map)
    else:
        state = _renamed(read_weights(path), network.state_dict().keys(), path)
    masks = {name.removesuffix(MASK): state.pop(name) for name in list(state) if name.endswith(MASK)}
    own = network.state_dict()
    _check_fit(state, own, num_classes, path)
    state = {name: values.to(own[name].dtype) for name, values in state.items()}
    _check_finite(state, path)
    _check_logits(network, state, image_shape, path)
    _check_masks(masks, network, image_shape, path)
    for layer, mask in masks.items():
        add_mask(network, layer, len(mask))
        network.get_buffer(layer + MASK).copy_(mask)
    network.load_state_dict(state, strict=False)
    return network


def _renamed(state: dict[str, Tensor], wanted: Iterable[str], path: Path) -> dict[str, Tensor]:
    """Return weights by the network's names: without wrappers' prefixes, or behind ``model.``."""
    wanted = set(wanted)
    names = [name.replace("_orig_mod.", "") for name in state]
    candidates = [names]
    for _ in range(NESTED):
        prefix = next((p for p in PREFIXES if any(name.startswith(p) for name in names)), None)
        if prefix is None:
            break
        names = [name.removeprefix(prefix) for name in names]
        candidates.append(names)
    candidates += [[f"model.{name}" for name in candidate] for candidate in candidates]
    best = max(candidates, key=lambda candidate: len(wanted & set(candidate)))
    if len(set(best)) < len(best):
        twice = sorted({name for name in best if best.count(name) > 1})
        raise UnreadableError(f"{path} has two values each for {_listed(twice)}.")
    return dict(zip(best, state.values(), strict=True))


def _check_fit(given: Mapping[str, Tensor], own: Mapping[str, Tensor], num_classes: int, path: Path) -> None:
    """Raise UnreadableError if names or shapes differ."""
    unexpected = [name for name in given if name not in own]
    missing = [name for name in own if name not in given and not name.endswith((*OPTIONAL, MASK))]
    wrong = {
        name: values for name, values in given.items() if name in own and values.shape != own[name].shape
    }
    if not (missing or unexpected or wrong):
        return
    classes = _other_classes(wrong, own, num_classes)
    if classes is not None and not (missing or unexpected):
        raise UnreadableError(
            f"{path} is of a network for {classes} classes, and the data set has {num_classes}. Choose the "
            "dataset that it was trained for."
        )
    shapes = [
        f"{name} {list(values.shape)} instead of {list(own[name].shape)}" for name, values in wrong.items()
    ]
    lists = (("missing", missing), ("unexpected", unexpected), ("wrong shapes", shapes))
    said = [f"{what}: {_listed(names)}" for what, names in lists if names]
    remedy = (
        "Choose another model" if missing or wrong else "Take that out of the file, or choose another model"
    )
    raise UnreadableError(f"{path} is not of this network. {'; '.join(said)}. {remedy}.")


def _listed(names: Sequence[str]) -> str:
    more = f" and {len(names) - 10} more" if len(names) > 10 else ""
    return ", ".join(map(printable, names[:10])) + more


def _other_classes(wrong: Mapping[str, Tensor], own: Mapping[str, Tensor], num_classes: int) -> int | None:
    """Return the file's number of classes if that is all that differs, else None."""
    layers = {name.rpartition(".")[0] for name in wrong}
    firsts = {values.shape[0] if values.ndim else 0 for values in wrong.values()}
    alike = all(
        own[name].ndim and own[name].shape[0] == num_classes and own[name].shape[1:] == values.shape[1:]
        for name, values in wrong.items()
    )
    return firsts.pop() if alike and len(layers) == 1 and len(firsts) == 1 else None


def _check_finite(state: Mapping[str, Tensor], path: Path) -> None:
    """Raise UnreadableError if a value is not a number, or infinite."""
    bad = [name for name, values in state.items() if not torch.isfinite(values.float()).all()]
    if bad:
        raise UnreadableError(
            f"{path} has values that are not finite in {_listed(bad)}. Ask for sound weights."
        )


@torch.no_grad()
def _check_logits(
    network: nn.Module, state: dict[str, Tensor], image_shape: Sequence[int], path: Path
) -> None:
    """Raise UnreadableError if these weights do not give finite logits, as with a variance below 0."""
    images = torch.rand(2, *image_shape, generator=torch.Generator().manual_seed(0))
    training = network.training
    try:
        logits = torch.func.functional_call(network.eval(), state, (images,))
    finally:
        network.train(training)
    if not torch.isfinite(logits).all():
        raise UnreadableError(
            f"The weights of {path} give logits that are not finite. Ask for sound weights."
        )


def _check_masks(
    masks: Mapping[str, Tensor], network: nn.Module, image_shape: Sequence[int], path: Path
) -> None:
    """Raise UnreadableError if a channel mask has no layer, another length, or is not of zeros and ones."""
    for layer, mask in masks.items():
        try:
            channels = channel_count(network, layer, image_shape)
        except ValueError as error:
            raise UnreadableError(
                f"{path} has a mask of {layer!r}, which is no layer with channels of this network. Choose "
                "another model."
            ) from error
        if mask.shape != (channels,) or not ((mask == 0) | (mask == 1)).all():
            raise UnreadableError(
                f"{path} has a mask {list(mask.shape)} of {layer!r}; {channels} zeros and ones are needed."
            )


def network_hash(network: nn.Module, *programs: Path) -> str:
    """Return a hash of a network's weights, and of the programs that define it."""
    digest = hashlib.sha256()
    for name, values in network.state_dict().items():
        digest.update(f"{name}{values.dtype}{list(values.shape)}".encode())
        digest.update(values.cpu().contiguous().numpy().tobytes())
    for program in programs:
        digest.update(program.read_bytes())
    return digest.hexdigest()[:16]
