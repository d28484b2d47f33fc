"""What may happen to a store: damage, full and read-only disks, clocks."""

import json
import multiprocessing
import os
import resource
import shutil
import tempfile
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from finepruning.store import Store
from finepruning.store.stages import fault

FORK = multiprocessing.get_context("fork")
SEED = {"seed": 1}


def make(directory: Path) -> Mapping[str, Any]:
    (directory / "network.safetensors").write_bytes(bytes(range(256)) * 4)
    (directory / "more").mkdir(exist_ok=True)
    (directory / "more" / "table.txt").write_text("one\ntwo\n")
    return {"answer": [42, 0.5]}


def contents(directory: Path) -> dict[str, bytes]:
    files = [path for path in directory.rglob("*") if path.is_file() and path.name != "about.json"]
    return {str(path.relative_to(directory)): path.read_bytes() for path in files}


@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    name=st.sampled_from(["network.safetensors", "more/table.txt", "about.json"]),
    how=st.sampled_from(["truncate", "flip", "remove", "empty"]),
    place=st.floats(0, 1, exclude_max=True),
    bit=st.integers(0, 7),
)
def test_whatever_happens_to_a_file_the_stage_comes_out_equal(
    tmp_path: Path, name: str, how: str, place: float, bit: int
) -> None:
    root = Path(tempfile.mkdtemp(dir=tmp_path))
    whole = Store(root).stage("suspect", SEED, make)
    before, about = contents(whole.directory), whole.about
    file = whole.directory / name
    damaged = bytearray(file.read_bytes())
    position = int(place * len(damaged))
    damaged[position] ^= 1 << bit
    changed = {"truncate": bytes(damaged[:position]), "flip": bytes(damaged), "empty": b""}
    if how == "remove":
        file.unlink()
    else:
        file.write_bytes(changed[how])
    again = Store(root).stage("suspect", SEED, make)
    assert contents(again.directory) == before
    assert (again.about["made_by"], again.about["result"]) == (about["made_by"], about["result"])
    # a flipped bit in the layout of about.json, such as a space, changes nothing that is read
    assert again.reused is False or (name == "about.json" and how == "flip")
    assert fault(again.directory) is None


def test_a_damaged_stage_is_set_aside_and_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    stage = Store(tmp_path).stage("suspect", SEED, make)
    (stage.directory / "network.safetensors").write_bytes(b"short")
    Store(tmp_path).stage("suspect", SEED, make)
    aside = stage.directory.with_name(f"{stage.directory.name}.damaged-1")
    assert (aside / "network.safetensors").read_bytes() == b"short"
    assert f"{stage.key}: network.safetensors is damaged. It is set aside as {aside}." in caplog.text
    (stage.directory / "about.json").unlink()
    Store(tmp_path).stage("suspect", SEED, make)
    assert stage.directory.with_name(f"{stage.directory.name}.damaged-2").is_dir()


def test_a_stage_that_cannot_be_read_back_is_said_and_not_made_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("finepruning.store.stages.fault", lambda _: "network.safetensors is damaged")
    made: list[Path] = []

    def make_once(directory: Path) -> Mapping[str, Any]:
        made.append(directory)
        return make(directory) if len(made) == 1 else pytest.fail("made again")

    with pytest.raises(OSError, match=r"written to .*suspect/\w+ cannot be read back\. Check that disk"):
        Store(tmp_path).stage("suspect", SEED, make_once)


def test_no_half_written_file_of_a_killed_process_is_kept(tmp_path: Path) -> None:
    stage = Store(tmp_path).stage("suspect", SEED, make)
    shutil.move(stage.directory, f"{stage.directory}.partial")
    (Path(f"{stage.directory}.partial") / ".network.safetensors.host.12").write_bytes(b"half")
    again = Store(tmp_path).stage("suspect", SEED, make)
    assert set(again.about["files"]) == {"network.safetensors", "more/table.txt"}
    assert ".network.safetensors.host.12" not in contents(again.directory)


def test_a_clock_that_is_set_back_changes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stage = Store(tmp_path).stage("suspect", SEED, make)
    clock = time.time
    monkeypatch.setattr(time, "time", lambda: clock() - 1e8)
    for path in stage.directory.rglob("*"):
        os.utime(path, (0, 0))
    assert Store(tmp_path).stage("suspect", SEED, make).reused is True
    assert Store(tmp_path).stage("suspect", {"seed": 2}, make).about["made"] < stage.about["made"]


def test_a_store_of_a_newer_version_is_refused(tmp_path: Path) -> None:
    Store(tmp_path).stage("suspect", SEED, make)
    assert (tmp_path / "version").read_text() == "2\n"
    (tmp_path / "version").write_text("3\n")
    with pytest.raises(ValueError, match=r"is of version 3, and this program reads up to 2\. Update"):
        Store(tmp_path)
    (tmp_path / "version").write_text("new\n")
    with pytest.raises(ValueError, match="does not hold a number"):
        Store(tmp_path)


@pytest.fixture
def public() -> Iterator[Path]:
    """A folder that a process without rights reaches, which pytest's own is not."""
    folder = Path(tempfile.mkdtemp(prefix="store"))
    folder.chmod(0o755)
    yield folder
    shutil.rmtree(folder)


def in_a_child(job: Any) -> str:
    """Return what a job in a fresh process returns, or the text of its OSError."""
    receive, send = FORK.Pipe(duplex=False)

    def run() -> None:
        try:
            send.send(job())
        except OSError as error:
            send.send(f"OSError: {error}")

    process = FORK.Process(target=run)
    process.start()
    process.join()
    return str(receive.recv() if receive.poll() else f"exit status {process.exitcode}")


def test_a_read_only_store_gives_what_it_has_and_says_what_it_cannot_make(public: Path) -> None:
    Store(public).stage("suspect", SEED, make)
    for path in [public, *public.rglob("*")]:
        path.chmod(0o555 if path.is_dir() else 0o444)

    def read(seed: int) -> bool:
        if os.getuid() == 0:
            os.setuid(65534)  # root may write everywhere
        return Store(public).stage("suspect", {"seed": seed}, make).reused

    assert in_a_child(lambda: read(1)) == "True"
    refused = in_a_child(lambda: read(2))
    assert refused.startswith(f"OSError: {public / 'suspect'} cannot be written (Permission denied)")
    assert "Set store_dir to a folder that can be written" in refused
    for path in [public, *public.rglob("*")]:
        path.chmod(0o755)


@pytest.mark.parametrize("limit", [400, 1024, 1500])
def test_a_full_disk_is_said_and_leaves_no_half_stage(tmp_path: Path, limit: int) -> None:
    def fill() -> bool:
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
        return Store(tmp_path).stage("suspect", SEED, make_large).reused

    said = in_a_child(fill)
    assert "There is no room to make suspect/" in said
    assert "File too large" in said
    assert "the next run goes on from what is done" in said
    assert not list(tmp_path.glob("suspect/*[!l]/about.json"))
    assert not list(tmp_path.rglob("*.lease"))
    stage = Store(tmp_path).stage("suspect", SEED, make_large)
    assert (stage.directory / "network").stat().st_size == 1200


def make_large(directory: Path) -> Mapping[str, Any]:
    make(directory)
    (directory / "network").write_bytes(bytes(1200))
    return {"long": list(range(200))}


def test_what_a_stage_says_about_itself_is_sealed(tmp_path: Path) -> None:
    stage = Store(tmp_path).stage("suspect", SEED, make)
    about = json.loads((stage.directory / "about.json").read_text())
    about["result"]["answer"] = [43, 0.5]
    (stage.directory / "about.json").write_text(json.dumps(about))
    assert fault(stage.directory) == "about.json is damaged"
