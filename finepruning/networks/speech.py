"""Networks for speech, seen as spectrograms."""

from collections import OrderedDict
from collections.abc import Sequence

from torch import nn

from finepruning.networks.layers import Normalise, check_dropout, check_size, check_width, conv_blocks


class SpeechCNN(nn.Sequential):
    """The speech network of Fine-Pruning: five convolutions in the manner of AlexNet, three linear layers.

    Source: Fine-Pruning, Liu et al. 2018, arXiv:1805.12185, section "Backdoor Attacks", layer sizes from the
        authors' files, which read pictures of 3x512x512; no nonlinearity follows the first two convolutions.

    Args:
        image_shape: (C, H, W) of the spectrograms.
        num_classes: Number of words.
        mean: Mean of each input channel, in [0, 1].
        std: Deviation of each input channel, above 0.
        size: Side to which spectrograms are scaled first, in pixels, at least 67; None leaves them as they
            are.
        dropout: Share of each linear layer's outputs that is left out in training, in [0, 1).

    Raises:
        ValueError: If the scaled spectrograms are too small or ``dropout`` is out of range.
    """

    pruned_layer = "pool5"

    def __init__(
        self,
        image_shape: Sequence[int],
        num_classes: int,
        mean: Sequence[float],
        std: Sequence[float],
        size: int | None = 128,
        dropout: float = 0.5,
    ) -> None:
        check_dropout(dropout)
        channels, *sides = image_shape
        rows, columns = sides if size is None else (size, size)
        if min(rows, columns) < 67:
            raise ValueError(
                f"SpeechCNN needs spectrograms of at least 67x67 pixels; these would be {rows}x{columns}. "
                "Set model.size to 67 or more, to which they are scaled."
            )
        super().__init__(
            OrderedDict(
                normalise=Normalise(mean, std),
                scale=nn.Upsample((rows, columns), mode="bilinear"),
                conv1=nn.Conv2d(channels, 96, 11, stride=4),
                pool1=nn.MaxPool2d(3, 2),
                conv2=nn.Conv2d(96, 256, 5, padding=2, groups=2),
                pool2=nn.MaxPool2d(3, 2),
                conv3=nn.Conv2d(256, 384, 3, padding=1),
                relu3=nn.ReLU(),
                conv4=nn.Conv2d(384, 384, 3, padding=1, groups=2),
                relu4=nn.ReLU(),
                conv5=nn.Conv2d(384, 256, 3, padding=1, groups=2),
                relu5=nn.ReLU(),
                pool5=nn.MaxPool2d(3, 2),
                flatten=nn.Flatten(),
                fc1=nn.Linear(256 * _pooled(rows) * _pooled(columns), 256),
                relu6=nn.ReLU(),
                dropout1=nn.Dropout(dropout),
                fc2=nn.Linear(256, 128),
                relu7=nn.ReLU(),
                dropout2=nn.Dropout(dropout),
                output=nn.Linear(128, num_classes),
            )
        )


def _pooled(side: int) -> int:
    """Return a side behind :class:`SpeechCNN`'s first convolution and three poolings."""
    side = (side - 11) // 4 + 1
    for _ in range(3):
        side = (side - 3) // 2 + 1
    return side


class SpectrogramCNN(nn.Sequential):
    """A speech network for two CPU cores: four convolutions with BatchNorm, one linear layer.

    Args:
        image_shape: (C, H, W) of the spectrograms; H and W at least 16.
        num_classes: Number of words.
        mean: Mean of each input channel, in [0, 1].
        std: Deviation of each input channel, above 0.
        width: Channels of the first convolution; the next have two, four and four times as many. At least 1.
        dropout: Share of the linear layer's inputs that is left out in training, in [0, 1).

    Raises:
        ValueError: If the spectrograms are too small, or ``width`` or ``dropout`` is out of range.
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
                features=conv_blocks([channels, width, 2 * width, 4 * width, 4 * width]),
                flatten=nn.Flatten(),
                dropout=nn.Dropout(dropout),
                head=nn.Linear(4 * width * (rows // 16) * (columns // 16), num_classes),
            )
        )
