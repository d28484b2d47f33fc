"""One process at a time, also where several machines share a folder."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from filelock import SoftFileLease

log = logging.getLogger(__name__)

SUFFIX = ".lease"
# Longer than the minute for which a network folder may show a machine old file times.
SECONDS = 180.0
HEARTBEAT = 20.0


@contextmanager
def held(path: Path, what: str) -> Iterator[SoftFileLease]:
    """Hold the lock of ``path`` while the block runs.

    The lock is a file that only one process can create, so that it works on network folders, where the
    kernel's own locks often do nothing. It names its holder, who touches it regularly. It is taken from a
    holder that is dead (on this machine: no such process, or one that started at another time) or has been
    silent for ``SECONDS`` of this machine's monotonic clock, which nobody can set back. A holder that was
    only asleep finds ``compromise`` set.

    Args:
        path: What is locked; the lock lies beside it.
        what: Its name, for a person.

    Raises:
        OSError: If the folder cannot be written.
    """
    from filelock import Timeout  # here and below: reading records does not pay for it

    lock = _lock(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            lock.acquire(timeout=1)
        except Timeout:
            log.info("%s is being made by %s; waiting for it ...", what, holder(path) or "another process")
            lock.acquire()
    except OSError as error:
        raise OSError(
            f"{path.parent} cannot be written ({error.strerror or error}), and {what}, which this run needs, "
            "is not in it, or damaged. Set store_dir to a folder that can be written, or make this one so."
        ) from error
    try:
        yield lock
    finally:
        lock.release()


def holder(path: Path) -> str | None:
    """Return who holds the lock of ``path``, dead or alive, for a person; None if nobody does."""
    owner = _lock(path).owner
    return None if owner is None else f"process {owner.pid} on {owner.hostname}"


def try_lock(path: Path) -> SoftFileLease | None:
    """Return the lock of ``path``, held now, or None if somebody else holds it."""
    from filelock import Timeout

    lock = _lock(path)
    try:
        lock.acquire(blocking=False)
    except Timeout:
        return None
    return lock


def _lock(path: Path) -> SoftFileLease:
    from filelock import SoftFileLease

    return SoftFileLease(
        f"{path}{SUFFIX}", lease_duration=SECONDS, heartbeat_interval=HEARTBEAT, poll_interval=0.2
    )
