"""A repaired network is written so that others can use it: safetensors, kept channels, ONNX."""

import importlib.util
import json
import logging
import warnings
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import nn

from finepruning.data import ImageSet
from finepruning.metrics import Rate
from finepruning.pruning import pruned_channels
from finepruning.pruning.masks import MASK
from finepruning.store import save_weights, sync, write_file

WEIGHTS = "network.safetensors"
CHANNELS = "channels.json"
ONNX = "network.onnx"
ONNX_PACKAGES = ("onnx", "onnxscript", "onnxruntime")


def write_repaired(network: nn.Module, directory: Path) -> dict[str, dict[str, list[int]]]:
    """Write weights and masks as safetensors, and the kept and pruned channels of each layer as JSON.

    Args:
        network: The repaired network.
        directory: Where ``network.safetensors`` and ``channels.json`` go; made if it is not there.

    Returns:
        For each masked layer its ``kept`` and ``pruned`` channels, counted from 0.
    """
    directory.mkdir(parents=True, exist_ok=True)
    save_weights(network, directory / WEIGHTS)
    channels = {}
    for layer, pruned in pruned_channels(network).items():
        count = len(network.get_buffer(f"{layer}{MASK}"))
        channels[layer] = {"kept": sorted(set(range(count)) - set(pruned)), "pruned": pruned}
    write_file(directory / CHANNELS, json.dumps(channels, indent=1).encode())
    return channels


def require_onnx() -> None:
    """Raise ValueError if a package that writes ONNX is not installed."""
    missing = [package for package in ONNX_PACKAGES[:2] if importlib.util.find_spec(package) is None]
    if missing:
        raise ValueError(
            f"Writing ONNX needs {' and '.join(missing)}. Install {' '.join(ONNX_PACKAGES)}, or set "
            "export.onnx=false."
        )


def write_onnx(network: nn.Module, path: Path, image_shape: Sequence[int]) -> None:
    """Write a network as one ONNX file, for any number of images; masks and normalisation are in it.

    Args:
        network: Images (B, C, H, W) in [0, 1] -> logits (B, K).
        path: The file.
        image_shape: (C, H, W) of the images.

    Raises:
        ValueError: If a package that it needs is not installed.
    """
    require_onnx()
    training = network.training
    device = next((tensor.device for tensor in network.parameters()), torch.device("cpu"))
    disabled = logging.root.manager.disable
    try:
        logging.disable(logging.WARNING)  # torch's and onnxscript's optimizers tell each of their steps
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of torch's exporter, on its own code
            torch.onnx.export(
                network.eval(),
                (torch.rand(2, *image_shape, device=device),),
                path,
                input_names=["images"],
                output_names=["logits"],
                dynamic_shapes=({0: torch.export.Dim("batch")},),
                dynamo=True,
                external_data=False,
                verbose=False,
            )
        sync(path)
    finally:
        logging.disable(disabled)
        network.train(training)


@torch.no_grad()
def agreement(first: nn.Module, second: nn.Module, images: ImageSet) -> Rate:
    """Return the share of images that two networks, both on one device, classify alike."""
    device = next((tensor.device for tensor in first.parameters()), torch.device("cpu"))
    first.eval()
    second.eval()
    hits = sum(
        int((first(batch).argmax(-1) == second(batch).argmax(-1)).sum())
        for batch, _ in images.batches(device=device)
    )
    return Rate(hits, len(images))
