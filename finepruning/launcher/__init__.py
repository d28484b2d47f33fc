"""How jobs are started: one process each on this machine, and what is checked before."""

import sys
from types import ModuleType

from hydra.core.plugins import Plugins

from finepruning.launcher.checks import CheckPlace
from finepruning.launcher.local import LocalLauncher

__all__ = ["CheckPlace", "LocalLauncher", "register"]


def register() -> None:
    """Make ``hydra/launcher=local`` known to Hydra, which takes plugins from a package hydra_plugins only."""
    plugins = Plugins.instance()
    package = sys.modules.setdefault("hydra_plugins", ModuleType("hydra_plugins"))
    package.finepruning = sys.modules[__name__]  # type: ignore[attr-defined]
    LocalLauncher.__module__ = "hydra_plugins.finepruning"
    plugins.register(LocalLauncher)
