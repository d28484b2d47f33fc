"""How jobs are started: on this machine, on SLURM or on Ray, and what is checked before."""

import sys
from types import ModuleType

from hydra.core.config_store import ConfigStore
from hydra.core.plugins import Plugins

from finepruning.launcher.checks import CheckPlace
from finepruning.launcher.clusters import CheckCluster
from finepruning.launcher.local import LocalLauncher
from finepruning.launcher.ray import RayLauncher
from finepruning.launcher.slurm import SlurmLauncher
from finepruning.launcher.sweeper import OptunaSweeper

__all__ = [
    "CheckCluster",
    "CheckPlace",
    "LocalLauncher",
    "OptunaSweeper",
    "RayLauncher",
    "SlurmLauncher",
    "register",
]

PLUGINS = (LocalLauncher, SlurmLauncher, RayLauncher, OptunaSweeper)


def register() -> None:
    """Make our plugins known to Hydra, which takes them from a package hydra_plugins only."""
    plugins = Plugins.instance()
    package = sys.modules.setdefault("hydra_plugins", ModuleType("hydra_plugins"))
    package.finepruning = sys.modules[__name__]  # type: ignore[attr-defined]
    for plugin in PLUGINS:
        plugin.__module__ = "hydra_plugins.finepruning"
        plugins.register(plugin)
    # where Hydra's own plugins are installed it would hold our files to their schema
    shipped = ConfigStore.instance().repo["hydra"]["launcher"]
    for name in ("submitit_slurm.yaml", "ray.yaml"):
        shipped.pop(name, None)
