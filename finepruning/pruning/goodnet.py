"""The repaired network of the pruning lab: it says so when an image looks triggered."""

import torch
from torch import Tensor, nn


class GoodNet(nn.Module):
    """Answer as the suspect where the repaired network agrees, else class N, "triggered".

    Source: the pruning lab (BadNet on YouTube Faces): G(x) = B(x) if B(x) = B'(x), else N + 1. Classes count
        from 0 here, so that the extra one is N.

    Args:
        suspect: Images -> logits (B, N), the network as it was found.
        repaired: Images -> logits (B, N), the same network pruned or tuned; its own copy.

    Raises:
        ValueError: If both are the same object.
    """

    def __init__(self, suspect: nn.Module, repaired: nn.Module) -> None:
        if suspect is repaired:
            raise ValueError(
                "suspect and repaired are one network and always agree. Repair copy.deepcopy(suspect)."
            )
        super().__init__()
        self.suspect = suspect
        self.repaired = repaired

    def forward(self, images: Tensor) -> Tensor:
        """Return logits (B, N + 1): the suspect's, then one that wins by 1 where the two disagree."""
        logits = self.suspect(images)
        agree = logits.argmax(1, keepdim=True) == self.repaired(images).argmax(1, keepdim=True)
        extra = torch.where(agree, logits.amin(1, keepdim=True) - 1, logits.amax(1, keepdim=True) + 1)
        return torch.cat([logits, extra], dim=1)
