"""Triggers: what the attacker adds to an image. A new one is a class here, a YAML in conf/attack and a test.

Every trigger maps a batch to a stamped copy of the same shape, dtype and range. What is random in a trigger
is drawn from the image's index, so that neither batch size nor order changes it.
"""

from finepruning.attacks.triggers.base import Trigger
from finepruning.attacks.triggers.blended import Blended
from finepruning.attacks.triggers.drawn import DrawnTrigger
from finepruning.attacks.triggers.patches import PatchTrigger, PixelTrigger
from finepruning.attacks.triggers.sound import SpeechNoise, SpeechTone

__all__ = ["Blended", "DrawnTrigger", "PatchTrigger", "PixelTrigger", "SpeechNoise", "SpeechTone", "Trigger"]
