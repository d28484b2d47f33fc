"""What a sweep has left to do and how long that takes: estimates, told from earlier records."""

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

from finepruning import record as records
from finepruning.launcher.plan import Job, defended_hash, suspect_hash

MOST_RECORDS = 500  # of a folder, the newest: enough for a median
# the other stages of a record make the suspect
AFTER_SUSPECT = ("inspected", "defended", "referee", "stress", "run")


@dataclass(frozen=True)
class Earlier:
    """A finished run, cut down to what an estimate needs. ``hashes`` are of stages still in the store."""

    choices: Mapping[str, str]
    epochs: int
    seconds: Mapping[str, float]
    hashes: frozenset[str]


def earlier_runs(runs_dir: Path, store_dir: Path) -> list[Earlier]:
    """Return the finished runs of a folder, the newest ones; damaged records are left out."""
    files = sorted(runs_dir.glob(f"*/{records.FILE}"), key=records.changed)
    found = [_read(path.parent) for path in files[-MOST_RECORDS:]]
    return [
        Earlier(
            choices={group: record[group] for group in ("dataset", "model", "attack", "defense")},
            epochs=record["config"]["trainer"]["max_epochs"] or 0,
            seconds=record["seconds"],
            hashes=frozenset(_stages_there(record, store_dir)),
        )
        for record in found
        if record is not None and record["status"] == "finished"
    ]


def _read(place: Path) -> dict[str, Any] | None:
    try:
        return records.read(place)
    except (ValueError, OSError):  # a damaged one is named where its own run is asked for
        return None


def _stages_there(record: Mapping[str, Any], store_dir: Path) -> Iterable[str]:
    """Yield the hashes of a record's stages that the store still has."""
    hashes = {"suspect": suspect_hash, "defended": defended_hash}
    for stage, key in record["stages"].items():
        made_by = hashes[stage](record["config"]) if stage in hashes else None
        if made_by is not None and (store_dir / key).is_dir():
            yield made_by


def to_make(jobs: Sequence[Job], made: Collection[str]) -> tuple[list[Job], list[Job]]:
    """Return one job for each suspect that is still to be made, and one for each defended network."""
    suspects = {job.suspect: job for job in reversed(jobs) if job.suspect not in made}
    defended = {job.defended: job for job in reversed(jobs) if job.defended and job.defended not in made}
    return list(suspects.values()), list(defended.values())


def estimate(jobs: Sequence[Job], earlier: Sequence[Earlier], n_jobs: int) -> float | None:
    """Return about how many seconds the jobs take; None if no run of such data and network tells.

    A suspect's training counts by its epochs, everything else by the median of runs with the same data set
    and model, for the defended network also the same defense where there is one.
    """
    made = {made_by for run in earlier for made_by in run.hashes}
    suspects, defended = to_make(jobs, made)
    work = {job.number: 0.0 for job in jobs}
    for job in jobs:
        alike = [run for run in earlier if _same(run, job, "dataset", "model")]
        if not alike:
            return None
        work[job.number] += median(run.seconds["referee"] for run in alike)
        if job in suspects:
            work[job.number] += job.epochs * median(_making(run) / max(1, run.epochs) for run in alike)
        if job in defended:
            tried = [run for run in alike if "defended" in run.seconds]
            same = [run for run in tried if _same(run, job, "defense")] or tried
            work[job.number] += median(run.seconds["defended"] for run in same) if same else 0.0
    return max(sum(work.values()) / n_jobs, *work.values())


def _same(run: Earlier, job: Job, *groups: str) -> bool:
    return all(run.choices[group] == job.choices[group] for group in groups)


def _making(run: Earlier) -> float:
    return sum(seconds for stage, seconds in run.seconds.items() if stage not in AFTER_SUSPECT)


def announcement(total: int, done: int, jobs: Sequence[Job], earlier: Sequence[Earlier], n_jobs: int) -> str:
    """Return what is said before a sweep starts.

    Args:
        total: Its runs.
        done: Those that are finished.
        jobs: Those that are still to do; the rest are refused.
        earlier: Runs that tell how long such take.
        n_jobs: Jobs at a time.
    """
    if not jobs:
        return f"{_count(total, 'run')}, {'all' if done == total else done} of them done"
    suspects, defended = to_make(jobs, {made_by for run in earlier for made_by in run.hashes})
    seconds = estimate(jobs, earlier, n_jobs)
    time = "no earlier run tells how long" if seconds is None else f"about {duration(seconds)}"
    return (
        f"{_count(total, 'run')}, {done} of them done, {len(jobs)} to do, {min(n_jobs, len(jobs))} at a "
        f"time. To make: about {_count(len(suspects), 'suspect')} and "
        f"{_count(len(defended), 'defended network')}; {time}."
    )


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" + "s" * (number != 1)


def duration(seconds: float) -> str:
    """Return a time as people say it: ``12 s``, ``3 min``, ``2 h 5 min``."""
    if seconds < 60:
        return f"{seconds:.0f} s"
    hours, minutes = divmod(round(seconds / 60), 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min"
