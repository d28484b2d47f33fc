"""Several processes for one run: the same images, the same network, one record; and no process hangs."""

import csv
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from omegaconf import DictConfig, OmegaConf
from pytorch_lightning import Trainer
from safetensors.torch import load_file

from finepruning import record as records
from finepruning.data.loaders import BatchRows
from finepruning.pipeline import Refused
from finepruning.pipeline.devices import BASIC_LAUNCHER, check_processes, launched, rank
from finepruning.pipeline.processes import Team, together
from finepruning.pipeline.training import check_world_size
from tests.conftest import QUICK, ROOT, run_here

RunHere = Callable[..., dict[str, Any]]

# no BatchNorm and no dropout, so that a batch's share is computed as in the whole batch
EXACT = ("model=badnets_cnn", "dataset.size=16", "trainer.max_epochs=2", "trainer.precision=32-true")
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
TORCHRUN = {"TORCHELASTIC_RUN_ID": "none", "WORLD_SIZE": "2", "RANK": "1"}


def exact_run(place: Path, *overrides: str) -> dict[str, Any]:
    places = (f"runs_dir={place / 'runs'}", f"store_dir={place / 'store'}")
    return run_here(*overrides[:1], *EXACT, "logger=none", *places, *overrides[1:])


def weights(place: Path, record: dict[str, Any], stage: str) -> dict[str, torch.Tensor]:
    return load_file(place / "store" / record["stages"][stage] / "network.safetensors")


def losses(place: Path, record: dict[str, Any], stage: str) -> list[float]:
    with (place / "runs" / record["name"] / stage / "metrics.csv").open() as file:
        rows = list(csv.DictReader(file))
    names = [name for name in rows[0] if name.endswith("/loss")]
    return [float(row[name]) for row in rows for name in names if row[name]]


def assert_equal_networks(ones: dict[str, torch.Tensor], twos: dict[str, torch.Tensor]) -> None:
    assert ones.keys() == twos.keys()
    for name, tensor in ones.items():
        torch.testing.assert_close(twos[name], tensor, rtol=1e-3, atol=1e-5, msg=name)


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


@pytest.mark.parametrize(
    ("length", "batch_size", "size"), [(100, 32, 2), (97, 32, 3), (20, 64, 3), (64, 8, 8)]
)
def test_shares_of_all_processes_are_the_batches_of_one(length: int, batch_size: int, size: int) -> None:
    for seed in (None, 7):
        whole = list(BatchRows(length, batch_size, seed))
        shares = [list(BatchRows(length, batch_size, seed, number, size)) for number in range(size)]
        for number, batch in enumerate(whole):
            parts = [share[number] for share in shares if number < len(share)]
            assert sorted(torch.cat(parts).tolist()) == sorted(batch.tolist())
        assert all(len(part) for share in shares for part in share)
        assert [len(share) for share in shares] == [
            len(BatchRows(length, batch_size, seed, number, size)) for number in range(size)
        ]


@pytest.mark.parametrize(("length", "batch_size", "size"), [(100, 32, 2), (97, 31, 3), (20, 64, 3)])
def test_weighted_means_of_the_shares_are_the_mean_of_the_batch(
    length: int, batch_size: int, size: int
) -> None:
    values = torch.rand(length, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    batch = next(iter(BatchRows(length, batch_size, 7)))
    rows = [BatchRows(length, batch_size, 7, number, size) for number in range(size)]
    means = torch.stack([each.weight * values[next(iter(each))].mean() for each in rows])
    torch.testing.assert_close(means.mean(), values[batch].mean())


def test_more_processes_than_images_in_a_batch_are_refused() -> None:
    with pytest.raises(
        ValueError, match=r"4 processes cannot share a batch of 3 images\. Lower trainer\.dev"
    ):
        BatchRows(100, 3, 0, 1, 4)


REFUSED = {
    "basic launcher": (
        {"devices": 2},
        BASIC_LAUNCHER,
        {},
        r"hydra/launcher=basic runs all jobs in one process",
    ),
    "torchrun of one": (
        {"devices": 1},
        None,
        TORCHRUN,
        r"torchrun started 2 processes, but trainer\.devices=1 ",
    ),
    "torchrun of a list": ({"devices": [0, 1, 2]}, None, TORCHRUN, r"started 2 processes, .* is 3\."),
    "torchrun of a sweep": (
        {"devices": 2},
        "a launcher",
        TORCHRUN,
        r"with -m each run starts trainer\.dev",
    ),
    "spawn": (
        {"devices": 2, "strategy": "ddp_spawn"},
        None,
        {},
        r"trainer\.strategy=ddp_spawn starts processes",
    ),
    "shards": (
        {"devices": 2, "strategy": "fsdp"},
        None,
        {},
        r"trainer\.strategy=fsdp spreads a network over",
    ),
    "nodes": ({"devices": 2, "num_nodes": 2}, None, {}, r"num_nodes=2, but only this process was started"),
    "BatchNorm": (
        {"devices": 2, "accelerator": "cpu", "sync_batchnorm": True},
        None,
        {},
        r"works on GPUs only",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_processes_that_cannot_work_are_refused(case: str) -> None:
    trainer, launcher, environment, sentence = REFUSED[case]
    with pytest.raises(ValueError, match=sentence):
        check_processes(OmegaConf.create(trainer), launcher, environment)


def test_the_first_process_leads_whoever_started_it() -> None:
    two, one = OmegaConf.create({"devices": 2}), OmegaConf.create({"devices": 1})
    slurm = {"SLURM_NTASKS": "2", "SLURM_PROCID": "1"}
    check_processes(two, None, TORCHRUN)
    assert [rank(two, each) for each in ({}, TORCHRUN, slurm, TORCHRUN | {"RANK": "0"})] == [0, 1, 1, 0]
    assert [launched(two, each) for each in ({}, TORCHRUN, slurm)] == [False, True, True]
    assert rank(one, slurm) == 0  # tasks of one process each


def test_a_trainer_without_its_processes_is_refused() -> None:
    trainer = Trainer(accelerator="cpu", devices=2, strategy="ddp", logger=False)
    with pytest.raises(ValueError, match="The trainer counts on 2 processes, but 1 are connected"):
        check_world_size(trainer)


def test_more_gpus_than_there_are_are_refused(quick_run: RunHere) -> None:
    with pytest.raises(Refused, match=r"trainer\.devices=77 .* this machine has \d+ GPUs\. Lower"):
        quick_run("trainer=ddp", "trainer.devices=77")


def share_for_ever(team: Team) -> None:
    while True:
        team.share("is the other one there?")


def two_processes() -> DictConfig:
    trainer = {"_target_": "pytorch_lightning.Trainer", "accelerator": "cpu", "devices": 2, "strategy": "ddp"}
    return OmegaConf.create({"trainer": trainer, "runs_dir": "runs"})


def fail(config: DictConfig) -> None:
    with together(config):
        raise LookupError("lost")


def die(config: DictConfig) -> None:
    with together(config):
        os.kill(os.getpid(), signal.SIGKILL)


def sleep_on(config: DictConfig) -> None:
    with together(config):
        time.sleep(1000)


@pytest.mark.parametrize(
    ("work", "reason"),
    [(fail, "Process 1 of 2 failed: LookupError: lost"), (die, "Process 1 of 2 was killed")],
)
def test_a_process_that_fails_ends_the_others(work: Callable[[DictConfig], None], reason: str) -> None:
    start = time.monotonic()
    with pytest.raises(RuntimeError, match=reason), together(two_processes(), work) as team:
        share_for_ever(team)
    assert time.monotonic() - start < 120
    assert not multiprocessing.active_children()
    assert not torch.distributed.is_initialized()


def test_a_first_process_that_fails_ends_the_others() -> None:
    with pytest.raises(LookupError, match="mine"), together(two_processes(), sleep_on):
        raise LookupError("mine")
    assert not multiprocessing.active_children()
    assert "LOCAL_RANK" not in os.environ


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
    options = ("trainer=ddp_cpu", *EXACT[:2], "trainer.precision=32-true", "defense=none", "logger=none")
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
