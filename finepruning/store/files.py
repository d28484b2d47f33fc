"""Files that are there whole or not at all, also after a power cut."""

import errno
import hashlib
import os
import shutil
import socket
from pathlib import Path

NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def write_file(path: Path, content: bytes) -> None:
    """Write beside the file's place, bring that to the disk, then rename."""
    # two machines may write the same file, so the process alone does not make the name unique
    beside = path.with_name(f".{path.name}.{socket.gethostname()}.{os.getpid()}")
    try:
        beside.write_bytes(content)
        sync(beside)
        beside.replace(path)
    except BaseException:
        beside.unlink(missing_ok=True)
        raise
    sync(path.parent)


def sync(path: Path) -> None:
    """Bring a file's content, or a folder's list of names, to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno != errno.EINVAL:  # some network folders cannot do this for folders
            raise
    finally:
        os.close(descriptor)


def checksum(path: Path) -> str:
    """Return the SHA-256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def set_aside(directory: Path) -> Path:
    """Rename a damaged folder to a free name beside it, and return that."""
    number = 1
    while (aside := directory.with_name(f"{directory.name}.damaged-{number}")).exists():
        number += 1
    return directory.rename(aside)


def room_left(directory: Path) -> str:
    """Return how much room a disk has left, for a person."""
    return f"{shutil.disk_usage(directory).free / 1e6:,.1f} MB free"
