"""The threat model is an import rule: who may know whom."""

import ast
import subprocess
import sys

import pytest

from tests.conftest import ROOT

PACKAGE = ROOT / "finepruning"
LAYERS = [  # a room imports rooms of its own layer and of those above it in this list
    {"pictures"},
    {"metrics", "networks", "attacks.triggers", "pruning", "repair"},
    {"data", "attacks", "modules", "callbacks", "suspect", "record", "store"},
    {"referee", "stress", "views"},
    {"pipeline", "dashboard", "launcher", "search"},
]
DEFENDERS = ("pruning", "repair", "modules", "callbacks")
# files of the pipeline in which the defender decides, rooms that know triggers or test images; an oracle
OF_THE_PIPELINE = ("climber", "defended", "defenses", "inspector")
SECRETS = ("attacks", "attacks.triggers", "referee", "stress", "views")
ALLOWED = [("finepruning.pipeline.defended", "finepruning.referee.trigger_change_order")]
HYDRA_ROOMS = {"pipeline", "launcher"}


def room(module: str) -> str:
    parts = module.split(".")[1:]
    return "attacks.triggers" if parts[:2] == ["attacks", "triggers"] else parts[0] if parts else ""


def layer(name: str) -> int:
    return next(number for number, rooms in enumerate(LAYERS) if name in rooms)


def imports() -> list[tuple[str, str]]:
    found = []
    for path in sorted(PACKAGE.rglob("*.py")):
        parts = path.relative_to(ROOT).with_suffix("").parts
        module = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
        for node in ast.walk(ast.parse(path.read_text())):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            if isinstance(node, ast.ImportFrom):
                names = [f"{node.module}.{alias.name}" for alias in node.names]
            found += [(module, name) for name in names]
    return found


IMPORTS = imports()
OWN = [(a, b) for a, b in IMPORTS if b.startswith("finepruning.") and room(a)]


def test_there_are_imports_to_check() -> None:
    assert len(OWN) > 30
    assert {room(a) for a, _ in OWN} >= {"pruning", "callbacks", "attacks", "referee", "pipeline"}


def test_imports_point_one_way() -> None:
    wrong = [(a, b) for a, b in OWN if room(a) != room(b) and layer(room(a)) < layer(room(b))]
    assert not wrong


def reached(start: str) -> set[str]:
    """Return all that a room imports, and what that imports, and so on."""
    found: set[str] = set()
    new = {module for module, _ in OWN if room(module) == start}
    while new:
        found |= new
        named = {name for module, name in OWN if module in new}
        new = {module for module, _ in IMPORTS if any(f"{name}.".startswith(f"{module}.") for name in named)}
        new -= found | {"finepruning"}
    return found


@pytest.mark.parametrize("defender", DEFENDERS)
def test_no_defense_reaches_an_attack_or_the_referee(defender: str) -> None:
    assert len(reached(defender)) > 2
    assert not [module for module in reached(defender) if room(module) in SECRETS]


@pytest.mark.parametrize("file", OF_THE_PIPELINE)
def test_where_the_defender_decides_nobody_knows_the_attack(file: str) -> None:
    own = [pair for pair in OWN if pair[0] == f"finepruning.pipeline.{file}"]
    assert own
    assert [pair for pair in own if room(pair[1]) in SECRETS and pair not in ALLOWED] == []


def test_only_the_composition_root_and_the_launcher_know_hydra() -> None:
    users = {room(a) for a, b in IMPORTS if b.split(".")[0] in ("hydra", "omegaconf")}
    assert users == HYDRA_ROOMS


def test_help_does_not_load_torch() -> None:
    code = "import sys; sys.argv = ['run.py']; import run; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
