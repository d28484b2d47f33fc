"""A stage is trained once, appears whole or not at all, and is never taken for what other code made."""

import ast
import json
import multiprocessing
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from finepruning.pruning import add_mask, pruned_channels, set_pruned
from finepruning.store import Store, code, load_weights, save_weights
from finepruning.store.code import ROOMS, code_version, plain_code, source_files


def make(directory: Path) -> Mapping[str, Any]:
    with (directory / "calls").open("a") as file:
        file.write("called\n")
    return {"answer": 42}


def make_slowly(directory: Path) -> Mapping[str, Any]:
    time.sleep(0.3)
    return make(directory)


def get(root: Path) -> None:
    Store(root).stage("suspect", {"seed": 1}, make_slowly)


def test_a_stage_is_made_once_and_found_again(tmp_path: Path) -> None:
    first = Store(tmp_path).stage("suspect", {"seed": 1}, make)
    again = Store(tmp_path).stage("suspect", {"seed": 1}, make)
    assert (first.reused, again.reused) == (False, True)
    assert again.about["result"] == {"answer": 42}
    assert again.about["made_by"]["seed"] == 1
    assert (again.directory / "calls").read_text() == "called\n"


def test_another_configuration_is_another_stage(tmp_path: Path) -> None:
    keys = {Store(tmp_path).stage("suspect", {"seed": seed}, make).key for seed in (1, 2)}
    assert len(keys) == 2


def test_other_code_makes_another_stage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = Store(tmp_path).stage("suspect", {"seed": 1}, make)
    monkeypatch.setattr("finepruning.store.stages.code_version", lambda kind: "other")
    assert Store(tmp_path).stage("suspect", {"seed": 1}, make).key != first.key


def test_processes_that_start_together_make_it_once(tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    processes = [context.Process(target=get, args=(tmp_path,)) for _ in range(20)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    assert [process.exitcode for process in processes] == [0] * 20
    assert not list(tmp_path.glob("suspect/*.lease"))
    assert next(tmp_path.glob("suspect/*/calls")).read_text() == "called\n"


def test_a_making_that_fails_leaves_no_stage_but_what_it_had(tmp_path: Path) -> None:
    def fail(directory: Path) -> Mapping[str, Any]:
        (directory / "last.ckpt").write_text("half")
        raise RuntimeError("power cut")

    with pytest.raises(RuntimeError, match="power cut"):
        Store(tmp_path).stage("suspect", {"seed": 1}, fail)

    def go_on(directory: Path) -> Mapping[str, Any]:
        return {"found": (directory / "last.ckpt").read_text()}

    assert not list(tmp_path.glob("suspect/*/about.json"))
    stage = Store(tmp_path).stage("suspect", {"seed": 1}, go_on)
    assert stage.about["result"] == {"found": "half"}
    assert not (stage.directory / "last.ckpt").exists()


def test_comments_and_docstrings_are_not_code() -> None:
    assert plain_code('def f():\n    """Say."""\n    return 1  # one') == plain_code("def f():\n    return 1")
    assert plain_code("def f():\n    return 1") != plain_code("def f():\n    return 2")


def test_weights_bring_their_masks_back(tmp_path: Path) -> None:
    network = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU())
    add_mask(network, "1", 4)
    set_pruned(network, "1", [2])
    save_weights(network, tmp_path / "weights")
    plain = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU())
    load_weights(plain, tmp_path / "weights")
    images = torch.rand(2, 1, 5, 5)
    assert pruned_channels(plain) == {"1": [2]}
    assert torch.equal(plain(images), network(images))


def test_weights_without_a_mask_open_it(tmp_path: Path) -> None:
    network = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU())
    save_weights(network, tmp_path / "weights")
    add_mask(network, "1", 4)
    set_pruned(network, "1", [0, 1])
    load_weights(network, tmp_path / "weights")
    assert pruned_channels(network) == {"1": []}


def test_weights_of_another_network_are_refused(tmp_path: Path) -> None:
    save_weights(nn.Linear(2, 2), tmp_path / "weights")
    with pytest.raises(
        ValueError, match=r"does not fit the network: missing \['0\.weight'.*unexpected \['bias'"
    ):
        load_weights(nn.Sequential(nn.Linear(2, 2)), tmp_path / "weights")


def test_what_made_a_stage_can_be_read(tmp_path: Path) -> None:
    stage = Store(tmp_path).stage("suspect", {"attack": {"poison_rate": 0.1}}, make)
    about = json.loads((stage.directory / "about.json").read_text())
    assert about["made_by"]["attack"] == {"poison_rate": 0.1}
    assert about["seconds"] >= 0


def test_the_defenders_code_decides_no_suspect(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(code, "PACKAGE", tmp_path)
    versions = []
    for number, room in enumerate(("start", "callbacks", "repair", "attacks")):
        (tmp_path / room).mkdir()
        (tmp_path / room / "file.py").write_text(f"VALUE = {number}")
        for file in (name for name in ROOMS["defended"] if name.endswith(".py")):
            (tmp_path / file).parent.mkdir(exist_ok=True)
            (tmp_path / file).touch()
        code_version.cache_clear()
        versions.append((code_version("suspect"), code_version("defended")))
    code_version.cache_clear()
    suspects, defended = zip(*versions, strict=True)
    assert suspects[0] == suspects[1] == suspects[2] != suspects[3]
    assert len(set(defended)) == 4
    assert code_version("a kind that no list names") != code_version("suspect")


def test_a_kinds_rooms_hold_all_that_they_import() -> None:
    # of data and suspect only the named parts matter; the others build from what the key holds, keep it, or
    # are the referee's; the modules that train a suspect are named one by one
    decide_nothing = {"data", "suspect", "store", "modules"}
    decide_nothing |= {f"pipeline.{name}" for name in ("analysis", "epochs", "parts", "targets")}
    decide_nothing |= {"data.decoding", "suspect.triggered"}  # whether a stranger's trigger can be read
    for rooms in ROOMS.values():
        files = [path for room in rooms for path in source_files(room)]
        relative = [path.relative_to(code.PACKAGE).with_suffix("") for path in files]
        names = {".".join(path.parts).removesuffix(".__init__") for path in relative}
        nodes = [node for path in files for node in ast.walk(ast.parse(path.read_text()))]
        modules = {str(node.module) for node in nodes if isinstance(node, ast.ImportFrom)}
        own = {name.removeprefix("finepruning.") for name in modules if name.startswith("finepruning.")}
        assert len(own) > 10
        assert not own - names - decide_nothing
