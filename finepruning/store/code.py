"""Which code a stage depends on."""

import ast
import functools
import hashlib
import importlib.metadata
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

PACKAGE = Path(__file__).parent.parent
# What can change a network that the attacker trains. Of a folder counts what a stage's configuration names,
# and what that or one of the single files imports: whoever writes an attack or a defense makes no other anew.
# How files are decoded is not here: the hash of the decoded values is among what made the stage.
ATTACKER = (
    "attacks",
    "data/augment.py",
    "data/images.py",
    "data/loaders.py",
    "data/splits.py",
    "data/waveforms.py",
    "metrics.py",
    "modules",
    "networks",
    "pictures.py",
    "pipeline/build.py",
    "pipeline/suspects.py",
    "pipeline/training.py",
    "pruning",
    "suspect/python_file.py",
    "suspect/split.py",
)
# The defender starts from such a network, so all of that counts, too.
DEFENDER = (
    *ATTACKER,
    "callbacks",
    "pipeline/climber.py",
    "pipeline/defended.py",
    "pipeline/defenses.py",
    "pipeline/inspector.py",
    "repair",
)
# Scores of a network under stress; the key of the network says what made it.
REFEREE = (*ATTACKER, "pipeline/stresses.py", "referee.py", "stress.py", "suspect/picture.py")
ROOMS = (
    dict.fromkeys(("source", "crafted", "suspect", "pruned", "poisoned"), ATTACKER)
    | dict.fromkeys(("inspected", "defended"), DEFENDER)
    | {"stressed": REFEREE}
)


def read_sources() -> None:
    """Read all code now; what becomes of it later changes no key of this process and of its forks."""
    for path in source_files(""):
        _source(path)


def parse_sources() -> None:
    """Read and parse all code now, so that no fork has to."""
    for path in source_files(""):
        plain_code(_source(path))


def code_version(kind: str, made_by: Mapping[str, Any]) -> str:
    """Return a hash of the code that makes a stage, without comments and docstrings, and of torch.

    A change of code gives new keys, so that a stage is never taken for what other code made. A kind that no
    list names depends on all that the defender does.

    Args:
        kind: Of the stage.
        made_by: Plain values that decide what comes out; what they name as ``_target_`` counts.
    """
    return _version(kind, frozenset(named_targets(made_by)))


@functools.cache
def _version(kind: str, targets: frozenset[str]) -> str:
    digest = hashlib.sha256(importlib.metadata.version("torch").encode())
    for path in stage_files(kind, targets):
        digest.update(plain_code(_source(path)).encode())
    return digest.hexdigest()[:16]


def stage_files(kind: str, targets: frozenset[str]) -> list[Path]:
    """Return the files that make a stage, sorted.

    Args:
        kind: Of the stage.
        targets: Full names that its configuration gives.
    """
    rooms = ROOMS.get(kind, DEFENDER)
    inside = {path for room in rooms for path in source_files(room)}
    waiting = {PACKAGE / room for room in rooms if room.endswith(".py")}
    waiting |= {path for name in targets if (path := defining_file(name))}
    found: set[Path] = set()
    while waiting:
        path = waiting.pop()
        if path in inside and path not in found:
            found.add(path)
            waiting |= {file for name in imported_names(path).values() if (file := defining_file(name))}
    return sorted(found)


def named_targets(values: Any) -> Iterator[str]:
    """Yield what nested plain values name as ``_target_``."""
    if isinstance(values, Mapping):
        for key, value in values.items():
            yield from [str(value)] if key == "_target_" else named_targets(value)
    elif isinstance(values, list | tuple):
        for value in values:
            yield from named_targets(value)


@functools.cache
def defining_file(name: str) -> Path | None:
    """Return the file of this package in which a full name is defined; None if it is of another package.

    A package's ``__init__.py`` that only passes the name on is seen through.
    """
    module, _, last = name.rpartition(".")
    package, *rest = module.split(".")
    if package != "finepruning":
        return None
    place = PACKAGE.joinpath(*rest)
    index, known = place / "__init__.py", source_files("")
    for file in (place / f"{last}.py", place / last / "__init__.py", place.with_suffix(".py")):
        if file in known:
            return file
    if index not in known:
        return None
    passed_on = imported_names(index)
    return defining_file(passed_on[last]) if last in passed_on else index


@functools.cache
def imported_names(path: Path) -> dict[str, str]:
    """Return what a file imports by ``from ... import ...``: its name there, and its full name."""
    nodes = [node for node in ast.walk(ast.parse(_source(path))) if isinstance(node, ast.ImportFrom)]
    return {a.asname or a.name: f"{node.module}.{a.name}" for node in nodes for a in node.names}


@functools.cache
def source_files(room: str) -> tuple[Path, ...]:
    """Return the files of a room, ``""`` of all, sorted; none of a room that is not built yet."""
    return (PACKAGE / room,) if room.endswith(".py") else tuple(sorted((PACKAGE / room).rglob("*.py")))


@functools.cache
def plain_code(source: str) -> str:
    """Return code without comments, docstrings and formatting."""
    tree = ast.parse(source)
    for node in ast.walk(tree):
        if (
            isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef)
            and ast.get_docstring(node) is not None
        ):
            node.body = node.body[1:]
    return ast.dump(tree)


@functools.cache
def _source(path: Path) -> str:
    return path.read_text()
