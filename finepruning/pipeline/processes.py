"""Several processes for one run, such as one a GPU: who starts them, and how they keep in step.

The first process leads: it alone claims the run, locks the store, scores and writes the record. The others
build the same parts and take part in whatever stage is made. They are started here, unless torchrun or SLURM
did it; Lightning's own way, the command line once more, does not work inside a sweep.
"""

import logging
import multiprocessing
import os
import signal
import sys
import threading
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from multiprocessing import connection, reduction
from multiprocessing.connection import Connection
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch.distributed as dist
from omegaconf import DictConfig, OmegaConf
from pytorch_lightning import Trainer
from pytorch_lightning.strategies import ParallelStrategy
from torch.distributed import TCPStore  # type: ignore[attr-defined]

from finepruning.pipeline.devices import several
from finepruning.pipeline.training import build_trainer, check_world_size
from finepruning.store import Stage, Store

PATIENCE = timedelta(days=7)  # the others wait this long while the first one waits for a stage or scores
LAST_WORDS = 2.0  # seconds in which a process that failed tells its reason
GRACE = 20.0  # seconds in which the first process ends by itself after another one did


@dataclass(frozen=True)
class Team:
    """The processes of a run, as one of them sees them.

    Args:
        rank: Which one this is; 0 leads.
        size: How many there are.
        channel: Carries their messages, on the CPU and with a patience that training's own has not.
    """

    rank: int = 0
    size: int = 1
    channel: Any = None

    def share(self, message: Any = None) -> Any:
        """Return the first process's message in all of them; each must call this."""
        if self.size == 1:
            return message
        box = [message]
        dist.broadcast_object_list(box, src=0, group=self.channel)
        return box[0]


class TeamStore(Store):
    """A store where the first process of a team locks, looks and keeps; all of them make what is missing."""

    def __init__(self, root: Path, team: Team) -> None:
        super().__init__(root)
        self.team = team

    def stage(
        self, kind: str, made_by: Mapping[str, Any], make: Callable[[Path], Mapping[str, Any]]
    ) -> Stage:
        """Return the stage that ``made_by`` describes; what the others make is thrown away.

        Raises:
            ValueError: If a process would make something else, since it has other data, say.
        """
        if self.team.size == 1:
            return super().stage(kind, made_by, make)
        made_by = {**made_by, "processes": self.team.size}

        def make_together(directory: Path) -> Mapping[str, Any]:
            self.team.share(made_by)
            return make(directory)

        if self.team.rank == 0:
            stage: Stage = self.team.share(super().stage(kind, made_by, make_together))
            return stage
        while not isinstance(told := self.team.share(), Stage):
            if told != made_by:
                raise ValueError(
                    f"Process {self.team.rank} has another {kind} stage before it than the first one. All "
                    "processes need the same configuration, code and data (data_dir, store_dir)."
                )
            with TemporaryDirectory() as scratch:
                make(Path(scratch))
        return told


@contextmanager
def together(config: DictConfig, work: Callable[[DictConfig], None] | None = None) -> Iterator[Team]:
    """Join the processes of a run, and leave them when all are done.

    Args:
        config: The run's configuration.
        work: What the other processes do if they have to be started here; a function of a module.

    Raises:
        RuntimeError: If another process failed; the message says why.
    """
    trainer = _trainer(config) if several(config.trainer) else None
    if trainer is None or trainer.world_size == 1:
        yield Team()
    elif work is None or _are_there(trainer):
        with _joined(trainer) as team:
            yield team
    else:
        helpers = _Helpers(config, trainer.world_size, work)
        try:
            with helpers.started(), _joined(_trainer(config)) as team:
                yield team
        except RuntimeError as error:
            reason = helpers.reason() if _is_lost_connection(error) else None
            if reason is None:
                raise
            raise RuntimeError(reason) from error


def _trainer(config: DictConfig) -> Trainer:
    """Build a trainer that is asked how Lightning sees the processes, and nothing else."""
    return build_trainer(config, [], [])


def _are_there(trainer: Trainer) -> bool:
    """Whether torchrun, SLURM or the like started all processes."""
    strategy = trainer.strategy
    return isinstance(strategy, ParallelStrategy) and bool(
        strategy.cluster_environment and strategy.cluster_environment.creates_processes_externally
    )


@contextmanager
def _joined(trainer: Trainer) -> Iterator[Team]:
    """Connect the processes as Lightning does it, check that all are there, and wait for all at the end."""
    logging.getLogger("lightning_fabric").setLevel(logging.WARNING)  # not that processes are connected
    trainer.strategy.setup_environment()
    try:
        check_world_size(trainer)
        channel = dist.new_group(backend="gloo", timeout=PATIENCE)
        team = Team(dist.get_rank(), dist.get_world_size(), channel)
        yield team
        team.share()
    finally:
        dist.destroy_process_group()


def _is_lost_connection(error: RuntimeError) -> bool:
    return type(error) is RuntimeError or isinstance(error, dist.DistError)  # gloo raises the plain one


class _Helpers:
    """The other processes of a run, from a fork server that has torch loaded.

    Args:
        config: The run's configuration.
        size: Processes of the run, this one included.
        work: What the others do.
    """

    def __init__(self, config: DictConfig, size: int, work: Callable[[DictConfig], None]) -> None:
        # resolved, since the others do not know Hydra's part of the configuration
        self.config = OmegaConf.create(OmegaConf.to_container(config, resolve=True))
        self.size = size
        self.work = work
        self.processes: list[ForkServerProcess] = []
        self.reasons: list[Connection] = []
        self.done = threading.Event()

    @contextmanager
    def started(self) -> Iterator[None]:
        """Start them, and end them with this process, however that ends."""
        # the processes meet at a server that this one holds, on a port that the system chooses
        server = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
        before = dict(os.environ)
        os.environ |= {
            "LOCAL_RANK": "0",  # tells Lightning that processes are there already
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": str(server.port),
            "TORCHELASTIC_USE_AGENT_STORE": "True",  # rank 0, too, is a client of the server
        }
        failed = True
        try:
            context = multiprocessing.get_context("forkserver")
            context.set_forkserver_preload(["finepruning.pipeline.stages"])
            for rank in range(1, self.size):
                reason, theirs = context.Pipe(duplex=False)
                environment = {**os.environ, "LOCAL_RANK": str(rank)}
                arguments = (self.work, self.config, environment, _Terminal(), theirs)
                process = context.Process(target=_help, args=arguments, daemon=True)
                process.start()
                theirs.close()
                self.processes.append(process)
                self.reasons.append(reason)
            threading.Thread(target=self._watch, daemon=True).start()
            yield
            failed = False
        finally:
            self.done.set()
            if failed:  # whoever broke the connection is about to say why
                connection.wait([*self.reasons, *(each.sentinel for each in self.processes)], LAST_WORDS)
            for process in self.processes:
                if failed:
                    process.terminate()
                process.join(GRACE)
                process.kill()
            os.environ.clear()
            os.environ |= before

    def reason(self) -> str | None:
        """Return why one of them failed, if one did."""
        for rank, pipe in enumerate(self.reasons, start=1):
            try:
                if pipe.poll():
                    return f"Process {rank} of {self.size} failed: {pipe.recv()}"
            except EOFError:
                return f"Process {rank} of {self.size} was killed."
        return None

    def _watch(self) -> None:
        """End this process if another one ended and this one hangs, as it may in a GPU's collectives."""
        connection.wait([process.sentinel for process in self.processes])
        if not self.done.wait(GRACE):
            print(self.reason() or "A process of this run ended too early.", file=sys.stderr, flush=True)
            os._exit(1)


class _Terminal:
    """Where this process writes; sent to another one, that one writes there, too."""

    def __reduce__(self) -> tuple[Any, ...]:
        return _write_to, tuple(reduction.DupFd(number) for number in (1, 2))


def _write_to(*outputs: Any) -> None:
    for number, output in enumerate(outputs, start=1):
        os.dup2(output.detach(), number)


def _help(
    work: Callable[[DictConfig], None],
    config: DictConfig,
    environment: Mapping[str, str],
    _: None,
    reason: Connection,
) -> None:
    """Be one of the other processes."""
    os.environ.clear()
    os.environ |= environment
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the first process hears it, and ends this one
    threading.Thread(target=_end_with_parent, daemon=True).start()
    try:
        work(config)
    except BaseException as error:
        traceback.print_exc()
        reason.send(f"{type(error).__name__}: {error}")
        sys.exit(1)


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)
