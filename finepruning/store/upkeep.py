"""What lies in a store, what is damaged, and what nobody needs any more. Nothing here loads torch."""

import json
import re
import shutil
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from finepruning import record as records
from finepruning.store.code import ROOMS
from finepruning.store.lock import SUFFIX, holder, try_lock
from finepruning.store.stages import ABOUT, PARTIAL, VERSION_FILE, check_version, fault

State = Literal["finished", "packed", "interrupted", "set aside", "lock"]
DATA = "data"
ASIDE = (".damaged-", ".pruned")  # parts of the names of folders that no run opens
# a stage's or a packed data set's, with what is added to it; early versions left locks
OUR_NAME = re.compile(rf"(\w+-)?[0-9a-f]{{16}}({re.escape(PARTIAL)}|\.damaged-\d+|\.pruned|\.lock)*")


@dataclass(frozen=True)
class Entry:
    """Something in a store.

    Args:
        key: Its path within the store.
        directory: Its path.
        state: A finished stage, packed data, an interrupted making, something damaged that was set aside, or
            the lock of an earlier version.
        size: In bytes.
        about: What it says about itself; empty if that cannot be read.
        records: The records that need it.
        maker: Who is making it now, if anybody is.
        unused: Seconds since it was last made or used; 0 if the clock says that this is to come.
    """

    key: str
    directory: Path
    state: State
    size: int
    about: Mapping[str, Any]
    records: list[Mapping[str, Any]] = field(repr=False)
    maker: str | None
    unused: float

    @property
    def kind(self) -> str:
        """The folder that it lies in."""
        return self.key.split("/")[0]

    @property
    def made_by(self) -> Mapping[str, Any]:
        """What decided a stage; empty of anything else."""
        made_by: Mapping[str, Any] = self.about.get("made_by", {})
        return made_by


def read_runs(folders: Iterable[Path]) -> tuple[list[dict[str, Any]], list[str]]:
    """Return the records of runs, and what is wrong with those that cannot be read.

    Raises:
        ValueError: If a folder is not there.
    """
    folders = list(folders)
    for folder in folders:
        if not folder.is_dir():
            raise ValueError(
                f"--runs {folder} is not a folder. Name the folder of the runs that share this store."
            )
    return records.read_all(folders)


def list_entries(root: Path, runs: Sequence[Mapping[str, Any]]) -> list[Entry]:
    """Return all that lies in a store, by kind and size.

    Args:
        root: The store.
        runs: Records; what they need is known by them.

    Raises:
        ValueError: If this is no store, or one of a newer version.
    """
    if not root.is_dir():
        raise ValueError(f"--store {root} is not a folder.")
    if not (root / VERSION_FILE).exists() and any(root.iterdir()):
        raise ValueError(
            f"--store {root} is no store, or one of an early version: it has no file {VERSION_FILE!r}. Give "
            "the store_dir of a run; the next run that uses it writes that file."
        )
    check_version(root)
    users: dict[str, list[Mapping[str, Any]]] = {}
    for record in runs:
        for key in record.get("stages", {}).values():
            users.setdefault(key, []).append(record)
    kinds = [root / kind for kind in (*ROOMS, DATA)]
    paths = [path for kind in kinds if kind.is_dir() for path in kind.iterdir()]
    entries = [entry for path in paths if (entry := _entry(root, path, users)) is not None]
    by_data: dict[str, list[Mapping[str, Any]]] = {}
    for entry in entries:
        for data in _data_of(entry):
            by_data.setdefault(data, []).extend(entry.records)
    for entry in entries:
        if entry.state == "packed":
            entry.records.extend(by_data.get(entry.about.get(DATA, ""), []))
    return sorted(entries, key=lambda entry: (entry.kind, -entry.size, entry.key))


def find_faults(entries: Iterable[Entry]) -> dict[str, str]:
    """Return what is wrong with each damaged stage and packed data set, by key."""
    faults = {}
    for entry in entries:
        if entry.state == "finished":
            of_earlier_version = entry.about and "version" not in entry.about  # those have no checksums
            found = None if of_earlier_version else fault(entry.directory)
        elif entry.state == "packed":
            from finepruning.data.packed import is_sound  # here, since it loads torch

            found = None if is_sound(entry.directory) else "the values are not those that were packed"
        else:
            continue
        if found is not None:
            faults[entry.key] = found
    return faults


def find_unneeded(entries: Sequence[Entry], unused_for: float) -> dict[str, str]:
    """Return why each thing may go that nobody needs, by key.

    While something is being made, finished stages and packed data stay: a run may be about to use them, and
    it has no record yet.

    Args:
        entries: All of the store.
        unused_for: Seconds; what was used since then stays.
    """
    busy = any(entry.maker for entry in entries)
    reasons = {}
    for entry in entries:
        old = entry.unused >= unused_for
        if entry.maker:
            continue
        if entry.state == "set aside":
            reasons[entry.key] = "damaged, and set aside"
        elif entry.state == "lock" and old:
            reasons[entry.key] = "a lock of an earlier version"
        elif entry.state == "interrupted" and old:
            reasons[entry.key] = "interrupted, and not taken up again"
        elif entry.state in ("finished", "packed") and old and not busy and not entry.records:
            reasons[entry.key] = "no record needs it"
    return reasons


def remove(root: Path, entry: Entry) -> bool:
    """Remove something, unless it is in use, or was used since it was listed; return whether it is gone."""
    path = root / entry.key
    lock = try_lock(_locked_path(path))
    if lock is None:
        return False
    try:
        now = _entry(root, path, {})
        if now is not None and now.unused < entry.unused:
            return False
        if path.is_dir():
            away = path.with_name(f"{path.name}.pruned")  # in one step, so that no run finds a half of it
            shutil.rmtree(away, ignore_errors=True)
            shutil.rmtree(path.rename(away))
        else:
            path.unlink(missing_ok=True)
    finally:
        lock.release()
    return True


def _entry(root: Path, path: Path, users: Mapping[str, list[Mapping[str, Any]]]) -> Entry | None:
    """Return what a path in a store is; None if it belongs to something else there.

    What neither has a name that the store gives nor says what it is was put there by somebody else.
    """
    if not (OUR_NAME.fullmatch(path.name) or (path / ABOUT).is_file()):
        return None
    key = str(path.relative_to(root))
    packed = path.parent.name == DATA
    state: State
    if path.is_dir():
        aside = any(part in path.name for part in ASIDE)
        partial = path.name.endswith(PARTIAL)
        state = "set aside" if aside else "interrupted" if partial else "packed" if packed else "finished"
    elif path.name.endswith(".lock"):
        state = "lock"
    else:
        return None
    files = [file for file in path.rglob("*") if file.is_file()] if path.is_dir() else [path]
    stats = [stat for file in files if (stat := _stat(file)) is not None]
    mtimes = [mtime for _, mtime in stats]
    return Entry(
        key=key,
        directory=path,
        state=state,
        size=sum(size for size, _ in stats),
        about=_about(path) if state in ("finished", "packed") else {},
        records=list(users.get(key, [])),
        maker=_maker(_locked_path(path)) if state in ("finished", "packed", "interrupted") else None,
        unused=max(0.0, time.time() - max(mtimes, default=0.0)),
    )


def _stat(file: Path) -> tuple[int, float] | None:
    try:
        stat = file.stat()
    except FileNotFoundError:  # somebody is at work here
        return None
    return stat.st_size, stat.st_mtime


def _about(directory: Path) -> dict[str, Any]:
    try:
        about = json.loads((directory / ABOUT).read_text())
    except (OSError, ValueError):
        return {}
    return about if isinstance(about, dict) else {}


def _locked_path(path: Path) -> Path:
    return path.with_name(path.name.removesuffix(PARTIAL))


def _maker(path: Path) -> str | None:
    """Return who holds a lock and lives; a lock of the dead is taken, and so removed."""
    if not path.with_name(f"{path.name}{SUFFIX}").exists():
        return None
    who = holder(path)
    try:
        lock = try_lock(path)
    except OSError:  # a store that cannot be written
        return who
    if lock is None:
        return who or "another process"
    lock.release()
    return None


def _data_of(entry: Entry) -> list[str]:
    """Return what a stage's data sets are known by."""
    made_by = entry.made_by
    source = made_by.get("source")
    return [str(part[DATA]) for part in (made_by, source) if isinstance(part, dict) and DATA in part]
