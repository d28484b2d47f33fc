"""Plain networks. Each normalises its input itself and names the layer that is pruned by default."""

from finepruning.networks.digits import BadNetsCNN, DigitsCNN
from finepruning.networks.faces import DeepID
from finepruning.networks.from_torchvision import TorchvisionClassifier
from finepruning.networks.layers import Normalise
from finepruning.networks.residual import PreActResNet18
from finepruning.networks.signs import SignCNN
from finepruning.networks.speech import SpectrogramCNN, SpeechCNN

__all__ = [
    "BadNetsCNN",
    "DeepID",
    "DigitsCNN",
    "Normalise",
    "PreActResNet18",
    "SignCNN",
    "SpectrogramCNN",
    "SpeechCNN",
    "TorchvisionClassifier",
]
