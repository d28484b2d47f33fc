"""Residual networks."""

from collections.abc import Sequence

from torch import Tensor, nn

from finepruning.networks.layers import Normalise, check_size


class PreActBlock(nn.Module):
    """Two 3x3 convolutions, each after its BatchNorm and ReLU, around which the input is added.

    Source: Identity Mappings in Deep Residual Networks, He et al. 2016, arXiv:1603.05027, figure 4e.

    Args:
        inner: Channels of the input.
        outer: Channels of the output.
        stride: Of the first convolution; the image shrinks by it.
    """

    def __init__(self, inner: int, outer: int, stride: int) -> None:
        super().__init__()
        self.norm1 = nn.BatchNorm2d(inner)
        self.relu1 = nn.ReLU()
        self.conv1 = nn.Conv2d(inner, outer, 3, stride, padding=1, bias=False)
        self.norm2 = nn.BatchNorm2d(outer)
        self.relu2 = nn.ReLU()
        self.conv2 = nn.Conv2d(outer, outer, 3, padding=1, bias=False)
        same = inner == outer and stride == 1
        self.shortcut = None if same else nn.Conv2d(inner, outer, 1, stride, bias=False)

    def forward(self, features: Tensor) -> Tensor:
        """Return features (B, outer, H / stride, W / stride) for (B, inner, H, W)."""
        active = self.relu1(self.norm1(features))
        skipped = features if self.shortcut is None else self.shortcut(active)
        added: Tensor = self.conv2(self.relu2(self.norm2(self.conv1(active)))) + skipped
        return added


class PreActResNet18(nn.Module):
    """A pre-activation ResNet-18 for small images, the network of most backdoor benchmarks.

    Source: Identity Mappings in Deep Residual Networks, He et al. 2016, arXiv:1603.05027, with the 3x3 first
        convolution that small images need. Pruned after the last BatchNorm and ReLU, where every one of the
        512 channels is what the linear layer sees.

    Args:
        image_shape: (C, H, W) of the images; H and W at least 8.
        num_classes: Number of classes.
        mean: Mean of each input channel, in [0, 1].
        std: Deviation of each input channel, above 0.

    Raises:
        ValueError: If the images are too small.
    """

    pruned_layer = "relu"

    def __init__(
        self, image_shape: Sequence[int], num_classes: int, mean: Sequence[float], std: Sequence[float]
    ) -> None:
        check_size(self, image_shape, 8)
        super().__init__()
        self.normalise = Normalise(mean, std)
        self.conv = nn.Conv2d(image_shape[0], 64, 3, padding=1, bias=False)
        self.stage1 = nn.Sequential(PreActBlock(64, 64, 1), PreActBlock(64, 64, 1))
        self.stage2 = nn.Sequential(PreActBlock(64, 128, 2), PreActBlock(128, 128, 1))
        self.stage3 = nn.Sequential(PreActBlock(128, 256, 2), PreActBlock(256, 256, 1))
        self.stage4 = nn.Sequential(PreActBlock(256, 512, 2), PreActBlock(512, 512, 1))
        self.norm = nn.BatchNorm2d(512)
        self.relu = nn.ReLU()
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.flatten = nn.Flatten()
        self.head = nn.Linear(512, num_classes)

    def forward(self, images: Tensor) -> Tensor:
        """Return logits (B, K) for images (B, C, H, W) in [0, 1]."""
        features = self.conv(self.normalise(images))
        features = self.stage4(self.stage3(self.stage2(self.stage1(features))))
        logits: Tensor = self.head(self.flatten(self.pool(self.relu(self.norm(features)))))
        return logits
