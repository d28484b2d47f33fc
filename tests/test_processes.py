"""Several processes for one run share its batches, are refused where they cannot work, and end together."""

import multiprocessing
import os
import platform
import resource
import signal
import time
from collections.abc import Callable
from typing import Any

import pytest
import torch
from omegaconf import DictConfig, OmegaConf
from pytorch_lightning import Trainer

from finepruning.data.loaders import BatchRows
from finepruning.pipeline import Refused
from finepruning.pipeline.devices import (
    BASIC_LAUNCHER,
    VISIBLE,
    check_processes,
    hidden_gpus,
    keep_freed_memory,
    launched,
    rank,
)
from finepruning.pipeline.processes import Team, together
from finepruning.pipeline.training import build_trainer, check_world_size
from tests.conftest import composed

RunHere = Callable[..., dict[str, Any]]

TORCHRUN = {"TORCHELASTIC_RUN_ID": "none", "WORLD_SIZE": "2", "RANK": "1"}


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


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="other C libraries have no such switch")
def test_a_tensor_takes_the_memory_of_the_one_before() -> None:
    keep_freed_memory()

    def new_pages() -> int:
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        torch.zeros(2**26, dtype=torch.uint8).add_(1)
        return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

    assert min(new_pages() for _ in range(3)) < 2**26 // 4096 // 10


@pytest.mark.parametrize("before", [{}, {VISIBLE: "0,1"}])
def test_a_run_on_the_cpu_sees_no_gpu_and_leaves_them_to_the_next(before: dict[str, str]) -> None:
    environment = dict(before)
    with hidden_gpus(OmegaConf.create({"accelerator": "gpu"}), environment):
        assert environment == before
    with hidden_gpus(OmegaConf.create({"accelerator": "cpu"}), environment):
        assert environment == {VISIBLE: ""}
    assert environment == before


def test_gpus_are_hidden_while_a_run_works(quick_run: RunHere, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[str | None] = []

    def environment() -> dict[str, Any]:
        seen.append(os.environ.get(VISIBLE))
        return {}

    monkeypatch.setattr("finepruning.record.environment", environment)
    quick_run("defense=none")
    assert seen == [""]


@pytest.mark.parametrize("key", ["logger=true", "callbacks=[]", "use_distributed_sampler=true"])
def test_a_trainers_key_that_nothing_would_come_of_is_refused(key: str, quick_run: RunHere) -> None:
    with pytest.raises(Refused, match=r"trainer\.\w+ has no effect: .* Leave it out; loggers are chosen by"):
        quick_run(f"+trainer.{key}")


def test_what_the_trainer_is_quiet_about_can_be_had() -> None:
    config = composed("+trainer.log_every_n_steps=1", "+trainer.enable_progress_bar=true")
    trainer = build_trainer(config, [], [])
    assert trainer.log_every_n_steps == 1
    assert trainer.progress_bar_callback is not None
    plain = build_trainer(composed(), [], [])
    assert (plain.log_every_n_steps, plain.progress_bar_callback) == (50, None)


def test_a_trainer_without_its_processes_is_refused() -> None:
    trainer = Trainer(accelerator="cpu", devices=2, strategy="ddp", logger=False)
    with pytest.raises(ValueError, match="The trainer counts on 2 processes, but 1 are connected"):
        check_world_size(trainer)


def test_more_gpus_than_there_are_are_refused(quick_run: RunHere) -> None:
    with pytest.raises(Refused, match=r"trainer\.devices=77 .* this machine has \d+ GPUs\. Lower"):
        quick_run("trainer=ddp", "trainer.devices=77")


@pytest.mark.parametrize("devices", ["1", "[1]", "auto"])
def test_a_gpu_that_is_not_there_is_refused(
    devices: str, quick_run: RunHere, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("torch.cuda.device_count", lambda: 1 if devices == "[1]" else 0)
    with pytest.raises(Refused, match=r"trainer\.accelerator=cuda, but this machine has \d GPUs\. Lower"):
        quick_run("trainer=gpu", "trainer.accelerator=cuda", f"trainer.devices={devices}")


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
