"""Networks that somebody else trained: read without trust, checked, and written again once repaired.

What comes in is hostile: no file of weights may run code, and whatever is wrong with one is an
UnreadableError.
"""

from finepruning.suspect.fitting import load_suspect, network_hash
from finepruning.suspect.known import KnownAttack, known_attack
from finepruning.suspect.picture import PictureTrigger, StampedImages
from finepruning.suspect.python_file import PythonFile
from finepruning.suspect.repaired import agreement, require_onnx, write_onnx, write_repaired
from finepruning.suspect.report import repair_report
from finepruning.suspect.scale import normalisation, scale_warning
from finepruning.suspect.split import split_defender
from finepruning.suspect.triggered import TriggeredFiles
from finepruning.suspect.weights import UnreadableError, find_file

__all__ = [
    "KnownAttack",
    "PictureTrigger",
    "PythonFile",
    "StampedImages",
    "TriggeredFiles",
    "UnreadableError",
    "agreement",
    "find_file",
    "known_attack",
    "load_suspect",
    "network_hash",
    "normalisation",
    "repair_report",
    "require_onnx",
    "scale_warning",
    "split_defender",
    "write_onnx",
    "write_repaired",
]
