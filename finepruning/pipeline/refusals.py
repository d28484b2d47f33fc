"""What ends a run early: a check of ours, which says so in a sentence, an unforeseen error, a signal."""

import linecache
import logging
import signal
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from hydra.errors import CompactHydraException, InstantiationException

log = logging.getLogger(__name__)
PACKAGE = Path(__file__).parent.parent


class Refused(CompactHydraException):
    """A configuration that cannot be run. Hydra prints the sentence, without a traceback."""


@contextmanager
def refusals(traced: bool = False) -> Iterator[None]:
    """Turn errors into Refused, without what Hydra adds to what a class's own check says.

    Args:
        traced: Whether the traceback of an error that nobody foresaw is written somewhere.
    """
    try:
        yield
    except (InstantiationException, ValueError, TypeError, OSError) as error:
        wrapped = isinstance(error, InstantiationException)
        cause = (error.__cause__ if wrapped else None) or error
        raise Refused(sentence(cause, traced)) from cause


@contextmanager
def ended_by_signals() -> Iterator[None]:
    """Give a run that a signal stopped the status that shells know it by."""
    try:
        yield
    except (KeyboardInterrupt, SystemExit) as error:
        number = _stopped_by(error)
        if number is None:
            raise
        log.info("Stopped by %s. The same command goes on from the last finished epoch.", number.name)
        raise SystemExit(128 + number) from error


def _stopped_by(error: BaseException) -> signal.Signals | None:
    """Return the signal that ended a run; None if it was another thing.

    After a Ctrl-C Lightning exits with status 1, after a SIGTERM with none, which counts as success.
    """
    from pytorch_lightning.utilities.exceptions import SIGTERMException

    if isinstance(error, SIGTERMException):
        return signal.SIGTERM
    interrupted = isinstance(error, KeyboardInterrupt) or isinstance(error.__context__, KeyboardInterrupt)
    return signal.SIGINT if interrupted else None


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
