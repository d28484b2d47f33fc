"""Keras weights in HDF5 become weights of a PyTorch network.

Kernels are (height, width, in, out) there and (out, in, height, width) here; images are flattened with the
channels last there and first here.
"""

import logging
import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import h5py
import numpy as np
import torch
from torch import Tensor, nn

from finepruning.data.hdf5 import held, printable
from finepruning.suspect.flattening import flattened_maps
from finepruning.suspect.weights import UnreadableError

MOST_OBJECTS = 10_000  # groups and arrays of a file
KERAS_EPSILON = 1e-3  # of Keras's BatchNormalization
OPTIMIZERS = ("optimizer_weights", "optimizer")  # groups that hold no layer
CONTAINERS = ("layers", "_layer_checkpoint_dependencies")  # groups of Keras 3's files
SEEDS = "/seed_generator/"  # of dropout, there
NORM = ("gamma", "beta", "moving_mean", "moving_variance")  # in the order of Keras 3's numbers
NORMS = nn.BatchNorm1d | nn.BatchNorm2d | nn.BatchNorm3d
log = logging.getLogger(__name__)

Arrays = dict[str, dict[str, Tensor]]


def read_keras(path: Path, largest: int) -> Arrays:
    """Return the arrays of each layer of a Keras file of weights, by the layer's name and the array's.

    Links to other places, arrays stored elsewhere and objects are refused.

    Args:
        path: The file.
        largest: Bytes that its arrays may have in memory; a small file can claim any number.

    Raises:
        UnreadableError: If the file is damaged or holds anything else.
    """
    if not path.is_file():
        raise UnreadableError(f"{path} is not a file. Change suspect.weights.")
    layers: Arrays = {}
    try:
        with h5py.File(path, "r") as file:
            found = [(name.removeprefix("model_weights/"), array) for name, array in _arrays(file, "", set())]
            found = [(name, array) for name, array in found if "/" in name and SEEDS not in name]
            size = sum(array.nbytes for _, array in found)
            if size > largest:
                raise UnreadableError(
                    f"{path} has {size / 1e6:.1f} MB of arrays, far more than the network takes. Choose "
                    "another model."
                )
            for name, array in found:
                layer, leaf = _place(name, array)
                layers.setdefault(layer, {})[leaf] = torch.from_numpy(np.asarray(array[()], dtype=np.float32))
    except UnreadableError:
        raise
    except Exception as error:  # HDF5 raises anything on a hostile file
        raise UnreadableError(
            f"{path} is not a sound HDF5 file ({type(error).__name__}: {error})."
        ) from error
    if not layers:
        raise UnreadableError(
            f"{path} holds no layer with weights. Save it with Keras's save_weights, as HDF5."
        )
    return layers


def _place(name: str, array: h5py.Dataset) -> tuple[str, str]:
    """Return the layer and the array of a path: conv/conv/kernel:0 or, of Keras 3, layers/conv2d/vars/0.

    Keras 3 calls the layers of a list by their class there, and writes their names beside the arrays.
    """
    *groups, leaf = name.split("/")
    if groups[-1] != "vars":
        return groups[0], leaf.split(":")[0]
    layer = [group for group in groups[:-1] if group not in CONTAINERS]
    if len(layer) < len(groups) - 1 and (own := _own_name(array.parent)):
        layer[-1:] = [own]
    return "/".join(layer), leaf


def _own_name(group: h5py.Group) -> str | None:
    """Return the name that a group has as an attribute."""
    if "name" not in group.attrs:
        return None
    about = group.attrs.get_id("name")
    if about.shape != () or h5py.check_string_dtype(about.dtype) is None:
        return None
    name = group.attrs["name"]
    return name if isinstance(name, str) else None


def _named(layer: nn.Module, given: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
    """Return a layer's arrays by name where Keras 3 numbers them."""
    norm = NORM if len(given) == len(NORM) else NORM[2:]
    names = norm if isinstance(layer, NORMS) else ("kernel", "bias")
    places = [str(place) for place in range(len(given))]
    if set(given) != set(places) or len(given) > len(names):  # of gamma and beta one alone: which?
        return given
    return {name: given[place] for name, place in zip(names, places, strict=False)}


def _arrays(group: h5py.Group, place: str, seen: set[tuple[int, int]]) -> list[tuple[str, h5py.Dataset]]:
    """Return the numeric arrays in a group and its groups, by path.

    Args:
        group: The group.
        place: Its path.
        seen: Where the groups and arrays lie that were met before. One that is met again is refused: groups
            that share groups have any number of paths in a few kilobytes.
    """
    found: list[tuple[str, h5py.Dataset]] = []
    if place.count("/") > 8:
        raise UnreadableError(f"The groups at {printable(place)} of the HDF5 file are nested too deep.")
    for name in group:
        here = f"{place}/{name}".lstrip("/")
        try:
            item = held(group, name)
        except ValueError as error:
            raise UnreadableError(str(error)) from error
        about = h5py.h5o.get_info(item.id)
        if (about.fileno, about.addr) in seen:
            raise UnreadableError(f"{printable(here)} in the HDF5 file has two names, which is refused.")
        seen.add((about.fileno, about.addr))
        if len(seen) > MOST_OBJECTS:
            raise UnreadableError(f"The HDF5 file has more than {MOST_OBJECTS} groups and arrays.")
        if isinstance(item, h5py.Group):
            found += _arrays(item, here, seen) if here not in OPTIMIZERS else []
        else:
            found.append((here, item))
    return found


def from_keras(
    arrays: Arrays,
    network: nn.Module,
    image_shape: Sequence[int],
    layer_map: Mapping[str, str] | None = None,
) -> dict[str, Tensor]:
    """Return weights by the names of ``network``.

    Args:
        arrays: What :func:`read_keras` gives.
        network: The network that they are for; it is run once, on nothing, to see what is flattened.
        image_shape: (C, H, W) of the images.
        layer_map: Keras's name for each layer of the network that has weights. None pairs names that are
            equal but for case, dots, dashes and underscores: conv_1 is conv1.

    Raises:
        UnreadableError: If layers cannot be paired, or one is of a kind that is not known.
    """
    layers = {
        name: module
        for name, module in network.named_modules()
        if name and any(True for _ in module.parameters(recurse=False))
    }
    pairs = dict(layer_map) if layer_map else _pair(layers, arrays)
    unknown = [name for name in pairs if name not in layers]
    absent = [theirs for theirs in pairs.values() if theirs not in arrays]
    unpaired = [name for name in layers if name not in pairs]
    unused = [theirs for theirs in arrays if theirs not in pairs.values()]
    if unknown or absent or unpaired or unused:
        raise UnreadableError(
            f"The file's layers do not pair with the network's: {_first([*unpaired, *unknown])} of the "
            f"network and {_first([*unused, *absent])} of the file are left. Choose another model, or write "
            "suspect.layer_map: {layer of the network: layer of the file}."
        )
    flattened = flattened_maps(network, image_shape)
    state: dict[str, Tensor] = {}
    for name, theirs in pairs.items():
        for leaf, values in _convert(name, layers[name], arrays[theirs], flattened.get(name)).items():
            state[f"{name}.{leaf}"] = values.contiguous()
    return state


def _first(names: Sequence[str]) -> str:
    return ", ".join(map(printable, names[:10])) or "none"


def _pair(layers: Mapping[str, nn.Module], arrays: Arrays) -> dict[str, str]:
    """Return the layers whose names are the same letters and digits."""
    theirs = {"".join(filter(str.isalnum, name)).lower(): name for name in arrays}
    plain = {name: "".join(filter(str.isalnum, name.rpartition(".")[2])).lower() for name in layers}
    return {name: theirs[key] for name, key in plain.items() if key in theirs}


def _convert(
    name: str, layer: nn.Module, given: Mapping[str, Tensor], flattened: tuple[int, ...] | None
) -> dict[str, Tensor]:
    """Return a layer's weights in PyTorch's order."""
    given = _named(layer, given)
    if isinstance(layer, nn.Conv2d) and given.keys() <= {"kernel", "bias"} and _ndim(given, "kernel", 4):
        return _renamed(given, {"kernel": "weight", "bias": "bias"}) | {
            "weight": given["kernel"].permute(3, 2, 0, 1)
        }
    if isinstance(layer, nn.Linear) and given.keys() <= {"kernel", "bias"} and _ndim(given, "kernel", 2):
        kernel = _channels_first(given["kernel"], flattened)
        return _renamed(given, {"kernel": "weight", "bias": "bias"}) | {"weight": kernel.T}
    if isinstance(layer, NORMS) and _ndim(given, "moving_mean", 1) and _ndim(given, "moving_variance", 1):
        ones = torch.ones_like(given["moving_mean"])
        found = {
            "weight": given.get("gamma", ones),
            "bias": given.get("beta", torch.zeros_like(ones)),
            "running_mean": given["moving_mean"],
            "running_var": given["moving_variance"] + (KERAS_EPSILON - layer.eps),
        }
        return {leaf: _channels_first(values, flattened) for leaf, values in found.items()}
    raise UnreadableError(
        f"{name} is a {type(layer).__name__}; the arrays given for it are "
        f"{', '.join(f'{leaf} {tuple(values.shape)}' for leaf, values in given.items())}. Convolutions, "
        "linear layers and BatchNorm can be read from Keras. Change model, or suspect.layer_map."
    )


def _channels_first(values: Tensor, flattened: tuple[int, ...] | None) -> Tensor:
    """Return values (H * W * C, ...) for a flattened map in PyTorch's order; others as they are."""
    if flattened is None or values.ndim == 0 or len(values) != math.prod(flattened):
        return values
    channels, height, width = flattened
    return values.reshape(height, width, channels, *values.shape[1:]).movedim(2, 0).flatten(0, 2)


def _ndim(given: Mapping[str, Tensor], leaf: str, ndim: int) -> bool:
    return leaf in given and given[leaf].ndim == ndim


def _renamed(given: Mapping[str, Tensor], names: Mapping[str, str]) -> dict[str, Tensor]:
    return {names[leaf]: values for leaf, values in given.items()}
