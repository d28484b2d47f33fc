"""A search as Hydra's sweeper: Optuna says what to try, the launcher runs it, records say how it went."""

import hashlib
import importlib.util
import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import (
    ChoiceSweep,
    IntervalSweep,
    Override,
    QuotedString,
    RangeSweep,
    Transformer,
)
from hydra.core.plugins import Plugins
from hydra.errors import CompactHydraException
from hydra.plugins.launcher import Launcher
from hydra.plugins.sweeper import Sweeper
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, OmegaConf

from finepruning import record as records
from finepruning import search
from finepruning.launcher.jobs import compose
from finepruning.launcher.plan import available_cores
from finepruning.pipeline.devices import threads

if TYPE_CHECKING:
    from optuna import Study, Trial

log = logging.getLogger(__name__)

LEARNS_AFTER = 3  # batches, at least, of which a search consists if nobody says how large they are
GIVE_UP_AFTER = 3  # failed trials, if none has succeeded


@dataclass
class Attempt:
    """A trial, the overrides that it tries, and what its runs gave so far."""

    trial: "Trial"
    overrides: list[str]
    found: list[list[float]]
    error: str | None = None
    pruned: bool = False

    @property
    def alive(self) -> bool:
        """Whether there is something left to run."""
        return self.error is None and not self.pruned


class OptunaSweeper(Sweeper):
    """Search for the values of a defense.

    Args:
        params: Fixed values, choices and intervals, as on the command line, which goes first.
    """

    config: DictConfig
    hydra_context: HydraContext
    launcher: Launcher

    def __init__(self, params: Mapping[str, Any]) -> None:
        self.params = params

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        """Keep what Hydra gives."""
        if importlib.util.find_spec("optuna") is None:
            raise CompactHydraException(
                'sweep=optuna needs optuna, which is not installed. Run: pip install -e ".[search]"'
            )
        self.config = config
        self.hydra_context = hydra_context
        self.launcher = Plugins.instance().instantiate_launcher(
            hydra_context=hydra_context, task_function=task_function, config=config
        )

    def sweep(self, arguments: list[str]) -> None:
        """Run trials until there are as many as wanted; print the best ones and how to repeat the first."""
        try:
            self._search(arguments)
        except ValueError as error:
            raise CompactHydraException(str(error)) from error

    def _search(self, arguments: list[str]) -> None:
        options: Any = OmegaConf.to_container(self.config.sweep, resolve=True)
        at_once = available_cores() // threads(self.config.trainer)
        # of a search that asks for all its trials at once no trial learns from another
        share = max(1, min(at_once, options["trials"] // LEARNS_AFTER))
        wanted = (options["n_jobs"], self.config.hydra.launcher.get("n_jobs"), share)
        n_jobs = next(number for number in wanted if number is not None)
        objective, seeds, tolerance = options["objective"], options["seeds"], options["tolerance"]
        search.check(objective, tolerance, options["trials"], seeds, n_jobs)
        fixed, choices = self._read(arguments, options["space"])
        fixed += ["+oracle=true"] if objective == "oracle" else []
        space = {key: search.distribution(key, choice) for key, choice in choices.items()}
        self.file = self._file(fixed, choices, options)
        with search.open_study(self.file, objective, options["sampler_seed"]) as study:
            done = len(search.finished(study))
            log.info("Search %s: %d of %d trials done", self.file.resolve(), done, options["trials"])
            while done < options["trials"]:
                trials = [study.ask(space) for _ in range(min(n_jobs, options["trials"] - done))]
                attempts = [Attempt(trial, fixed + _overrides(trial.params), []) for trial in trials]
                for step, seed in enumerate(seeds):
                    self._run([each for each in attempts if each.alive], seed, objective, tolerance)
                    if step + 1 < len(seeds) and len(study.directions) == 1:
                        _prune(attempts, step)
                for attempt in attempts:
                    _tell(study, attempt)
                done = len(search.finished(study))
                _give_up_if_all_fail(study, attempts)
            _show(study, tolerance)

    def _run(self, attempts: list[Attempt], seed: int, objective: str, tolerance: float) -> None:
        """Run each attempt with a seed, and note what its record says."""
        if not attempts:
            return
        batch = [[*attempt.overrides, f"seed={seed}"] for attempt in attempts]
        places = [self._place(overrides) for overrides in batch]  # composed here, so that errors show early
        reason, before = None, [_began(place) for place in places]
        try:
            self.launcher.launch(batch, initial_job_idx=attempts[0].trial.number)
        except CompactHydraException as error:  # some failed; the others have their records
            reason = str(error)
        found = [records.read(place) for place in places]
        if reason is not None and not any(found) and before == [_began(place) for place in places]:
            raise CompactHydraException(reason)  # nothing was run: these trials come first again
        for attempt, record in zip(attempts, found, strict=True):
            attempt.error = search.failure(record, objective)
            if record is None:
                attempt.error = reason or attempt.error
            elif attempt.error is None:
                attempt.found.append(search.values(record, objective, tolerance))
                commands = attempt.trial.user_attrs.get("commands", [])
                attempt.trial.set_user_attr("commands", [*commands, record["command"]])

    def _read(self, arguments: list[str], space: dict[str, Any]) -> tuple[list[str], dict[str, Any]]:
        """Return what is fixed for all trials, and what is searched; the command line beats the space."""
        parser = OverridesParser.create(config_loader=self.hydra_context.config_loader)
        given = parser.parse_overrides([f"{key}={value}" for key, value in self.params.items()] + arguments)
        own = {each.get_key_element(): each for each in given if each.key_or_group.split(".")[0] != "sweep"}
        missing = object()  # unlike null, which a trial may well replace
        absent = [key for key in space if OmegaConf.select(self.config, key, default=missing) is missing]
        absent = [key for key in absent if key not in own]
        if absent:
            log.info("Not searched, since this defense does not have it: %s", ", ".join(absent))
        searched = {key: choice for key, choice in space.items() if key not in absent and key not in own}
        fixed = []
        for key, override in own.items():
            if not override.is_sweep_override():
                if key == "seed":
                    continue  # sweep.seeds has it
                fixed.append(f"{key}={override.get_value_element_as_str()}")
            elif key == "seed":
                raise ValueError("A search does not choose seeds. Set sweep.seeds='[1,2,3]' for their mean.")
            else:
                searched[key] = _choice(key, override)
        if not searched:
            raise ValueError("Nothing is left to search. Leave a key of sweep.space open, or add one to it.")
        return fixed, searched

    def _file(self, fixed: list[str], choices: dict[str, Any], options: dict[str, Any]) -> Path:
        """Return where the study lies: the same for the same search, however many trials and jobs."""
        config = self.hydra_context.config_loader.load_sweep_config(self.config, fixed)
        HydraConfig.instance().set_config(config)
        what = [options[key] for key in ("objective", "tolerance", "seeds", "sampler_seed")]
        digest = hashlib.sha256(json.dumps([config.name, choices, *what], sort_keys=True).encode())
        chosen = config.hydra.runtime.choices
        parts = [chosen[group] for group in ("dataset", "attack", "defense")]
        name = "-".join([*parts, options["objective"], digest.hexdigest()[:8]])
        return Path(str(self.config.runs_dir)) / "searches" / f"{name}.journal"

    def _place(self, overrides: Sequence[str]) -> Path:
        return compose(self.hydra_context, self.config, overrides, 0)[1]


def _began(place: Path) -> float | None:
    """Return when a run's process last wrote to its log; None if it never began."""
    log_file = place / "run.log"
    return log_file.stat().st_mtime if log_file.exists() else None


def _choice(key: str, override: Override) -> dict[str, Any]:
    """Return what the command line leaves open of a key, as ``sweep.space`` has it."""
    sweep = override.value()
    if isinstance(sweep, IntervalSweep):
        return {"low": sweep.start, "high": sweep.end, "log": "log" in sweep.tags}
    if isinstance(sweep, ChoiceSweep | RangeSweep):
        found = list(override.sweep_iterator(Transformer.identity))
        return {"choices": [each.text if isinstance(each, QuotedString) else each for each in found]}
    raise ValueError(f"{key} cannot be searched so. Give a,b,c or interval(low,high) or range(1,5).")


def _overrides(params: Mapping[str, Any]) -> list[str]:
    """Return a trial's values as Hydra reads them."""
    words = {None: "null", True: "true", False: "false"}
    return [
        f"{key}={words[value] if value is None or isinstance(value, bool) else value}"
        for key, value in params.items()
    ]


def _prune(attempts: list[Attempt], step: int) -> None:
    """Mark those that are worse than the median of earlier trials after as many seeds."""
    for attempt in attempts:
        if attempt.alive:
            attempt.trial.report(search.means(attempt.found)[0], step)
            attempt.pruned = attempt.trial.should_prune()


def _tell(study: "Study", attempt: Attempt) -> None:
    from optuna.trial import TrialState

    if attempt.error is not None:
        attempt.trial.set_user_attr("reason", attempt.error)
        study.tell(attempt.trial, state=TrialState.FAIL)
    elif attempt.pruned:
        study.tell(attempt.trial, state=TrialState.PRUNED)
    else:
        study.tell(attempt.trial, search.means(attempt.found))


def _show(study: "Study", tolerance: float) -> None:
    from rich.console import Console

    Console(width=160).print(search.summary(study, tolerance))
    best = search.ranked(study, tolerance)
    for command in best[0].user_attrs["commands"] if best else []:
        log.info("Repeat the best: %s", command)


def _give_up_if_all_fail(study: "Study", attempts: list[Attempt]) -> None:
    """Stop a search that cannot work.

    Raises:
        CompactHydraException: If its first trials all failed.
    """
    finished = search.finished(study)
    if len(finished) >= GIVE_UP_AFTER and all(trial.state.name == "FAIL" for trial in finished):
        raise CompactHydraException(
            f"The first {len(finished)} trials failed, the last one so: {attempts[-1].error}"
        )
