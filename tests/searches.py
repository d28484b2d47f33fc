"""Searches whose launcher pretends: records by a formula, nothing trained."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import optuna
from hydra._internal.callbacks import Callbacks
from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra._internal.utils import create_config_search_path
from hydra.core.hydra_config import HydraConfig
from hydra.core.utils import setup_globals
from hydra.errors import CompactHydraException
from hydra.types import HydraContext, RunMode
from omegaconf import DictConfig, OmegaConf

from finepruning import launcher, search
from finepruning import record as records
from finepruning.launcher.sweeper import OptunaSweeper
from tests.conftest import ROOT

Record = dict[str, Any]


def record_of(config: DictConfig, **changes: Any) -> Record:
    """A record as a run leaves it, whose values follow from the configuration by a formula."""
    drop = config.defense.max_drop
    steps = [{"pruned": 0 < step <= round(100 * drop)} for step in range(101)]
    scores = {"clean_accuracy": 0.9, "attack_success_rate": 0.5}
    choices = config.hydra.runtime.choices
    return {
        **{group: choices[group] for group in ("dataset", "model", "attack", "defense")},
        "config": {},
        "status": "finished",
        "dead": False,
        "oracle": config.get("oracle", False),
        "command": "python run.py " + " ".join(config.hydra.overrides.task),
        "seed": config.seed,
        "pruning": steps,
        "validation": {"suspect": {"clean_accuracy": 0.95}, "defended": {"clean_accuracy": 0.95 - drop**2}},
        "scores": {"suspect": scores, "defended": scores},
        **changes,
    }


class Pretended:
    """A launcher that writes records without running anything."""

    def __init__(self, sweeper: OptunaSweeper, make: Callable[[DictConfig], Record | None]) -> None:
        self.sweeper = sweeper
        self.make = make
        self.launched: list[DictConfig] = []

    def launch(self, batch: Sequence[Sequence[str]], initial_job_idx: int) -> None:
        failed = False
        for overrides in batch:
            config = self.sweeper.hydra_context.config_loader.load_sweep_config(
                self.sweeper.config, list(overrides)
            )
            HydraConfig.instance().set_config(config)
            self.launched.append(config)
            made = self.make(config)
            place = Path(config.hydra.sweep.dir) / config.hydra.sweep.subdir
            place.mkdir(parents=True, exist_ok=True)
            if made is not None:
                records.write(place, made)
            failed |= made is None or made["status"] == "failed"
        if failed:
            raise CompactHydraException("1 of 2 runs failed: a=b: killed by signal 9")


class OnceLoader(ConfigLoaderImpl):
    """Composes a job once, where the sweeper and the launcher both would: half the time of these tests."""

    def __init__(self) -> None:
        super().__init__(create_config_search_path(str(ROOT / "conf")))
        self.composed: dict[tuple[str, ...], DictConfig] = {}

    def load_sweep_config(self, master_config: DictConfig, sweep_overrides: list[str]) -> DictConfig:
        key = tuple(sweep_overrides)
        if key not in self.composed:
            self.composed[key] = super().load_sweep_config(master_config, sweep_overrides)
        return self.composed[key]


class Search:
    """``sweep=optuna`` with a launcher that pretends."""

    def __init__(self, runs_dir: Path) -> None:
        self.runs_dir = runs_dir
        self.file = Path()

    def __call__(
        self, *overrides: str, make: Callable[[DictConfig], Record | None] = record_of
    ) -> list[DictConfig]:
        """Search; return the configurations that were run, in order."""
        launcher.register()
        setup_globals()
        loader = OnceLoader()
        own = ["sweep=optuna", "sweep.n_jobs=2", f"runs_dir={self.runs_dir}"]
        config = loader.load_configuration("config", [*own, *overrides], RunMode.MULTIRUN)
        sweeper = OptunaSweeper(config.hydra.sweeper.params)
        context = HydraContext(config_loader=loader, callbacks=Callbacks())
        sweeper.setup(hydra_context=context, task_function=lambda _: None, config=config)
        pretended = Pretended(sweeper, make)
        sweeper.launcher = pretended  # type: ignore[assignment]
        try:
            sweeper.sweep(OmegaConf.to_container(config.hydra.overrides.task))  # type: ignore[arg-type]
        finally:
            self.file = getattr(sweeper, "file", self.file)
            self.launched = pretended.launched
        return pretended.launched

    def trials(self) -> list[optuna.trial.FrozenTrial]:
        """Return the trials of the study."""
        with search.open_study(self.file, "pareto", 1) as study:
            return study.get_trials()
