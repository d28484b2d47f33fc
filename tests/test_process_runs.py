"""Whole runs of several processes: the network of one, one record, and no process left behind."""

import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from finepruning import record as records
from tests.conftest import QUICK, ROOT
from tests.exact_runs import EXACT, assert_equal_networks, exact_run, losses, weights

SOURCES = {
    "pruning_aware": ("attack.survivors=20",),
    "transfer": (
        "dataset@attack.source=digits",
        "attack.source.dataset.size=16",
        "attack.source.trainer.max_epochs=2",
        "attack.trigger.size=0.25",
        "attack.dedication=0.55",
        "attack.strengthen=2",
    ),
}


def test_two_processes_train_the_network_of_one(tmp_path: Path) -> None:
    # 63 images of a batch over 2 processes: their shares are of different size
    options = (
        "training.batch_size=63",
        "defense=fineprune",
        "defense.prune_count=20",
        "defense.max_drop=null",
    )
    tuning = (
        "defense.tuning.max_epochs=2",
        "defense.tuning.batch_size=500",
    )  # more than there are: one batch
    one = exact_run(tmp_path, "trainer=cpu", *options, *tuning)
    two = exact_run(tmp_path, "trainer=ddp_cpu", *options, *tuning)
    assert (one["processes"], two["processes"]) == (1, 2)
    assert len(list((tmp_path / "runs").glob("*/record.json"))) == 2
    assert len(list((tmp_path / "store" / "suspect").glob("*/about.json"))) == 2
    for stage in ("suspect", "defended"):
        assert losses(tmp_path, two, stage) == pytest.approx(losses(tmp_path, one, stage), rel=1e-4)
        assert_equal_networks(weights(tmp_path, one, stage), weights(tmp_path, two, stage))
    assert [step["number"] for step in two["pruning"]] == [step["number"] for step in one["pruning"]]
    assert sum(step["pruned"] for step in two["pruning"]) == 20
    masks = [tensor for name, tensor in weights(tmp_path, two, "defended").items() if "mask" in name]
    assert [int((mask == 0).sum()) for mask in masks] == [20]
    assert two["scores"]["suspect"]["counts"]["clean_accuracy"]["total"] == 450
    assert "LOCAL_RANK" not in os.environ
    assert not torch.distributed.is_initialized()


def finished(*command: str, **environment: str) -> str:
    """Run a program, which has to succeed, and return what it said."""
    done = subprocess.run(
        command,
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=500,
        env=os.environ | environment,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stderr + done.stdout


def only_records(place: Path) -> list[dict[str, Any]]:
    found = [records.read(path.parent) for path in sorted((place / "runs").glob("*/record.json"))]
    return [record for record in found if record is not None]


@pytest.mark.slow
def test_torchrun_gives_the_run_of_our_own_processes(tmp_path: Path) -> None:
    options = ("trainer=ddp_cpu", *EXACT, "logger=wandb", "defense=prune")
    places = [
        (f"runs_dir={tmp_path / name / 'runs'}", f"store_dir={tmp_path / name / 'store'}") for name in "ab"
    ]
    torchrun = (
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc_per_node",
        "2",
        "run.py",
    )
    finished(*torchrun, *options, *places[0])
    assert "Finished earlier" in finished(*torchrun, *options, *places[0])
    finished(sys.executable, "run.py", *options, *places[1])
    (one,), (other,) = only_records(tmp_path / "a"), only_records(tmp_path / "b")
    assert one["processes"] == other["processes"] == 2
    assert one["scores"] == other["scores"]
    assert one["stages"] == other["stages"]
    assert_equal_networks(weights(tmp_path / "a", one, "suspect"), weights(tmp_path / "b", other, "suspect"))
    assert len(list((tmp_path / "a").glob("runs/*/wandb/offline-run-*"))) == 1
    assert len(list((tmp_path / "b").glob("runs/*/wandb/offline-run-*"))) == 1


@pytest.mark.slow
def test_a_sweep_runs_jobs_of_several_processes(tmp_path: Path) -> None:
    places = (f"runs_dir={tmp_path / 'runs'}", f"store_dir={tmp_path / 'store'}")
    # no BatchNorm: two processes and one give the same scores
    sweep = ("trainer=cpu,ddp_cpu", *EXACT, "defense=none,prune", "logger=none", "hydra.launcher.n_jobs=2")
    said = finished(sys.executable, "run.py", "-m", *sweep, *places)
    found = only_records(tmp_path)
    assert sorted((record["defense"], record["processes"]) for record in found) == [
        ("none", 1),
        ("none", 2),
        ("prune", 1),
        ("prune", 2),
    ]
    assert len(list((tmp_path / "store" / "suspect").glob("*/about.json"))) == 2
    for defense in ("none", "prune"):
        one, two = (record["scores"] for record in found if record["defense"] == defense)
        assert one == two
    assert "Process" not in said
    logs = [path.read_text() for path in (tmp_path / "runs").glob("*/run.log")]
    assert len(logs) == 4


@pytest.mark.slow
def test_the_basic_launcher_is_refused_before_any_work(tmp_path: Path) -> None:
    places = (f"runs_dir={tmp_path / 'runs'}", f"store_dir={tmp_path / 'store'}")
    command = [sys.executable, "run.py", "-m", "hydra/launcher=basic", "trainer=ddp_cpu", *QUICK, *places]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 1
    assert "hydra/launcher=basic runs all jobs in one process" in done.stderr
    assert not (tmp_path / "store").exists()


@pytest.mark.slow
@pytest.mark.parametrize("attack", ["pruning_aware", "transfer"])
def test_attacks_of_several_stages_come_out_as_in_one_process(attack: str, tmp_path: Path) -> None:
    tuning = ("defense=fineprune", "defense.tuning.max_epochs=2")
    one = exact_run(tmp_path, "trainer=cpu", f"attack={attack}", *tuning, *SOURCES[attack])
    two = exact_run(tmp_path, "trainer=ddp_cpu", f"attack={attack}", *tuning, *SOURCES[attack])
    assert two["processes"] == 2
    assert set(two["stages"]) == set(one["stages"])
    for stage in one["stages"]:
        assert_equal_networks(weights(tmp_path, one, stage), weights(tmp_path, two, stage))
    masks = {name: mask for name, mask in weights(tmp_path, two, "defended").items() if "mask" in name}
    pruned = [step["number"] for step in two["pruning"] if step["pruned"]]
    assert pruned
    assert [(mask == 0).nonzero().flatten().tolist() for mask in masks.values()] == [sorted(pruned)]


@pytest.mark.slow
def test_a_killed_run_of_two_processes_leaves_none_and_goes_on(tmp_path: Path) -> None:
    options = ("trainer=ddp_cpu", *EXACT[:2], EXACT[3], "defense=none", "logger=none")
    place = (f"runs_dir={tmp_path / 'runs'}", f"store_dir={tmp_path / 'store'}")
    command = [sys.executable, "run.py", *options, "trainer.max_epochs=12", *place]
    run = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 300
    while not list(tmp_path.glob("store/suspect/*.partial/last.ckpt")) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert run.poll() is None
    run.kill()
    run.wait()
    while using(tmp_path) and time.monotonic() < deadline:
        time.sleep(0.5)
    assert not using(tmp_path)
    said = finished(*command)
    assert "Training the suspect" in said
    (record,) = only_records(tmp_path)
    assert "Going on after epoch" in said
    rows = losses(tmp_path, record, "suspect")
    whole = exact_run(tmp_path / "whole", "trainer=ddp_cpu", "trainer.max_epochs=12", "defense=none")
    assert_equal_networks(weights(tmp_path / "whole", whole, "suspect"), weights(tmp_path, record, "suspect"))
    assert rows[-1] == pytest.approx(losses(tmp_path / "whole", whole, "suspect")[-1], rel=1e-4)


def using(place: Path) -> list[str]:
    """Return the processes whose command names a folder, or that have a file in it open."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            files = [str(file.readlink()) for file in (process / "fd").iterdir()]
            if any(str(place) in file for file in files) or str(place) in (process / "cmdline").read_text():
                found.append(process.name)
        except OSError:
            continue
    return found
