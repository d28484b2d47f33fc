"""``python -m finepruning.store``: what lies in a store, what is damaged, what may go."""

import json
import multiprocessing
import os
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from finepruning import record as records
from finepruning.data import pack
from finepruning.data.digits import Digits
from finepruning.pipeline import Refused
from finepruning.store import Store, held
from finepruning.store.__main__ import main
from tests.conftest import ROOT
from tests.test_main_job import RunHere

SUSPECT: dict[str, Any] = {
    "seed": 7,
    "data": "fingerprint",
    "attack": {
        "_target_": "finepruning.attacks.Attack",
        "trigger": {"_target_": "finepruning.attacks.triggers.PatchTrigger"},
    },
}
FACTS = {
    **{"dataset": "digits", "model": "digits_cnn", "attack": "badnet", "defense": "fineprune"},
    **{"seed": 7, "status": "finished", "config": {}},
}
DAY = 86400
NAME = "0123456789abcdef"  # of a stage


def make(directory: Path) -> Mapping[str, Any]:
    (directory / "network.safetensors").write_bytes(bytes(2_000_000))
    return {}


def age(root: Path, days: float) -> None:
    for path in root.rglob("*"):
        os.utime(path, (time.time() - days * DAY,) * 2)


@pytest.fixture
def places(tmp_path: Path) -> tuple[str, ...]:
    """A store, three days old: a needed stage, one that nobody needs, one interrupted, one set aside."""
    store, run = Store(tmp_path / "store"), tmp_path / "runs" / "one"
    run.mkdir(parents=True)
    needed = store.stage("suspect", SUSPECT, make)
    store.stage("suspect", SUSPECT | {"seed": 8}, make)
    (needed.directory.with_name(f"{NAME}.partial")).mkdir()
    (needed.directory.with_name(f"{NAME}.partial") / "last.ckpt").write_bytes(bytes(10))
    (needed.directory.with_name(f"{NAME}.damaged-1")).mkdir()
    records.write(run, FACTS | {"stages": {"suspect": needed.key}})
    age(tmp_path / "store", 3)
    return "--store", str(tmp_path / "store"), "--runs", str(tmp_path / "runs")


def left(places: tuple[str, ...]) -> list[str]:
    return sorted(path.name for path in Path(places[1]).glob("suspect/*"))


def key_of(places: tuple[str, ...], seed: int) -> str:
    stage = Store(Path(places[1])).find("suspect", SUSPECT | {"seed": seed})
    assert stage is not None
    return stage.directory.name


def test_the_list_says_what_made_each_stage(
    places: tuple[str, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["list", *places]) == 0
    lines = capsys.readouterr().out.splitlines()
    needed = next(line for line in lines if key_of(places, 7) in line)
    for word in ("digits", "badnet", " 7 ", "2.00", "3 d", " 1 "):
        assert word in needed
    other = next(line for line in lines if key_of(places, 8) in line)
    assert "PatchTrigger" in other
    assert " 0 " in other
    assert "interrupted" in next(line for line in lines if f"{NAME}.partial" in line)
    assert "set aside" in next(line for line in lines if f"{NAME}.damaged-1" in line)
    assert "4 entries, 4.0 MB." in lines


def test_a_damaged_stage_makes_verify_fail(
    places: tuple[str, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["verify", *places[:2]]) == 0
    assert "2 checked, 0 damaged." in capsys.readouterr().out
    network = Path(places[1]) / "suspect" / key_of(places, 8) / "network.safetensors"
    network.write_bytes(bytes(1_999_999) + b"x")
    assert main(["verify", *places[:2]]) == 1
    said = capsys.readouterr().out
    assert f"suspect/{network.parent.name}: network.safetensors is damaged." in said
    assert "2 checked, 1 damaged." in said


def test_packed_data_that_changed_makes_verify_fail(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Store(tmp_path).begin()
    packed = pack(Digits(size=8), tmp_path / "data")
    assert len(packed.train) > 1000
    assert main(["verify", "--store", str(tmp_path)]) == 0
    (file,) = tmp_path.glob("data/digits-*/train.npy")
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    capsys.readouterr()
    assert main(["verify", "--store", str(tmp_path)]) == 1
    assert f"data/{file.parent.name}: the values are not those that were packed" in capsys.readouterr().out


def test_an_old_lock_goes_and_a_new_one_stays(places: tuple[str, ...]) -> None:
    old, new = (Path(places[1]) / "suspect" / f"{name * 16}.lock" for name in "01")
    old.touch()
    age(Path(places[1]), 3)
    new.touch()
    assert main(["prune", *places, "--yes"]) == 0
    assert (old.exists(), new.exists()) == (False, True)


def test_nothing_goes_without_a_word(places: tuple[str, ...], capsys: pytest.CaptureFixture[str]) -> None:
    before = left(places)
    assert main(["prune", *places]) == 0
    assert "Nothing was removed. Add --yes to remove 3 of 4 entries, 2.0 MB." in capsys.readouterr().out
    assert left(places) == before


def test_what_no_record_needs_goes_and_the_rest_stays(places: tuple[str, ...]) -> None:
    kept = key_of(places, 7)
    age(Path(places[1]), 3)
    assert main(["prune", *places, "--yes"]) == 0
    assert left(places) == [kept]
    assert key_of(places, 7) == kept  # still sound


def test_what_was_used_lately_stays(places: tuple[str, ...], capsys: pytest.CaptureFixture[str]) -> None:
    used = {key_of(places, 7), key_of(places, 8)}
    assert main(["prune", *places, "--yes"]) == 0
    assert set(left(places)) == used
    assert main(["prune", *places, "--yes", "--unused-for", "0"]) == 0
    assert left(places) == [key_of(places, 7)]


def test_what_is_used_while_the_question_stands_stays(
    places: tuple[str, ...], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    unneeded = key_of(places, 8)
    age(Path(places[1]), 3)
    monkeypatch.setattr("sys.stdin.isatty", lambda: True, raising=False)

    def answer(question: str = "") -> str:
        (Path(places[1]) / "suspect" / unneeded / "about.json").touch()  # as a run does that finds it
        return "y"

    monkeypatch.setattr("builtins.input", answer)
    assert main(["prune", *places]) == 1
    assert unneeded in left(places)
    said = capsys.readouterr().out
    assert "[y/N]" in said
    assert "in use by now and stays" in said


def test_what_the_clock_says_is_to_come_stays(places: tuple[str, ...]) -> None:
    unneeded = key_of(places, 8)
    age(Path(places[1]), -3)
    assert main(["prune", *places, "--yes"]) == 0
    assert unneeded in left(places)


def hold(path: Path, ready: Any, done: Any) -> None:
    with held(path, f"suspect/{NAME}"):
        ready.set()
        done.wait(60)


def test_what_a_live_lock_holds_stays(places: tuple[str, ...], capsys: pytest.CaptureFixture[str]) -> None:
    context = multiprocessing.get_context("fork")
    ready, done = context.Event(), context.Event()
    process = context.Process(target=hold, args=(Path(places[1]) / "suspect" / NAME, ready, done))
    process.start()
    assert ready.wait(60)
    before = set(left(places))
    assert main(["prune", *places, "--yes"]) == 0
    assert before - set(left(places)) == {f"{NAME}.damaged-1"}
    assert f"suspect/{NAME}.partial is being made by process {process.pid}" in capsys.readouterr().out
    done.set()
    process.join()
    assert main(["prune", *places, "--yes"]) == 0
    assert len(left(places)) == 1


def packed(root: Path, name: str, data: str) -> None:
    (root / "data" / name).mkdir(parents=True)
    (root / "data" / name / "about.json").write_text(json.dumps({"data": data}))


def test_packed_data_goes_when_no_needed_stage_was_made_from_it(places: tuple[str, ...]) -> None:
    root = Path(places[1])
    packed(root, "digits-00", "fingerprint")
    packed(root, "faces-11", "another")
    age(root, 3)
    assert main(["prune", *places, "--yes"]) == 0
    assert [path.name for path in (root / "data").iterdir()] == ["digits-00"]


def test_a_record_that_cannot_be_read_stops_the_removal(
    places: tuple[str, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    before = left(places)
    (Path(places[3]) / "two").mkdir()
    (Path(places[3]) / "two" / "record.json").write_text("{")
    assert main(["prune", *places, "--yes"]) == 2
    assert "two/record.json is damaged" in capsys.readouterr().err
    assert left(places) == before
    assert main(["list", *places]) == 0


def test_a_folder_that_is_no_store_is_refused_and_loses_nothing(
    places: tuple[str, ...], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    mine = tmp_path / "home"
    (mine / "suspect" / NAME).mkdir(parents=True)
    (mine / "photos" / "summer").mkdir(parents=True)
    for command in (["list", *places[2:]], ["verify"], ["prune", *places[2:], "--yes", "--unused-for", "0"]):
        assert main([command[0], "--store", str(mine), *command[1:]]) == 2
        assert f"--store {mine} is no store, or one of an early version" in capsys.readouterr().err
    assert sorted(path.name for path in mine.rglob("*")) == [NAME, "photos", "summer", "suspect"]


def test_a_store_that_only_holds_packed_data_is_one(
    quick_run: RunHere, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    store = str(tmp_path / "store")
    with pytest.raises(Refused, match="Target label 10 is not one of the 10 classes"):
        quick_run(f"store_dir={store}", "attack.target_label=10")  # which is seen when data are there
    assert main(["verify", "--store", store]) == 0
    assert "1 checked, 0 damaged." in capsys.readouterr().out


def test_an_empty_folder_has_nothing_to_remove(
    tmp_path: Path, places: tuple[str, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "empty").mkdir()
    assert main(["prune", "--store", str(tmp_path / "empty"), *places[2:], "--yes"]) == 0
    assert "Nothing to remove." in capsys.readouterr().out


def test_what_somebody_put_into_a_store_stays(places: tuple[str, ...]) -> None:
    root, kept = Path(places[1]), key_of(places, 7)
    (root / "suspect" / "ABC" / "more").mkdir(parents=True)
    for name in ("suspect/notes", "suspect/notes.partial", "data/raw", f"photos/{NAME}", "env/lib"):
        (root / name).mkdir(parents=True)
    (root / "suspect" / "my.lock").touch()
    age(root, 3)
    assert main(["prune", *places, "--yes"]) == 0
    assert left(places) == sorted([kept, "ABC", "notes", "notes.partial", "my.lock"])
    assert all((root / name).is_dir() for name in ("data/raw", f"photos/{NAME}", "env/lib"))


def test_a_stage_by_another_name_that_says_what_it_is_counts_as_one(places: tuple[str, ...]) -> None:
    unneeded = Path(places[1]) / "suspect" / key_of(places, 8)
    unneeded.rename(unneeded.with_name("copy"))
    age(Path(places[1]), 3)
    assert main(["prune", *places, "--yes"]) == 0
    assert left(places) == [key_of(places, 7)]


def test_folders_that_are_not_there_and_newer_stores_are_refused(
    places: tuple[str, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["prune", *places[:2], "--runs", "/nowhere"]) == 2
    assert "--runs /nowhere is not a folder" in capsys.readouterr().err
    assert main(["list", "--store", "/nowhere", *places[2:]]) == 2
    assert "--store /nowhere is not a folder" in capsys.readouterr().err
    assert main(["prune", *places, "--unused-for", "-1"]) == 2
    assert "--unused-for -1.0 is below 0" in capsys.readouterr().err
    (Path(places[1]) / "version").write_text("3")
    assert main(["verify", *places[:2]]) == 2
    assert "is of version 3" in capsys.readouterr().err


def test_listing_loads_no_torch(places: tuple[str, ...]) -> None:
    code = (
        "import sys; from finepruning.store.__main__ import main; status = main(sys.argv[1:]); "
        "print(status, 'torch' in sys.modules)"
    )
    for command in (("list", *places), ("prune", *places), ("verify", *places[:2])):
        run = [sys.executable, "-c", code, *command]
        done = subprocess.run(run, cwd=ROOT, capture_output=True, text=True, check=True)
        assert done.stdout.splitlines()[-1] == "0 False"
