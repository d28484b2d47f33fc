"""Trained stages, each kept under a hash of everything that made it.

A stage is trained by the first process that needs it, in a folder beside its place, which survives a kill so
that training goes on from its last epoch; finished, the folder is renamed to its place in one step.
"""

import ast
import functools
import hashlib
import importlib.metadata
import json
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from filelock import FileLock
from safetensors.torch import load_file, save_file
from torch import nn

from finepruning.pruning import add_mask

ROOMS = ("callbacks", "data", "modules", "networks", "attacks", "pruning")
WEIGHTS = "network.safetensors"


@dataclass(frozen=True)
class Stage:
    """A finished stage.

    Args:
        key: Its kind and hash.
        directory: Where its files lie.
        about: What made it, how long that took (``seconds``), and what the making returned (``result``).
        reused: Whether it was there already.
    """

    key: str
    directory: Path
    about: dict[str, Any]
    reused: bool

    def load_into(self, network: nn.Module) -> nn.Module:
        """Return ``network`` with the stage's weights and masks."""
        return load_weights(network, self.directory / WEIGHTS)


class Store:
    """A folder of stages that any number of runs share."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def stage(
        self, kind: str, made_by: Mapping[str, Any], make: Callable[[Path], Mapping[str, Any]]
    ) -> Stage:
        """Return the stage that ``made_by`` describes, made now if it is not there.

        Args:
            kind: ``"suspect"`` or ``"defended"``; the folder it lies in.
            made_by: Plain values that decide what comes out.
            make: Fills the folder it is given and returns plain values to keep. It may find files of an
                earlier, interrupted call there.
        """
        made_by = {**made_by, "code": code_version()}
        key = hashlib.sha256(json.dumps(made_by, sort_keys=True).encode()).hexdigest()[:16]
        directory = self.root / kind / key
        directory.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(f"{directory}.lock"):
            reused = directory.exists()
            if not reused:
                partial = directory.with_name(f"{key}.partial")
                partial.mkdir(exist_ok=True)
                start = time.perf_counter()
                result = make(partial)
                about = {"made_by": made_by, "seconds": time.perf_counter() - start, "result": dict(result)}
                (partial / "about.json").write_text(json.dumps(about, indent=1))
                partial.rename(directory)
        about = json.loads((directory / "about.json").read_text())
        return Stage(f"{kind}/{key}", directory, about, reused)


def save_weights(network: nn.Module, path: Path) -> None:
    """Write parameters, buffers and masks as safetensors."""
    save_file(
        {name: tensor.detach().cpu().contiguous() for name, tensor in network.state_dict().items()}, path
    )


def load_weights(network: nn.Module, path: Path) -> nn.Module:
    """Load what :func:`save_weights` wrote, adding the masks that it finds there."""
    state = load_file(path)
    for name, tensor in state.items():
        if name.endswith(".channel_mask"):
            add_mask(network, name.removesuffix(".channel_mask"), len(tensor))
    missing, unexpected = network.load_state_dict(state, strict=False)
    for name in [name for name in missing if name.endswith(".channel_mask")]:
        network.get_buffer(name).fill_(1.0)  # weights that were saved without this mask prune nothing
        missing.remove(name)
    if missing or unexpected:
        raise ValueError(
            f"{path} does not fit the network: missing {missing[:10]}, unexpected {unexpected[:10]}."
        )
    return network


@functools.cache
def code_version() -> str:
    """Return a hash of the code that trains, without comments and docstrings, and of torch's version.

    A change of code gives new keys, so that a stage is never taken for what other code made.
    """
    digest = hashlib.sha256(importlib.metadata.version("torch").encode())
    for room in ROOMS:
        for path in sorted((Path(__file__).parent / room).rglob("*.py")):
            digest.update(_code(path.read_text()).encode())
    return digest.hexdigest()[:16]


def _code(source: str) -> str:
    tree = ast.parse(source)
    for node in ast.walk(tree):
        if (
            isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef)
            and ast.get_docstring(node) is not None
        ):
            node.body = node.body[1:]
    return ast.dump(tree)
