"""What the tests share: real data, and runs through Hydra without a new process."""

import os

if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch is imported: workers share the cores

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hydra import compose, initialize_config_dir
from hydra._internal.callbacks import Callbacks
from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.utils import run_job, setup_globals
from hydra.types import HydraContext, RunMode
from hypothesis import settings
from omegaconf import DictConfig, open_dict

from finepruning import launcher, pipeline
from finepruning import record as records
from finepruning.data import ImageSet, pack
from finepruning.data.digits import Digits

settings.register_profile("any machine", deadline=None)  # a stall is no fault
settings.load_profile("any machine")
ROOT = Path(__file__).parent.parent
OF_A_MACHINE = ("SLURM_", "TORCHELASTIC_", "FORCE_COLOR", "CUDA_VISIBLE_DEVICES")


@pytest.fixture(scope="session", autouse=True)
def _plain_environment() -> None:
    """Take away what would make a test one task of a job, colour what it prints, or hide GPUs."""
    for name in [name for name in os.environ if name.startswith(OF_A_MACHINE)]:
        del os.environ[name]


@pytest.fixture(scope="session")
def digits(tmp_path_factory: pytest.TempPathFactory) -> ImageSet:
    """The training images that ship inside scikit-learn, 16 pixels wide."""
    packed = pack(Digits(size=16), tmp_path_factory.mktemp("data"))
    return ImageSet.whole(packed.train, packed.train_labels, packed.signal)


@pytest.fixture(scope="session")
def data_root() -> Path:
    """The folder of real data sets, or a skip where none is given."""
    variable = os.environ.get("FINEPRUNING_DATA")
    if not variable:
        pytest.skip("needs real data: set FINEPRUNING_DATA to a folder that holds it")
    if not Path(variable).is_dir():
        pytest.fail(f"FINEPRUNING_DATA={variable} is not a folder")
    return Path(variable)


@pytest.fixture(scope="session")
def shared_store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store for all tests, so that they train equal stages once."""
    return tmp_path_factory.mktemp("store")


def composed(*overrides: str) -> DictConfig:
    """Return a configuration with Hydra's own part, as run.py gets it."""
    launcher.register()
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        config = compose("config", overrides=list(overrides), return_hydra_config=True)
    with open_dict(config):
        config.hydra.mode = RunMode.MULTIRUN  # no table on the terminal
    return config


def run_here(*overrides: str) -> dict[str, Any]:
    """Run a configuration in this process, as the launcher's jobs do, and return its record."""
    setup_globals()
    config = composed(*overrides)
    context = HydraContext(config_loader=None, callbacks=Callbacks())  # type: ignore[arg-type]
    result = run_job(pipeline.run, config, "hydra.run.dir", None, context, configure_logging=False)
    _ = result.return_value
    record = records.read(Path(result.hydra_cfg.hydra.runtime.output_dir))
    assert record is not None
    return record


def sweep_here(*overrides: str, n_jobs: int | None = None) -> None:
    """Run a sweep whose parent is this process, so that one fork server does for many sweeps."""
    launcher.register()
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        loader = GlobalHydra.instance().config_loader()
        parsed = OverridesParser.create(config_loader=loader).parse_overrides(list(overrides))
        local = launcher.LocalLauncher(n_jobs)
        local.setup(
            hydra_context=HydraContext(config_loader=loader, callbacks=Callbacks()),
            task_function=pipeline.run,
            config=loader.load_configuration("config", list(overrides), RunMode.MULTIRUN),
        )
        local.launch(BasicSweeper.split_arguments(parsed, None)[0], 0)


QUICK = ("trainer.max_epochs=2", "model.width=4", "dataset.size=16", "logger=none")


@pytest.fixture
def quick_run(tmp_path: Path, shared_store: Path) -> Callable[..., dict[str, Any]]:
    """A run of the default job on a small network, for about a second, with any overrides."""

    def run(*overrides: str) -> dict[str, Any]:
        return run_here(*QUICK, f"runs_dir={tmp_path / 'runs'}", f"store_dir={shared_store}", *overrides)

    return run
