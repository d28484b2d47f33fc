"""Sweeps on SLURM and Ray: what cannot start says so, and a worker leaves what a run here leaves."""

import json
import os
import secrets
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from hydra import initialize_config_dir
from hydra._internal.callbacks import Callbacks
from hydra.core.global_hydra import GlobalHydra
from hydra.errors import CompactHydraException
from hydra.types import HydraContext, RunMode

from finepruning import record as records
from finepruning.launcher import CheckCluster
from finepruning.launcher.clusters import ClusterLauncher, Job, alike
from finepruning.pipeline.resolvers import gpus
from tests.conftest import QUICK, ROOT, composed
from tests.one_node_slurm import free_ports, missing, one_node_slurm

TIMES = (
    "seconds",
    "peak_memory_mb",
    "group",
    "command",
    "name",
    "config",
    "making",
)  # differ between equal runs


def check(*overrides: str) -> None:
    CheckCluster().on_multirun_start(composed(*overrides))


def test_without_sbatch_a_sweep_does_not_start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(SystemExit, match=r"submitit_slurm cannot start: there is no sbatch .* login node"):
        check("hydra/launcher=submitit_slurm")


def test_a_slurm_that_does_not_answer_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, text in (("sbatch", ""), ("sinfo", "echo 'Unable to contact slurm controller' >&2; exit 1")):
        (tmp_path / name).write_text(f"#!/bin/sh\n{text}\n")
        (tmp_path / name).chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(SystemExit, match=r"SLURM does not answer \(Unable to contact slurm controller\)"):
        check("hydra/launcher=submitit_slurm")


@pytest.mark.parametrize(
    ("address", "sentence"),
    [
        (
            "127.0.0.1:{port}",
            r"nothing answers at hydra\.launcher\.ray\.init\.address=127\.0\.0\.1:.*ray start",
        ),
        ("ray://127.0.0.1:{port}", r"nothing answers at .*=ray://127\.0\.0\.1:"),
        ("127.0.0.1", r"address=127\.0\.0\.1 is not HOST:PORT, such as 10\.0\.0\.1:6379"),
        ("host:port", r"address=host:port is not HOST:PORT"),
    ],
)
def test_a_ray_that_does_not_answer_is_named(address: str, sentence: str) -> None:
    given = address.format(port=free_ports(1)[0])
    with pytest.raises(SystemExit, match=sentence):
        check("hydra/launcher=ray", f'hydra.launcher.ray.init.address="{given}"')


def test_a_ray_that_answers_and_a_ray_of_our_own_pass() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        check("hydra/launcher=ray", f'hydra.launcher.ray.init.address="127.0.0.1:{server.getsockname()[1]}"')
    check("hydra/launcher=ray")
    check()


@pytest.mark.parametrize(("launcher", "extra"), [("submitit_slurm", "slurm"), ("ray", "ray")])
def test_an_extra_that_is_not_installed_is_named(
    launcher: str, extra: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
    with pytest.raises(SystemExit, match=rf'Run: pip install -e "\.\[{extra}\]"'):
        check(f"hydra/launcher={launcher}")


def test_a_job_asks_for_what_its_own_data_set_and_trainer_need() -> None:
    def job(*overrides: str) -> Job:
        return Job("", composed("hydra/launcher=submitit_slurm", *overrides), Path(), "")

    jobs = [job("trainer.threads=1"), job("trainer.threads=3"), job("trainer=gpu", "trainer.devices=2")]
    asked = [
        [each.launcher[key] for key in ("cpus_per_task", "tasks_per_node", "gpus_per_node")] for each in jobs
    ]
    assert asked == [[1, 1, None], [3, 1, None], [1, 2, 2]]
    ray = composed("hydra/launcher=ray", "trainer=ddp_cpu", "trainer.devices=2", "trainer.threads=3")
    assert Job("", ray, Path(), "").launcher["ray"]["remote"]["num_cpus"] == 6  # of both its processes
    again = job("trainer.threads=3", "defense=none")
    assert alike([*jobs, again]) == [[jobs[0]], [jobs[1], again], [jobs[2]]]


@pytest.mark.parametrize("trainer", ["cpu", "gpu"])
def test_a_cluster_wants_devices_as_a_number(trainer: str, monkeypatch: pytest.MonkeyPatch) -> None:
    config = composed("hydra/launcher=ray", f"trainer={trainer}", "trainer.devices=auto")
    monkeypatch.setattr("finepruning.launcher.clusters.compose", lambda *_: (config, Path()))
    launcher = ClusterLauncher()
    launcher.setup(hydra_context=None, task_function=None, config=config)  # type: ignore[arg-type]
    with pytest.raises(CompactHydraException, match=r"devices=auto is no number, by which a cluster hands"):
        launcher.launch([[]], 0)


def test_a_cluster_gets_no_runs_that_would_share_a_name(monkeypatch: pytest.MonkeyPatch) -> None:
    given: list[Job] = []
    monkeypatch.setattr("finepruning.launcher.clusters.conclude", lambda *_: None)
    monkeypatch.setattr(ClusterLauncher, "run", lambda _, jobs: given.extend(jobs))
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        loader = GlobalHydra.instance().config_loader()
        launcher = ClusterLauncher()
        launcher.setup(
            hydra_context=HydraContext(config_loader=loader, callbacks=Callbacks()),
            task_function=lambda _: None,
            config=loader.load_configuration("config", ["hydra/launcher=ray"], RunMode.MULTIRUN),
        )
        launcher.launch([["seed=1"], ["seed=2"], ["seed=1"]], 0)
        assert [job.overrides for job in given] == ["seed=1", "seed=2"]
        with pytest.raises(CompactHydraException, match=r"share the name 'mine', such as 'name=mine seed=1'"):
            launcher.launch([["name=mine", "seed=1"], ["name=mine", "seed=2"]], 0)
    assert len(given) == 2


def test_only_gpu_jobs_ask_for_gpus() -> None:
    assert [gpus("cpu", 2), gpus("gpu", 2), gpus("cuda", 1)] == [None, 2, 1]


def sweep(
    tmp_path: Path, name: str, *overrides: str, environment: Mapping[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    """Run two defenses as a sweep from a folder that is not the worker's, by relative paths."""
    environment = {**(environment or os.environ), "PYTHONPATH": str(ROOT)}  # this checkout, not one installed
    places = (f"runs_dir={name}", "store_dir=store")
    command = [sys.executable, str(ROOT / "run.py"), "-m", "attack=badnet", "defense=none,prune", *QUICK]
    return subprocess.run(
        [*command, *places, *overrides], cwd=tmp_path, env=environment, capture_output=True, text=True
    )


def found(runs: Path) -> dict[str, dict[str, Any]]:
    """Return the records by defense, without what differs between equal runs."""
    read = [records.read(path.parent) for path in runs.glob("*/record.json")]
    return {
        record["defense"]: {key: value for key, value in record.items() if key not in TIMES}
        for record in read
        if record
    }


def groups(runs: Path) -> set[str]:
    return {json.loads(path.read_text())["group"] for path in runs.glob("*/record.json")}


@pytest.fixture(scope="module")
def local_records(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    """What the same sweep leaves here."""
    folder = tmp_path_factory.mktemp("local")
    done = sweep(folder, "runs")
    assert done.returncode == 0, done.stderr
    return found(folder / "runs")


@pytest.fixture(scope="module")
def slurm() -> Iterator[Mapping[str, str]]:
    reason = missing()
    if reason is not None:
        pytest.skip(reason)
    with one_node_slurm() as environment:
        yield environment


@pytest.mark.slow
def test_slurm_leaves_the_records_of_a_local_sweep(
    slurm: Mapping[str, str], local_records: dict[str, Any], tmp_path: Path
) -> None:
    done = sweep(tmp_path, "runs", "hydra/launcher=submitit_slurm", environment=slurm)
    assert done.returncode == 0, done.stderr
    assert found(tmp_path / "runs") == local_records
    assert len(groups(tmp_path / "runs")) == 1
    assert len(list((tmp_path / "store" / "suspect").glob("*/about.json"))) == 1
    assert len(list((tmp_path / "runs").glob("*/run.log"))) == 2
    assert len(list((tmp_path / "runs" / ".slurm").rglob("*_log.out"))) == 2


@pytest.mark.slow
def test_a_cancelled_slurm_job_takes_no_other_with_it(slurm: Mapping[str, str], tmp_path: Path) -> None:
    command = [sys.executable, str(ROOT / "run.py"), "-m", "hydra/launcher=submitit_slurm", "defense=none"]
    places = ("runs_dir=runs", "store_dir=store", "trainer.max_epochs=100000,1")
    both = subprocess.PIPE
    started = subprocess.Popen(
        [*command, *QUICK[1:], *places], cwd=tmp_path, env=slurm, stdout=both, stderr=both, text=True
    )
    deadline = time.monotonic() + 400
    while not list(tmp_path.glob("store/suspect/*.partial/last.ckpt")) and time.monotonic() < deadline:
        time.sleep(0.5)
    listed = ["squeue", "--array", "--noheader", "--format=%i"]
    queued = subprocess.run(listed, env=slurm, capture_output=True, text=True, check=True).stdout.split()
    first = next(job for job in queued if job.endswith("_0"))
    subprocess.run(["scancel", first], env=slurm, check=True)
    _, errors = started.communicate(timeout=500)
    assert started.returncode == 1
    assert "1 of 2 runs failed" in errors
    assert "killed or cancelled by SLURM" in errors
    assert "Traceback" not in errors
    read = [records.read(path.parent) for path in (tmp_path / "runs").glob("*/record.json")]
    assert [record["config"]["trainer"]["max_epochs"] for record in read if record] == [1]


@pytest.mark.slow
def test_slurm_says_what_it_does_not_take(slurm: Mapping[str, str], tmp_path: Path) -> None:
    options = ("hydra/launcher=submitit_slurm", "hydra.launcher.partition=nowhere")
    done = sweep(tmp_path, "runs", *options, environment=slurm)
    assert done.returncode == 1
    assert "SLURM does not take the runs" in done.stderr
    assert "hydra.launcher.partition" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.slow
def test_two_processes_train_together_on_slurm(slurm: Mapping[str, str], tmp_path: Path) -> None:
    done = sweep(tmp_path, "runs", "hydra/launcher=submitit_slurm", "trainer=ddp_cpu", environment=slurm)
    assert done.returncode == 0, done.stderr
    assert set(found(tmp_path / "runs")) == {"none", "prune"}
    assert len(list((tmp_path / "runs").glob("*/record.json"))) == 2


@pytest.mark.slow
def test_a_ray_of_our_own_leaves_the_records_of_a_local_sweep(
    local_records: dict[str, Any], tmp_path: Path
) -> None:
    done = sweep(tmp_path, "runs", "hydra/launcher=ray")
    assert done.returncode == 0, done.stderr
    assert found(tmp_path / "runs") == local_records


@pytest.mark.slow
def test_a_ray_cluster_that_is_joined_leaves_the_records_of_a_local_sweep(
    local_records: dict[str, Any], tmp_path: Path
) -> None:
    # Ray 2.60 has tokens on a head node, but a program that joins it asks for none unless it is told
    environment = {**os.environ, "RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)}
    ray, (port,) = str(Path(sys.executable).with_name("ray")), free_ports(1)
    command = [ray, "start", "--head", f"--port={port}", "--block"]
    options = ["--include-dashboard=false", "--num-cpus=2", f"--temp-dir=/tmp/ray.{os.getpid()}"]
    head = subprocess.Popen(
        [*command, *options], cwd="/", env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    try:
        address = f'hydra.launcher.ray.init.address="127.0.0.1:{port}"'
        deadline = time.monotonic() + 120
        while socket.socket().connect_ex(("127.0.0.1", port)) and time.monotonic() < deadline:
            time.sleep(1)
        done = sweep(tmp_path, "runs", "hydra/launcher=ray", address, environment=environment)
    finally:
        head.terminate()
        head.wait(30)
    assert done.returncode == 0, done.stderr
    assert found(tmp_path / "runs") == local_records
