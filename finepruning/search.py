"""A search for a defense's values: its space, what it decides by, where it is kept, what it found.

It decides by what the defender sees: accuracy on the validation images, and the channels that went. Only the
objective ``oracle`` reads attack success; its study, its runs and its table say so.
"""

import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Any, Literal

from filelock import FileLock, Timeout
from rich.table import Table
from rich.text import Text

if TYPE_CHECKING:
    from optuna import Study
    from optuna.distributions import BaseDistribution
    from optuna.trial import FrozenTrial

Record = Mapping[str, Any]

OBJECTIVES: dict[str, dict[str, Literal["maximize", "minimize"]]] = {  # a trial's values: what is better
    "pareto": {"validation accuracy": "maximize", "share pruned": "maximize"},
    "validation_accuracy": {"validation accuracy": "maximize"},
    "channels_pruned": {"share pruned": "maximize"},
    "oracle": {"clean accuracy": "maximize", "attack success": "minimize"},
}
OF_A_CURVE = ("pareto", "channels_pruned")


def distribution(key: str, choice: Mapping[str, Any]) -> "BaseDistribution":
    """Return what may be tried for a key.

    Args:
        key: The configuration's key, for messages.
        choice: ``{low, high}`` with ``log`` or ``step`` if wanted, or ``{choices: [...]}``.

    Raises:
        ValueError: If it is neither.
    """
    from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

    options = dict(choice)
    try:
        if set(options) == {"choices"}:
            return CategoricalDistribution(options["choices"])
        whole = all(isinstance(options[end], int) for end in ("low", "high"))
        if whole and options.get("step") is None:
            options["step"] = 1
        return IntDistribution(**options) if whole else FloatDistribution(**options)
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(
            f"sweep.space of {key} is {dict(choice)} ({error}). Give {{low: 0.01, high: 0.1}}, with "
            "log: true or a step if wanted, or {choices: [a, b]}."
        ) from error


def check(objective: str, tolerance: float, trials: int, seeds: Sequence[int], n_jobs: int) -> None:
    """Check a search's options.

    Raises:
        ValueError: If one is out of range.
    """
    if objective not in OBJECTIVES:
        raise ValueError(f"sweep.objective={objective} is unknown. Set it to {', '.join(OBJECTIVES)}.")
    if not 0 <= tolerance <= 1:
        raise ValueError(f"sweep.tolerance={tolerance} is outside [0, 1]. It is a fraction: 0.02 is 2 %.")
    if trials < 1 or n_jobs < 1:
        raise ValueError(f"sweep.trials={trials}, sweep.n_jobs={n_jobs}: set both to 1 or more.")
    if not seeds or len(set(seeds)) < len(seeds):
        raise ValueError(f"sweep.seeds={list(seeds)}: give at least one, and each once.")


def failure(record: Record | None, objective: str) -> str | None:
    """Return why a run has nothing to be judged by; None if it has."""
    if record is None:
        return "no record: refused or killed"
    if record["status"] != "finished":
        return str(record["error"])
    if record["dead"]:
        return "dead attack: there is nothing to defend against"
    if not record.get("validation"):
        return "no defense: nothing was validated"
    if objective == "oracle" and record["scores"]["defended"]["attack_success_rate"] is None:
        return "attack success was not measured: no trigger is known"
    if objective in OF_A_CURVE and not record["pruning"]:
        return (
            f"no pruning curve: sweep.objective={objective} needs a defense that prunes step by step; "
            "validation_accuracy fits any"
        )
    return None


def values(record: Record, objective: str, tolerance: float) -> list[float]:
    """Return what a finished run is judged by, in the order of :data:`OBJECTIVES`."""
    if objective == "oracle":
        scores = record["scores"]["defended"]
        return [scores["clean_accuracy"], scores["attack_success_rate"]]
    before, after = (record["validation"][name]["clean_accuracy"] for name in ("suspect", "defended"))
    steps = record["pruning"]
    pruned = sum(step["pruned"] for step in steps) / (len(steps) - 1) if steps else 0.0
    excess = before - after - tolerance
    return {
        "pareto": [after, pruned],
        "validation_accuracy": [after],
        "channels_pruned": [-excess if excess > 0 else pruned],  # what costs too much is worse than nothing
    }[objective]


def means(found: Sequence[Sequence[float]]) -> list[float]:
    """Return the mean over seeds of each value."""
    return [fmean(each) for each in zip(*found, strict=True)]


@contextmanager
def open_study(file: Path, objective: str, sampler_seed: int) -> Iterator["Study"]:
    """Open a study, made now if it is not there, for this process alone.

    Trials that an earlier process left unfinished are marked so, and come first again.

    Raises:
        ValueError: If another process has it open.
    """
    import optuna
    from optuna.storages import JournalStorage
    from optuna.storages.journal import JournalFileBackend
    from optuna.trial import TrialState

    optuna.logging.set_verbosity(logging.WARNING)
    file.parent.mkdir(parents=True, exist_ok=True)
    lock = FileLock(file.with_suffix(".open"), timeout=0)  # not .lock, which is the journal's own
    try:
        lock.acquire()
    except Timeout as error:
        raise ValueError(
            f"This search is going on in another process ({lock.lock_file}). Wait for it."
        ) from error
    try:
        cut_torn_line(file)
        study = optuna.create_study(
            storage=JournalStorage(JournalFileBackend(str(file))),
            study_name=file.stem,
            directions=list(OBJECTIVES[objective].values()),
            pruner=optuna.pruners.MedianPruner(n_startup_trials=5),
            load_if_exists=True,
        )
        study.set_user_attr("objective", objective)
        study.set_user_attr("oracle", objective == "oracle")
        interrupted = study.get_trials(deepcopy=False, states=[TrialState.RUNNING])
        earlier = study.user_attrs.get("interrupted", [])
        study.set_user_attr("interrupted", [*earlier, *(trial.number for trial in interrupted)])
        for trial in interrupted:
            study.enqueue_trial(trial.params)
            study.tell(trial.number, state=TrialState.FAIL)
        # another seed each time, or a search that goes on would begin with the same draws again
        study.sampler = optuna.samplers.TPESampler(seed=sampler_seed + len(study.trials), constant_liar=True)
        yield study
    finally:
        lock.release()


def cut_torn_line(file: Path) -> None:
    """Take off the last line of a journal if a power cut tore it."""
    if file.exists():
        whole = file.read_bytes()
        if not whole.endswith(b"\n"):
            with file.open("r+b") as opened:
                opened.truncate(whole.rfind(b"\n") + 1)


def finished(study: "Study") -> list["FrozenTrial"]:
    """Return the trials that count: complete, pruned and failed ones, but no interrupted ones."""
    interrupted = study.user_attrs.get("interrupted", [])
    return [
        trial
        for trial in study.get_trials(deepcopy=False)
        if trial.state.is_finished() and trial.number not in interrupted
    ]


def ranked(study: "Study", tolerance: float) -> list["FrozenTrial"]:
    """Return the best trials, the best first: five of one objective, or all that no other is better than.

    Of two objectives the best is the one that gains most by the second among those whose first is at most
    ``tolerance`` below the highest.
    """
    from optuna.trial import TrialState

    if len(study.directions) == 1:
        complete = study.get_trials(deepcopy=False, states=[TrialState.COMPLETE])
        return sorted(complete, key=lambda trial: -trial.values[0])[:5]  # every one is maximised
    sign = 1 if study.directions[1].name == "MINIMIZE" else -1
    front = sorted(study.best_trials, key=lambda trial: -trial.values[0])
    near = [trial for trial in front if trial.values[0] >= front[0].values[0] - tolerance]
    best = min(near, key=lambda trial: (sign * trial.values[1], -trial.values[0])) if near else None
    return sorted(front, key=lambda trial: trial is not best)


def summary(study: "Study", tolerance: float) -> Table:
    """Return a table of the best trials."""
    objective = study.user_attrs["objective"]
    best = ranked(study, tolerance)
    states = [trial.state.name.lower() for trial in finished(study)]
    counts = ", ".join(f"{states.count(state)} {state}" for state in dict.fromkeys(states))
    badge = "ORACLE: chosen by attack success on the test set; for analysis, never ranked. "
    table = Table(
        title=f"{badge if study.user_attrs['oracle'] else ''}Best trials of {study.study_name} ({counts})",
        caption="the best one first; values in percent",
    )
    table.add_column("trial", justify="right")
    for name in OBJECTIVES[objective]:
        table.add_column(name, justify="right")
    keys = list(dict.fromkeys(key for trial in best for key in trial.params))
    for key in keys:
        table.add_column(key.removeprefix("defense.").replace(".", ".\n"), justify="right")
    for trial in best:
        found = [f"{100 * value:.1f}" for value in trial.values]
        table.add_row(str(trial.number), *found, *(Text(_short(trial.params.get(key))) for key in keys))
    return table


def _short(value: Any) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)
