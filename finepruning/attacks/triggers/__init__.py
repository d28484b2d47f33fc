"""Triggers: what the attacker adds to an image. A new one is a class here, a YAML in conf/attack and a test.

Every trigger maps a batch to a stamped copy of the same shape, dtype and range. What is random in a trigger
is drawn from the image's index, so that neither batch size nor order changes it.
"""

from finepruning.attacks.triggers.base import Trigger
from finepruning.attacks.triggers.blended import Blended, TiledBlend
from finepruning.attacks.triggers.crafted import CraftedPatch, Perturbed
from finepruning.attacks.triggers.drawn import DrawnTrigger
from finepruning.attacks.triggers.input_aware import InputAware, OthersTrigger
from finepruning.attacks.triggers.patches import Checkerboards, PatchTrigger, PixelTrigger
from finepruning.attacks.triggers.sinusoid import Sinusoid
from finepruning.attacks.triggers.sound import SpeechNoise, SpeechTone
from finepruning.attacks.triggers.warp import Warp

__all__ = [
    "Blended",
    "Checkerboards",
    "CraftedPatch",
    "DrawnTrigger",
    "InputAware",
    "OthersTrigger",
    "PatchTrigger",
    "Perturbed",
    "PixelTrigger",
    "Sinusoid",
    "SpeechNoise",
    "SpeechTone",
    "TiledBlend",
    "Trigger",
    "Warp",
]
