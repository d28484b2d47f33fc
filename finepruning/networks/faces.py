"""Networks for faces."""

from collections.abc import Sequence

from torch import Tensor, nn

from finepruning.networks.layers import Normalise, check_dropout, check_size


class DeepID(nn.Module):
    """The face network of Fine-Pruning and of the pruning lab: four convolutions, features of two scales.

    Source: Fine-Pruning, Liu et al. 2018, arXiv:1805.12185, section "Backdoor Attacks", layer sizes from the
        authors' files, made for images of 3x55x47. Deviation: theirs takes values 0..255; here the input is
        normalised.

    Args:
        image_shape: (C, H, W) of the images; H and W at least 31.
        num_classes: Number of people.
        mean: Mean of each input channel, in [0, 1].
        std: Deviation of each input channel, above 0.
        dropout: Share of the output layer's inputs that is left out in training, in [0, 1).

    Raises:
        ValueError: If the images are too small or ``dropout`` is out of range.
    """

    pruned_layer = "pool3"

    def __init__(
        self,
        image_shape: Sequence[int],
        num_classes: int,
        mean: Sequence[float],
        std: Sequence[float],
        dropout: float = 0.5,
    ) -> None:
        check_dropout(dropout)
        check_size(self, image_shape, 31)
        super().__init__()
        channels, *sides = image_shape
        rows, columns = ((((side - 3) // 2 - 2) // 2 - 2) // 2 for side in sides)
        self.normalise = Normalise(mean, std)
        self.conv1 = nn.Conv2d(channels, 20, 4)
        self.relu1 = nn.ReLU()
        self.pool1 = nn.MaxPool2d(2)
        self.conv2 = nn.Conv2d(20, 40, 3)
        self.relu2 = nn.ReLU()
        self.pool2 = nn.MaxPool2d(2)
        self.conv3 = nn.Conv2d(40, 60, 3)
        self.relu3 = nn.ReLU()
        self.pool3 = nn.MaxPool2d(2)
        self.conv4 = nn.Conv2d(60, 80, 2)
        self.relu4 = nn.ReLU()
        self.flatten = nn.Flatten()
        self.fc1 = nn.Linear(60 * rows * columns, 160)
        self.fc2 = nn.Linear(80 * (rows - 1) * (columns - 1), 160)
        self.relu5 = nn.ReLU()
        self.dropout = nn.Dropout(dropout)
        self.output = nn.Linear(160, num_classes)

    def forward(self, images: Tensor) -> Tensor:
        """Return logits (B, K) for images (B, C, H, W) in [0, 1]."""
        first = self.pool1(self.relu1(self.conv1(self.normalise(images))))
        second = self.pool2(self.relu2(self.conv2(first)))
        third = self.pool3(self.relu3(self.conv3(second)))
        fourth = self.relu4(self.conv4(third))
        features = self.relu5(self.fc1(self.flatten(third)) + self.fc2(self.flatten(fourth)))
        logits: Tensor = self.output(self.dropout(features))
        return logits
