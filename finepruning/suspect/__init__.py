"""Networks that somebody else trained: read without trust, checked, and written again once repaired.

What comes in is hostile: no file of weights may run code, and whatever is wrong with one is an UnreadableError.
"""

from finepruning.suspect.fitting import load_suspect
from finepruning.suspect.known import KnownAttack, StampedImages, TriggeredFiles, known_attack
from finepruning.suspect.python_file import PythonFile
from finepruning.suspect.repaired import GOODNET, agreement, write_onnx, write_repaired
from finepruning.suspect.report import repair_report
from finepruning.suspect.scale import normalisation, scale_warning
from finepruning.suspect.split import split_defender
from finepruning.suspect.weights import UnreadableError, file_hash, find_file

__all__ = [
    "GOODNET",
    "KnownAttack",
    "PythonFile",
    "StampedImages",
    "TriggeredFiles",
    "UnreadableError",
    "agreement",
    "file_hash",
    "find_file",
    "known_attack",
    "load_suspect",
    "normalisation",
    "repair_report",
    "scale_warning",
    "split_defender",
    "write_onnx",
    "write_repaired",
]
