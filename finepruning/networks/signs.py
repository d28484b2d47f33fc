"""Networks for traffic signs."""

from collections import OrderedDict
from collections.abc import Sequence

from torch import nn

from finepruning.networks.layers import Normalise, check_dropout, check_size, check_width, conv_blocks


class SignCNN(nn.Sequential):
    """A sign network for two CPU cores: four convolutions with BatchNorm, one linear layer.

    Args:
        image_shape: (C, H, W) of the images; H and W at least 16.
        num_classes: Number of classes.
        mean: Mean of each input channel, in [0, 1].
        std: Deviation of each input channel, above 0.
        width: Channels of the first convolution; each of the next has twice as many. At least 1.
        dropout: Share of the linear layer's inputs that is left out in training, in [0, 1).

    Raises:
        ValueError: If the images are too small, or ``width`` or ``dropout`` is out of range.
    """

    pruned_layer = "features.pool4"

    def __init__(
        self,
        image_shape: Sequence[int],
        num_classes: int,
        mean: Sequence[float],
        std: Sequence[float],
        width: int = 32,
        dropout: float = 0.3,
    ) -> None:
        check_width(width)
        check_dropout(dropout)
        check_size(self, image_shape, 16)
        channels, rows, columns = image_shape
        super().__init__(
            OrderedDict(
                normalise=Normalise(mean, std),
                features=conv_blocks([channels, width, 2 * width, 4 * width, 8 * width]),
                flatten=nn.Flatten(),
                dropout=nn.Dropout(dropout),
                head=nn.Linear(8 * width * (rows // 16) * (columns // 16), num_classes),
            )
        )
