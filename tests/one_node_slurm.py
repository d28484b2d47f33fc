"""A real SLURM of one node: munged, slurmctld and slurmd from Debian's packages, in a folder of their own.

By hand: ``python -m tests.one_node_slurm`` starts it, says which SLURM_CONF to export, stops it on Ctrl-C.
"""

import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path

PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "squeue", "sinfo")
CONF = """
ClusterName=finepruning
SlurmctldHost={host}(127.0.0.1)
SlurmUser=root
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket
SlurmctldPort={controller}
SlurmdPort={daemon}
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
MpiDefault=none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
AccountingStorageType=accounting_storage/none
JobAcctGatherType=jobacct_gather/none
SchedulerParameters=batch_sched_delay=0,sched_interval=1
ReturnToService=2
KillWait=5
NodeName={host} NodeAddr=127.0.0.1 CPUs={cpus} RealMemory=1000 State=UNKNOWN
PartitionName=all Nodes={host} Default=YES MaxTime=INFINITE State=UP
"""


def missing() -> str | None:
    """Return why SLURM cannot be started here, or None."""
    absent = [program for program in PROGRAMS if shutil.which(program) is None]
    if absent:
        return f"needs {', '.join(absent)}: apt-get install slurm-wlm munge"
    return None if os.geteuid() == 0 else "needs root, to start SLURM's daemons"


@contextmanager
def one_node_slurm() -> Iterator[Mapping[str, str]]:
    """Start the daemons; yield the environment in which sbatch finds them; stop them."""
    with ExitStack() as stack:
        # a short path, since a socket's may have 108 letters; mode 711, or munge's socket cannot be reached
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="slurm.")))
        folder.chmod(0o711)
        for name in ("state", "spool"):
            (folder / name).mkdir()
        key = folder / "munge.key"
        key.write_bytes(os.urandom(1024))
        key.chmod(0o400)
        controller, daemon = free_ports(2)
        conf = folder / "slurm.conf"
        facts = {"host": socket.gethostname().split(".")[0], "cpus": os.cpu_count()}
        conf.write_text(CONF.format(folder=folder, controller=controller, daemon=daemon, **facts))
        environment = {**os.environ, "SLURM_CONF": str(conf)}
        munge = [f"--{name}-file={folder}/munge.{name}" for name in ("key", "pid", "log", "seed")]
        commands = [
            ["munged", "-F", "--force", f"--socket={folder}/munge.socket", *munge],
            ["slurmctld", "-D", "-c", "-f", str(conf)],
            ["slurmd", "-D", "-f", str(conf)],
        ]
        for command in commands:
            log = stack.enter_context((folder / f"{command[0]}.out").open("w"))
            process = subprocess.Popen(command, env=environment, stdout=log, stderr=log)
            stack.callback(stop, process)
            time.sleep(1)
        wait_until_idle(environment, folder)
        yield environment


def free_ports(count: int) -> list[int]:
    """Return ports of this machine that nobody listens on."""
    with ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]


def wait_until_idle(environment: Mapping[str, str], folder: Path, seconds: int = 60) -> None:
    """Wait until the node takes jobs."""
    for _ in range(seconds):
        command = ["sinfo", "--noheader", "--format=%T"]
        state = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
        if state.stdout.strip() == "idle":
            return
        time.sleep(1)
    logs = "\n".join(path.read_text()[-1500:] for path in sorted(folder.glob("*.log")))
    raise RuntimeError(f"SLURM did not start: {state.stdout} {state.stderr}\n{logs}")


def stop(process: subprocess.Popen[bytes]) -> None:
    """End a daemon, by force after ten seconds."""
    process.terminate()
    try:
        process.wait(10)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


if __name__ == "__main__":
    with one_node_slurm() as found:
        print(f"export SLURM_CONF={found['SLURM_CONF']}", flush=True)
        signal.pthread_sigmask(signal.SIG_BLOCK, wanted := [signal.SIGINT, signal.SIGTERM])
        signal.sigwait(wanted)
