"""A stage is trained once, appears whole or not at all, and is never taken for what other code made."""

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
from finepruning.store import Store, load_weights, save_weights
from finepruning.store.stages import stage_key


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


@pytest.mark.parametrize("place", [("defense",), ("defense", "tuners", "mine")])
def test_callbacks_in_another_order_are_another_stage(place: tuple[str, ...]) -> None:
    def made_by(*names: str) -> dict[str, Any]:
        values: dict[str, Any] = {"callbacks": {name: {"max_drop": 0.1} for name in names}}
        for key in reversed(place):
            values = {key: values}
        return values

    keys = {stage_key("defended", made_by(*names)) for names in (("a", "b"), ("b", "a"), ("a",), ())}
    assert len(keys) == 4


def test_keys_of_stages_with_one_callback_stay(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("finepruning.store.stages.code_version", lambda kind, made_by: "code")
    made_by = {"defense": {"layers": ["conv3"], "callbacks": {"prune": {"max_drop": 0.04}}}, "seed": 1}
    assert stage_key("defended", made_by) == "defended/dc6b00bf9faba50e"
    turned = dict(reversed(made_by.items()))
    assert stage_key("defended", turned) == "defended/dc6b00bf9faba50e"


def test_other_code_makes_another_stage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = Store(tmp_path).stage("suspect", {"seed": 1}, make)
    monkeypatch.setattr("finepruning.store.stages.code_version", lambda kind, made_by: "other")
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


def test_the_seconds_of_a_stage_hold_what_was_kept_of_interrupted_attempts(tmp_path: Path) -> None:
    def work(directory: Path) -> Mapping[str, Any]:
        time.sleep(0.3)
        (directory / "last.ckpt").write_text("half")
        time.sleep(0.2)  # for nothing: nothing comes of it
        raise RuntimeError("power cut")

    for _ in range(2):
        with pytest.raises(RuntimeError, match="power cut"):
            Store(tmp_path).stage("suspect", {"seed": 1}, work)
    stage = Store(tmp_path).stage("suspect", {"seed": 1}, make)
    assert 0.6 <= stage.about["seconds"] < 0.95  # the third attempt takes next to none
    assert sorted(path.name for path in stage.directory.iterdir()) == ["about.json", "calls"]


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
