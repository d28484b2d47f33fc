"""What a check of ours says in a sentence, told from errors that nobody foresaw."""

import linecache
import traceback
from pathlib import Path

from hydra.errors import CompactHydraException

PACKAGE = Path(__file__).parent.parent


class Refused(CompactHydraException):
    """A configuration that cannot be run. Hydra prints the sentence, without a traceback."""


def by_check(error: BaseException) -> bool:
    """Whether a check of this package raised an error: its sentence says all, and its place nothing more.

    Other errors, such as a TypeError in a new trigger, are found by their traceback alone.
    """
    frames = list(traceback.walk_tb(error.__traceback__))
    if not frames:
        return False
    frame, number = frames[-1]
    file = frame.f_code.co_filename
    return PACKAGE in Path(file).parents and linecache.getline(file, number).lstrip().startswith("raise ")


def sentence(error: BaseException, traced: bool) -> str:
    """Return what a person reads of an error.

    Args:
        error: The error.
        traced: Whether its traceback is written somewhere; else the way to it is said, where it tells more.
    """
    said = str(error) or type(error).__name__
    if traced or by_check(error):
        return said
    return f"{said} (Set HYDRA_FULL_ERROR=1 in the environment to see where this comes from.)"
