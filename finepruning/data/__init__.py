"""Data sets: one file a domain, packed once on disk, split into the three roles."""

from finepruning.data.augment import Augment
from finepruning.data.images import BATCH_SIZE, ImageSet, channel_statistics
from finepruning.data.loaders import AttackerData, DefenderData
from finepruning.data.packed import Packed, pack
from finepruning.data.splits import Roles, split_roles

__all__ = [
    "BATCH_SIZE",
    "AttackerData",
    "Augment",
    "DefenderData",
    "ImageSet",
    "Packed",
    "Roles",
    "channel_statistics",
    "pack",
    "split_roles",
]
