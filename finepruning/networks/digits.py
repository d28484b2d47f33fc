"""Networks for digits."""

from collections import OrderedDict
from collections.abc import Sequence

from torch import Tensor, nn

from finepruning.networks.layers import Normalise, check_size, check_width, conv_blocks


class BadNetsCNN(nn.Sequential):
    """The digit network of BadNets: two convolutions with average pooling, two fully connected layers.

    Source: BadNets, Gu et al. 2017, arXiv:1708.06733, section 4.1 (layer sizes as quoted by independent
        readers).

    Args:
        image_shape: (C, H, W) of the images; H and W at least 16.
        num_classes: Number of classes.
        mean: Mean of each input channel, in [0, 1].
        std: Deviation of each input channel, above 0.

    Raises:
        ValueError: If the images are too small.
    """

    pruned_layer = "pool2"

    def __init__(
        self, image_shape: Sequence[int], num_classes: int, mean: Sequence[float], std: Sequence[float]
    ) -> None:
        check_size(self, image_shape, 16)
        channels, height, width = image_shape
        flat = 32 * (((height - 4) // 2 - 4) // 2) * (((width - 4) // 2 - 4) // 2)
        super().__init__(
            OrderedDict(
                normalise=Normalise(mean, std),
                conv1=nn.Conv2d(channels, 16, 5),
                relu1=nn.ReLU(),
                pool1=nn.AvgPool2d(2),
                conv2=nn.Conv2d(16, 32, 5),
                relu2=nn.ReLU(),
                pool2=nn.AvgPool2d(2),
                flatten=nn.Flatten(),
                fc1=nn.Linear(flat, 512),
                relu3=nn.ReLU(),
                fc2=nn.Linear(512, num_classes),
            )
        )


class DigitsCNN(nn.Module):
    """A small network for scikit-learn's digits: three convolutions with BatchNorm, one linear layer.

    Args:
        image_shape: (C, H, W) of the images; H and W at least 8.
        num_classes: Number of classes.
        mean: Mean of each input channel, in [0, 1].
        std: Deviation of each input channel, above 0.
        width: Channels of the first convolution; each of the next has twice as many. At least 1.

    Raises:
        ValueError: If the images are too small or ``width`` is out of range.
    """

    pruned_layer = "features.pool3"

    def __init__(
        self,
        image_shape: Sequence[int],
        num_classes: int,
        mean: Sequence[float],
        std: Sequence[float],
        width: int = 16,
    ) -> None:
        check_width(width)
        check_size(self, image_shape, 8)
        super().__init__()
        channels, rows, columns = image_shape
        self.normalise = Normalise(mean, std)
        self.features = conv_blocks([channels, width, 2 * width, 4 * width])
        self.flatten = nn.Flatten()
        self.head = nn.Linear(4 * width * (rows // 8) * (columns // 8), num_classes)

    def forward(self, images: Tensor) -> Tensor:
        """Return logits (B, K) for images (B, C, H, W) in [0, 1]."""
        logits: Tensor = self.head(self.flatten(self.features(self.normalise(images))))
        return logits
