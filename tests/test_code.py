"""A stage's key changes with the code that makes it, and with no other."""

import ast
import functools
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from omegaconf import OmegaConf

from finepruning.pipeline.defenses import without_unused
from finepruning.store import code
from finepruning.store.code import (
    ROOMS,
    code_version,
    defining_file,
    imported_names,
    named_targets,
    plain_code,
    read_sources,
    source_files,
    stage_files,
)
from tests.conftest import composed


def made_by(*options: str) -> Mapping[str, Any]:
    """Return what a configuration says of the network, its attack and its defense."""
    config = composed(*options)
    plain: Any = {key: OmegaConf.to_container(config[key], resolve=True) for key in MAKERS}
    return plain | {"defense": without_unused(plain["defense"])}


MAKERS = ("attack", "model", "defense")
SUSPECTS = ("none", "blended", "trojan_nn", "input_aware", "signs")
DEFENDED = ("finetune", "ft_sam", "clp", "auto", "ladder")


@functools.cache
def stages() -> dict[str, Mapping[str, Any]]:
    """Return what makes each suspect, and each defended network of a blended pattern in digits."""
    suspects = {name: made_by(f"attack={name}") for name in SUSPECTS if name != "signs"}
    defended = {name: made_by("attack=blended", f"defense={name}") for name in DEFENDED if name != "ladder"}
    return (
        suspects
        | {"signs": made_by("attack=blended", "dataset=gtsrb")}
        | defended
        | {"ladder": made_by("attack=blended", "defense=auto", "defense.ladder=[{tuner: ft_sam}]")}
    )


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Yield a copy of the package, whose code counts in place of its own."""
    copy = tmp_path / "finepruning"
    shutil.copytree(code.PACKAGE, copy, ignore=shutil.ignore_patterns("__pycache__"))
    monkeypatch.setattr(code, "PACKAGE", copy)
    yield copy
    forget()


def forget() -> None:
    for cached in ("_version", "defining_file", "imported_names", "source_files", "_source"):
        getattr(code, cached).cache_clear()


def versions() -> dict[str, str]:
    """Return the code of each stage, as it is now."""
    forget()
    kinds = dict.fromkeys(SUSPECTS, "suspect") | dict.fromkeys(DEFENDED, "defended")
    return {name: code_version(kinds[name], values) for name, values in stages().items()}


MADE_ANEW = {
    "attacks/triggers/warp.py": set(),  # no stage here bends images
    "attacks/triggers/blended.py": {"blended", "signs", *DEFENDED},
    "attacks/triggers/base.py": {*SUSPECTS, *DEFENDED},
    "attacks/triggers/crafted.py": {"trojan_nn"},
    "attacks/crafting/generators.py": {"input_aware"},
    "attacks/attack.py": {*SUSPECTS, *DEFENDED},
    "networks/digits.py": {*SUSPECTS, *DEFENDED} - {"signs"},
    "networks/signs.py": {"signs"},
    "networks/__init__.py": set(),  # it only passes names on
    "attacks/preview.py": set(),
    "pictures.py": {*SUSPECTS, *DEFENDED},  # Blended reads one
    "pruning/removal.py": set(),
    "repair/report.py": set(),
    "modules/classifier.py": {*SUSPECTS, *DEFENDED},
    "modules/ft_sam.py": {"ft_sam", "ladder"},
    "modules/sau.py": set(),
    "repair/ft_sam.py": {"ft_sam", "ladder"},
    "repair/clp.py": {"clp"},
    "callbacks/prune_lipschitz.py": {"clp"},
    "repair/inspection.py": {*DEFENDED},
    "pipeline/defenses.py": {*DEFENDED},
    "referee.py": set(),
}


def test_what_is_edited_decides_what_is_made_anew(package: Path) -> None:
    before = versions()
    for file, expected in MADE_ANEW.items():
        original = (package / file).read_text()
        (package / file).write_text(f"{original}\nVALUE = 1\n")
        after = versions()
        assert {name for name in before if after[name] != before[name]} == expected, file
        (package / file).write_text(original)


def test_a_new_attack_trains_no_other_one_anew(package: Path) -> None:
    before = versions()
    triggers = package / "attacks" / "triggers"
    (triggers / "mine.py").write_text(
        "from finepruning.attacks.triggers.base import Trigger\n\n\nclass Mine(Trigger): ...\n"
    )
    with (triggers / "__init__.py").open("a") as file:
        file.write("from finepruning.attacks.triggers.mine import Mine\n")
    assert versions() == before
    mine = {"trigger": {"_target_": "finepruning.attacks.triggers.Mine"}}
    first = code_version("suspect", mine)
    (triggers / "mine.py").write_text("class Mine: ...\n")
    forget()
    assert code_version("suspect", mine) != first


def test_code_that_is_edited_while_a_run_works_changes_none_of_its_keys(package: Path) -> None:
    before = versions()
    forget()
    read_sources()
    with (package / "attacks" / "attack.py").open("a") as file:
        file.write("VALUE = 1\n")
    kinds = dict.fromkeys(SUSPECTS, "suspect") | dict.fromkeys(DEFENDED, "defended")
    assert {name: code_version(kinds[name], values) for name, values in stages().items()} == before


def test_a_kind_that_no_list_names_depends_on_all_that_the_defender_does() -> None:
    assert code_version("another", {}) == code_version("defended", {}) != code_version("suspect", {})


def test_comments_and_docstrings_are_not_code() -> None:
    assert plain_code('def f():\n    """Say."""\n    return 1  # one') == plain_code("def f():\n    return 1")
    assert plain_code("def f():\n    return 1") != plain_code("def f():\n    return 2")


def test_a_name_is_found_where_it_is_defined() -> None:
    for name, file in {
        "finepruning.networks.SignCNN": "networks/signs.py",
        "finepruning.networks.signs.SignCNN": "networks/signs.py",
        "finepruning.metrics.Rate": "metrics.py",
        "finepruning.store.code": "store/code.py",
    }.items():
        assert defining_file(name) == code.PACKAGE / file
    assert defining_file("torch.nn.Linear") is None
    assert defining_file("finepruning.nowhere.Something") is None


# These build from what the key holds, keep it, or read what a stranger made, whose hash is in the key, as is
# what an oracle says.
DECIDE_NOTHING = ("store/", "suspect/", "data/packed.py", "data/decoding.py", "referee.py")
DECIDE_NOTHING += tuple(
    f"pipeline/{name}.py" for name in ("analysis", "devices", "epochs", "parts", "resolvers", "targets")
)


@pytest.mark.parametrize("kind", ROOMS)
def test_a_stages_files_hold_all_that_they_import(kind: str) -> None:
    defended = kind in ("inspected", "defended")
    nothing = DECIDE_NOTHING if defended else (*DECIDE_NOTHING, "pipeline/defenses.py")
    for name in DEFENDED if defended else SUSPECTS:
        files = stage_files(kind, frozenset(named_targets(stages()[name])))
        used = {defining_file(name) for path in files for name in imported_names(path).values()}
        missing = {str(path.relative_to(code.PACKAGE)) for path in used if path and path not in files}
        assert len(files) > 10
        assert not [path for path in missing if not path.startswith(nothing)]


def test_no_import_hides_what_it_uses() -> None:
    # code is followed from name to name: not through a whole package, nor through "import finepruning..."
    for path in {path for rooms in ROOMS.values() for room in rooms for path in source_files(room)}:
        for name in imported_names(path).values():
            found = defining_file(name)
            assert (
                found is None or found.name != "__init__.py" or found.parent.name != name.rpartition(".")[2]
            )
        nodes = [node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Import)]
        assert not [alias for node in nodes for alias in node.names if alias.name.startswith("finepruning")]
