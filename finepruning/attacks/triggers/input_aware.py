"""Triggers that a small network draws for each image anew."""

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.nn import functional

from finepruning.attacks.triggers.base import Trigger
from finepruning.attacks.triggers.chance import draw


class ImageToImage(nn.Sequential):
    """A small network from images to values in [0, 1] of the same height and width.

    Two steps down, two up; every layer is normalised by image, so that no image depends on its batch.

    Args:
        channels: Of the images.
        outputs: Channels that come out.
        width: Channels of the first layer, a multiple of 4; the inner ones have twice as many.
    """

    def __init__(self, channels: int, outputs: int, width: int) -> None:
        super().__init__(
            _step(channels, width, stride=2),
            _step(width, 2 * width, stride=2),
            _step(2 * width, 2 * width),
            nn.Upsample(scale_factor=2, mode="bilinear"),
            _step(2 * width, width),
            nn.Upsample(scale_factor=2, mode="bilinear"),
            nn.Conv2d(width, outputs, 3, padding=1),
        )

    def forward(self, images: Tensor) -> Tensor:
        """Return values (B, outputs, H, W) in (0, 1) for ``images`` (B, C, H, W) in [0, 1]."""
        height, width = images.shape[-2:]
        drawn: Tensor = super().forward(2 * images - 1)  # one to three pixels too large, at odd sizes
        return torch.sigmoid(drawn[..., :height, :width])


def _step(inner: int, outer: int, stride: int = 1) -> nn.Sequential:
    convolution = nn.Conv2d(inner, outer, 3, stride=stride, padding=1)
    return nn.Sequential(convolution, nn.GroupNorm(4, outer), nn.ReLU())


def sharpen(values: Tensor) -> Tensor:
    """Return a soft mask, nearly 0 or 1 (the paper's code: tanh of 20 x - 10)."""
    return (torch.tanh(20 * values - 10) + 1) / 2


class InputAware(Trigger):
    """Lay a pattern over each image, through a mask, both drawn by networks that look at the image.

    Source: input-aware dynamic backdoor attack, Nguyen and Tran 2020, arXiv:2010.08138, section 3.

    Args:
        width: Channels of the first layer of either network, a multiple of 4, at least 4.
        seed: Seed of their first weights.

    Raises:
        ValueError: If ``width`` is out of range.
    """

    def __init__(self, width: int, seed: int) -> None:
        super().__init__()
        if width < 4 or width % 4:
            raise ValueError(f"A width of {width} is no multiple of 4. Change attack.trigger.width.")
        self.width = width
        self.seed = seed
        self.networks: nn.ModuleDict | None = None

    def make(self, channels: int) -> nn.ModuleDict:
        """Return new networks ``pattern`` and ``mask`` for images of so many channels."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.seed)
            pattern = ImageToImage(channels, channels, self.width)
            return nn.ModuleDict({"pattern": pattern, "mask": ImageToImage(channels, 1, self.width)})

    def take(self, tensors: Mapping[str, Tensor]) -> None:
        """Take the weights of both networks, named as in :meth:`make`'s state."""
        own = {name: tensor for name, tensor in tensors.items() if name.startswith(("pattern.", "mask."))}
        channels = own["pattern.0.0.weight"].shape[1]
        self.networks = self.make(channels)
        self.networks.load_state_dict(own)

    @torch.no_grad()
    def forward(self, images: Tensor, index: Tensor | None = None) -> Tensor:
        """Return a stamped copy. ``images``: (B, C, H, W), float in [0, 1]; same shape out."""
        networks = self.networks or self.make(images.shape[-3])
        pattern, mask = drawn_by(networks.to(images.device), images.float())
        return images.lerp(pattern.to(images.dtype), mask.to(images.dtype).expand_as(images))


def drawn_by(networks: nn.ModuleDict, images: Tensor) -> tuple[Tensor, Tensor]:
    """Return patterns (B, C, H, W) and masks (B, 1, H, W) in [0, 1] for images; gradients flow."""
    return networks["pattern"](images), sharpen(networks["mask"](images))


class OthersTrigger(Trigger):
    """Lay another image's pattern over each image: covers that teach a network whose trigger is whose.

    Source: Nguyen and Tran 2020, arXiv:2010.08138, section 3.3 (cross-trigger mode). Deviation: the other
        image is one of a few whose patterns are kept, and always the same for an image.

    Args:
        seed: Seed of the choice.
    """

    places: Tensor
    patterns: Tensor
    masks: Tensor

    def __init__(self, seed: int) -> None:
        super().__init__()
        self.seed = seed
        self.register_buffer("places", torch.arange(2))
        self.register_buffer("patterns", torch.empty(0))
        self.register_buffer("masks", torch.empty(0))

    def take(self, tensors: Mapping[str, Tensor]) -> None:
        """Take ``others.places`` (K,), K at least 2, ``.patterns`` (K, C, H, W), ``.masks`` (K, 1, H, W)."""
        names = ("others.places", "others.patterns", "others.masks")
        self.places, self.patterns, self.masks = (tensors[name] for name in names)

    def forward(self, images: Tensor, index: Tensor | None = None) -> Tensor:
        """Return a stamped copy. ``images``: (B, C, H, W), float in [0, 1]; same shape out."""
        if index is None:
            raise ValueError("Another image is drawn from an image's index: pass the images' index.")
        self.to(images.device)
        patterns, masks = self.patterns, self.masks
        if not len(patterns):  # not crafted yet: two random patterns
            generator = torch.Generator().manual_seed(self.seed)
            patterns = torch.rand(2, *images.shape[-3:], generator=generator).to(images)
            masks = torch.ones_like(patterns[:, :1])
        row = draw(index, self.seed, len(self.places))
        row = torch.where(self.places[row] == index, (row + 1) % len(self.places), row)
        return images.lerp(patterns[row].to(images.dtype), masks[row].to(images.dtype).expand_as(images))


def diversity(images: Tensor, others: Tensor, patterns: Tensor, other_patterns: Tensor) -> Tensor:
    """Return how alike the patterns of unlike images are (B,): the images' distance over the patterns'."""
    apart = functional.mse_loss(images, others, reduction="none").flatten(1).mean(1).sqrt()
    drawn = functional.mse_loss(patterns, other_patterns, reduction="none").flatten(1).mean(1)
    return apart / (drawn + 1e-10).sqrt().add(1e-3)
