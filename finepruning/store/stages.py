"""Stages: found, or made once and kept."""

import hashlib
import json
import logging
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from finepruning.store.code import code_version
from finepruning.store.files import NO_ROOM, checksum, room_left, set_aside, sync, write_file
from finepruning.store.lock import SECONDS, held
from finepruning.store.weights import load_weights

if TYPE_CHECKING:
    from filelock import SoftFileLease
    from torch import nn

log = logging.getLogger(__name__)

VERSION = 2  # of the store's layout; 1 had no checksums
VERSION_FILE = "version"
ABOUT = "about.json"
WEIGHTS = "network.safetensors"
PARTIAL = ".partial"
LAST = "last.ckpt"  # what an interrupted training goes on from; gone once the stage is finished
STARTED = f"{LAST}.started"  # likewise: seconds of earlier attempts, and when the present one began


@dataclass(frozen=True)
class Stage:
    """A finished stage.

    Args:
        key: Its kind and hash.
        directory: Where its files lie.
        about: What made it, how long that took (``seconds``, of interrupted attempts what was kept of
            them), and what the making returned (``result``).
        reused: Whether it was there already.
    """

    key: str
    directory: Path
    about: dict[str, Any]
    reused: bool

    def load_into(self, network: "nn.Module") -> "nn.Module":
        """Return ``network`` with the stage's weights and masks."""
        return load_weights(network, self.directory / WEIGHTS)


class Store:
    """A folder of stages that any number of runs share, on any number of machines.

    Args:
        root: The folder.

    Raises:
        ValueError: If a newer version of this program made it.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        check_version(root)

    def begin(self) -> None:
        """Write the file that tells a store from any other folder, unless it is there.

        Raises:
            OSError: If the folder cannot be written.
        """
        if not (self.root / VERSION_FILE).exists():
            self.root.mkdir(parents=True, exist_ok=True)
            write_file(self.root / VERSION_FILE, f"{VERSION}\n".encode())

    def stage(
        self, kind: str, made_by: Mapping[str, Any], make: Callable[[Path], Mapping[str, Any]]
    ) -> Stage:
        """Return the stage that ``made_by`` describes, made now if it is not there.

        Args:
            kind: ``"suspect"``, ``"defended"`` or another name in ``store/code.py``; the folder it lies in.
            made_by: Plain values that decide what comes out.
            make: Fills the folder it is given and returns plain values to keep. It may find files of an
                earlier, interrupted call there.

        Raises:
            OSError: If it is not there and the store cannot be written, or has no room; or if the lease was
                lost while it was made, and nobody else made it.
        """
        found = self.find(kind, made_by)
        if found is not None:
            return found
        key = stage_key(kind, made_by)
        directory = self.root / key
        with held(directory, key) as lease:
            found = self.find(kind, made_by)  # another process may have made it meanwhile
            if found is not None:
                return found
            if directory.exists():
                log.warning("%s: %s. It is set aside as %s.", key, fault(directory), set_aside(directory))
            try:
                self._make(key, made_by, make, lease)
                return self._read_back(key)
            except Exception:
                if lease.compromise is None:
                    raise
        return self._wait_for_other(kind, made_by)

    def _read_back(self, key: str) -> Stage:
        stage = self._open(key, reused=False)
        if stage is None:
            raise OSError(f"What was just written to {self.root / key} cannot be read back. Check that disk.")
        return stage

    def _wait_for_other(self, kind: str, made_by: Mapping[str, Any]) -> Stage:
        """Return the stage that another process made which took over.

        It is not made here again: what makes it may act once only, as a callback that prunes does.

        Raises:
            OSError: If the other process did not make it.
        """
        key = stage_key(kind, made_by)
        lost = f"This process did not answer for {SECONDS:.0f} s, and another one took over {key}"
        log.warning("%s.", lost)
        with held(self.root / key, key):
            found = self.find(kind, made_by)
        if found is None:
            raise OSError(
                f"The lease of {key} is lost. {lost}, but did not make it. The same command goes on from "
                "what is done."
            )
        return found

    def find(self, kind: str, made_by: Mapping[str, Any]) -> Stage | None:
        """Return the stage that ``made_by`` describes, or None if it is not there, or damaged."""
        return self._open(stage_key(kind, made_by), reused=True)

    def _open(self, key: str, reused: bool) -> Stage | None:
        directory = self.root / key
        if not directory.exists() or fault(directory):
            return None
        with suppress(OSError):
            (directory / ABOUT).touch()  # when it was last used, for whoever clears up
        return Stage(key, directory, read_about(directory), reused)

    def _make(
        self,
        key: str,
        made_by: Mapping[str, Any],
        make: Callable[[Path], Mapping[str, Any]],
        lease: "SoftFileLease",
    ) -> None:
        """Make a stage beside its place, bring it to the disk, and rename it while the lease holds."""
        directory = self.root / key
        partial = directory.with_name(f"{directory.name}{PARTIAL}")
        start = time.perf_counter()
        try:
            self.begin()
            partial.mkdir(exist_ok=True)
            for stray in partial.glob(".*"):
                stray.unlink()  # half-written by a process that was killed
            earlier = _kept_seconds(partial)
            write_file(partial / STARTED, f"{earlier} {time.time()}".encode())
            result = make(partial)
            about = {
                "version": VERSION,
                "made_by": {**made_by, "code": code_version(key.split("/")[0], made_by)},
                "made": time.time(),
                "seconds": earlier + time.perf_counter() - start,
                "result": dict(result),
                "files": _contents(partial),
            }
            write_about(partial, about)
            if lease.compromise is not None:  # the folder is another process's by now
                raise RuntimeError(f"The lease of {key} is lost.")
            partial.rename(directory)
            sync(directory.parent)
        except OSError as error:
            if error.errno not in NO_ROOM:
                raise
            raise OSError(
                f"There is no room to make {key} in {self.root} ({error}; {room_left(self.root)}). Make "
                "room, or set store_dir to a folder on another disk; the next run goes on from what is done."
            ) from error
        for left in directory.glob(f"{LAST}*"):
            left.unlink()


def _kept_seconds(partial: Path) -> float:
    """Return how long interrupted attempts worked, each until the last that it left."""
    try:
        earlier, began = map(float, (partial / STARTED).read_text().split())
    except (FileNotFoundError, ValueError):
        return 0.0
    return earlier + max(0.0, max(path.stat().st_mtime for path in partial.rglob("*")) - began)


def stage_key(kind: str, made_by: Mapping[str, Any]) -> str:
    """Return a stage's folder within the store: its kind and a hash of what makes it, code included."""
    made_by = {**made_by, "code": code_version(kind, made_by)}
    return f"{kind}/{hashlib.sha256(_canonical(keep_order(made_by))).hexdigest()[:16]}"


def keep_order(values: Any) -> Any:
    """Return plain values for a hash that sorts keys, but tells callbacks in another order apart.

    They act in the order in which they stand. A single one stays as it is, and with it the keys of stages.
    """
    if isinstance(values, list | tuple):
        return [keep_order(value) for value in values]
    if not isinstance(values, Mapping):
        return values
    kept = {key: keep_order(value) for key, value in values.items()}
    callbacks = kept.get("callbacks")
    if isinstance(callbacks, dict) and len(callbacks) > 1:
        kept["callbacks"] = list(callbacks.items())
    return kept


def check_version(root: Path) -> None:
    """Raise ValueError if a newer version of this program made the store."""
    file = root / VERSION_FILE
    try:
        version = int(file.read_text())
    except FileNotFoundError:
        return
    except ValueError as error:
        raise ValueError(f"{file} does not hold a number. Write {VERSION} to it.") from error
    if version > VERSION:
        raise ValueError(
            f"The store {root} is of version {version}, and this program reads up to {VERSION}. Update "
            "finepruning, or set store_dir to another folder."
        )


def fault(directory: Path) -> str | None:
    """Return what is wrong with a stage's folder, for a person; None if it is sound."""
    try:
        about = read_about(directory)
    except FileNotFoundError:
        return f"{ABOUT} is missing"
    except ValueError:
        return f"{ABOUT} is damaged"
    for name, (size, digest) in about["files"].items():
        path = directory / name
        if not path.is_file():
            return f"{name} is missing"
        if path.stat().st_size != size or checksum(path) != digest:
            return f"{name} is damaged"
    return None


def read_about(directory: Path) -> dict[str, Any]:
    """Return what a stage says about itself.

    Raises:
        ValueError: If that is not what was written.
    """
    about: Any = json.loads((directory / ABOUT).read_text())
    if (
        not isinstance(about, dict)
        or about.pop("checksum", None) != hashlib.sha256(_canonical(about)).hexdigest()
    ):
        raise ValueError(f"{directory / ABOUT} does not fit its checksum.")
    return about


def write_about(directory: Path, about: Mapping[str, Any]) -> None:
    """Write what a stage says about itself, with a checksum."""
    plain: dict[str, Any] = json.loads(
        json.dumps(about)
    )  # as it will be read: lists for tuples, text for keys
    sealed = plain | {"checksum": hashlib.sha256(_canonical(plain)).hexdigest()}
    write_file(directory / ABOUT, json.dumps(sealed, indent=1).encode())


def _contents(directory: Path) -> dict[str, tuple[int, str]]:
    """Bring all files to the disk; return the size and the checksum of each that stays."""
    files = sorted(
        path for path in directory.rglob("*") if path.is_file() and not path.name.startswith((LAST, ABOUT))
    )
    for path in files:
        sync(path)
    return {str(path.relative_to(directory)): (path.stat().st_size, checksum(path)) for path in files}


def _canonical(values: Mapping[str, Any]) -> bytes:
    return json.dumps(values, sort_keys=True).encode()
