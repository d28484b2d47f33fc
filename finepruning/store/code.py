"""Which code a stage depends on."""

import ast
import functools
import hashlib
import importlib.metadata
from pathlib import Path

PACKAGE = Path(__file__).parent.parent
# What can change a network that the attacker trains. How files are decoded is not here: the hash of the
# decoded values is among what made the stage.
ATTACKER = (
    "attacks",
    "data/augment.py",
    "data/images.py",
    "data/loaders.py",
    "data/splits.py",
    "data/waveforms.py",
    "metrics.py",
    "modules/classifier.py",
    "modules/states.py",
    "modules/transferred.py",
    "networks",
    "pipeline/suspects.py",
    "pipeline/training.py",
    "pruning",
)
# The defender starts from such a network, so all of that counts, too.
DEFENDER = (
    *ATTACKER,
    "callbacks",
    "modules",
    "pipeline/build.py",
    "pipeline/defenses.py",
    "pipeline/repairs.py",
    "repair",
    "suspect/split.py",
)
# Scores of a network under stress; the key of the network says what made it.
REFEREE = (*ATTACKER, "pipeline/stresses.py", "referee.py", "stress.py", "suspect/picture.py")
ROOMS = (
    dict.fromkeys(("source", "crafted", "suspect", "pruned", "poisoned"), ATTACKER)
    | dict.fromkeys(("inspected", "defended"), DEFENDER)
    | {"stressed": REFEREE}
)


@functools.cache
def code_version(kind: str) -> str:
    """Return a hash of the code that makes a kind of stage, without comments and docstrings, and of torch.

    A change of code gives new keys, so that a stage is never taken for what other code made. A kind that no
    list names depends on all that the defender does.
    """
    digest = hashlib.sha256(importlib.metadata.version("torch").encode())
    for room in ROOMS.get(kind, DEFENDER):
        for path in source_files(room):
            digest.update(plain_code(path.read_text()).encode())
    return digest.hexdigest()[:16]


def source_files(room: str) -> list[Path]:
    """Return the files of a room, sorted; none of a room that is not built yet."""
    return [PACKAGE / room] if room.endswith(".py") else sorted((PACKAGE / room).rglob("*.py"))


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
