"""Networks of torchvision."""

from collections import OrderedDict
from collections.abc import Sequence

import torch
import torchvision
from torch import nn

from finepruning.networks.layers import Normalise

# Where the last convolution's channels are done with normalisation and nonlinearity, by the first name that a
# network has. DenseNet's ReLU follows outside of "features": zeros stay zeros, and ranking looks ahead.
_LAST_LAYERS = ("layer4", "trunk_output", "Mixed_7c", "inception5b", "conv5", "layers", "features")
_OPTIONS: dict[str, dict[str, bool]] = {
    "googlenet": {"aux_logits": False, "init_weights": False},  # one output; no minutes of initialisation
    "inception_v3": {"aux_logits": False, "init_weights": False},
}


class TorchvisionClassifier(nn.Sequential):
    """Any classifier of torchvision by name, untrained.

    Its first convolution is made anew where the images do not have three channels. Most of these networks
    are made for 224x224 pixels and shrink an image by 32.

    Args:
        image_shape: (C, H, W) of the images.
        num_classes: Number of classes.
        mean: Mean of each input channel, in [0, 1].
        std: Deviation of each input channel, above 0.
        architecture: Its name, as in ``torchvision.models.list_models()``.

    Raises:
        ValueError: If there is no such classifier, or it cannot read such images.
    """

    def __init__(
        self,
        image_shape: Sequence[int],
        num_classes: int,
        mean: Sequence[float],
        std: Sequence[float],
        architecture: str,
    ) -> None:
        names = torchvision.models.list_models(module=torchvision.models)
        if architecture not in names:
            raise ValueError(
                f"torchvision has no classifier {architecture!r}. Choose model.architecture among: "
                f"{', '.join(names)}."
            )
        model = torchvision.models.get_model(
            architecture, weights=None, num_classes=num_classes, **_OPTIONS.get(architecture, {})
        )
        _read_channels(model, image_shape[0])
        super().__init__(OrderedDict(normalise=Normalise(mean, std), model=model))
        self.architecture = architecture
        self._try(image_shape)

    @property
    def pruned_layer(self) -> str:
        """The layer that is pruned by default.

        Raises:
            ValueError: If none is known for this architecture.
        """
        if self.architecture.startswith("swin"):
            return "model.permute"  # all before it have their channels last
        if self.architecture.startswith("convnext"):
            return "model.classifier.0"  # LayerNorm, which would bring a channel of zeros back to life
        children = [name for name, _ in self.get_submodule("model").named_children()]
        for name in _LAST_LAYERS:
            if name in children:
                return f"model.{name}"
        raise ValueError(
            f"No layer of {self.architecture} is known to be the one to prune. Name one in defense.layers, "
            "whose output is (B, C, ...): channels that come last are not pruned."
        )

    @torch.no_grad()
    def _try(self, image_shape: Sequence[int]) -> None:
        """Raise ValueError if the network cannot read images of this shape."""
        try:
            self.eval()(torch.zeros(1, *image_shape))
        except (RuntimeError, ValueError, AssertionError) as error:
            height, width = image_shape[1:]
            raise ValueError(
                f"{self.architecture} cannot read images of {height}x{width} pixels ({error}). Choose "
                "another model.architecture, or larger images in dataset."
            ) from error
        self.train()


def _read_channels(model: nn.Module, channels: int) -> None:
    """Let the first convolution read images of so many channels."""
    name, first = next((name, layer) for name, layer in model.named_modules() if isinstance(layer, nn.Conv2d))
    if first.in_channels == channels:
        return
    parent, _, child = name.rpartition(".")
    adapted = nn.Conv2d(
        channels,
        first.out_channels,
        first.kernel_size,  # type: ignore[arg-type]
        first.stride,  # type: ignore[arg-type]
        first.padding,  # type: ignore[arg-type]
        bias=first.bias is not None,
    )
    setattr(model.get_submodule(parent), child, adapted)
