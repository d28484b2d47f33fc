"""Every configuration composes, and every class that it names exists and is allowed."""

import functools
import inspect
import itertools
import re
import shlex
from pathlib import Path
from typing import Any

import pytest
from hydra import initialize_config_dir
from hydra._internal.callbacks import Callbacks
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.types import HydraContext, RunMode
from hydra.utils import get_object
from omegaconf import OmegaConf

from finepruning import launcher
from finepruning.launcher.jobs import compose
from finepruning.pipeline.resolvers import choices_hash, cpu_precision
from finepruning.pipeline.targets import build, check_target
from tests.conftest import ROOT, composed

GROUPS = (
    "dataset",
    "model",
    "attack",
    "defense",
    "detector",
    "analysis",
    "stress",
    "case",
    "trainer",
    "logger",
    "sweep",
)
BESIDE = {  # keys that are taken out before a class is built, or that Hydra or W&B reads
    "attack": {"source"},
    "detector": {"_partial_"},
    "logger": {"entity", "mode"},
    "trainer": {"channels_last", "compile", "threads"},
    "tuning": {"augment", "batch_size", "max_epochs", "min_steps"},
}
PLUGIN_GROUPS = ("launcher", "sweeper")  # of Hydra
OPTIONS = [
    (path.parent.name, path.stem) for group in GROUPS for path in (ROOT / "conf" / group).glob("*.yaml")
]
PLUGINS = [
    (group, path.stem) for group in PLUGIN_GROUPS for path in (ROOT / "conf" / "hydra" / group).glob("*.yaml")
]
GRIDS = sorted(path.stem for path in (ROOT / "conf" / "sweep").glob("*.yaml") if path.stem != "optuna")
EXPERIMENTS = sorted(path.stem for path in (ROOT / "conf" / "experiment").glob("*.yaml"))
PAGES = sorted((ROOT / "experiments").glob("*.md"))


def targets(node: Any) -> list[str]:
    children = node.values() if isinstance(node, dict) else node if isinstance(node, list) else []
    own = [node["_target_"]] if isinstance(node, dict) and "_target_" in node else []
    return own + [target for child in children for target in targets(child)]


@functools.cache
def plain(group: str, option: str) -> Any:
    """Return a configuration with one option, without Hydra's part."""
    config = composed(f"{group}={option}")
    return OmegaConf.to_container(OmegaConf.masked_copy(config, [key for key in config if key != "hydra"]))


@pytest.mark.parametrize(("group", "option"), sorted(OPTIONS))
def test_every_option_composes_and_names_what_exists(group: str, option: str) -> None:
    found = targets(plain(group, option))
    assert found
    for target in found:
        check_target(target)
    assert all(get_object(target) is not None for target in found)


def unknown_keys(node: Any, path: str = "") -> list[str]:
    """Return the keys of a configuration that the class which they are for does not take."""
    children = node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list) else ()
    found = [key for name, child in children for key in unknown_keys(child, f"{path}.{name}".strip("."))]
    if isinstance(node, dict) and "_target_" in node:
        kind = get_object(node["_target_"])
        bases = inspect.getmro(kind) if inspect.isclass(kind) else (kind,)
        taken = {name for base in bases for name in inspect.signature(base).parameters}
        beside = BESIDE.get(path.rsplit(".", 1)[-1], set())
        found += [f"{path}.{key}" for key in sorted(set(node) - taken - beside - {"_target_"})]
    return found


@pytest.mark.parametrize(("group", "option"), sorted(OPTIONS))
def test_every_key_of_an_option_is_one_that_its_class_takes(group: str, option: str) -> None:
    assert unknown_keys(plain(group, option)) == []


@pytest.mark.parametrize(("group", "option"), sorted(PLUGINS))
def test_every_plugin_of_hydra_is_registered_and_takes_its_options(group: str, option: str) -> None:
    config = composed(f"hydra/{group}={option}").hydra[group]
    options: Any = OmegaConf.to_container(config, resolve=True)
    module, _, name = options.pop("_target_").rpartition(".")
    assert module == "hydra_plugins.finepruning"
    plugin = next(plugin for plugin in launcher.PLUGINS if plugin.__name__ == name)
    inspect.signature(plugin).bind(**options)


@pytest.mark.parametrize("grid", GRIDS)
def test_every_value_of_a_grid_composes(grid: str) -> None:
    params = composed(f"sweep={grid}").hydra.sweeper.params
    runs = [[f"{key}={value}" for value in str(values).split(",")] for key, values in params.items()]
    for overrides in itertools.product(*runs):
        composed(f"sweep={grid}", *overrides)
    assert max(len(values) for values in runs) > 2


@pytest.mark.parametrize(
    ("group", "option"), sorted(OPTIONS + [(f"hydra/{group}", option) for group, option in PLUGINS])
)
def test_every_option_says_what_it_is(group: str, option: str) -> None:
    lines = (ROOT / "conf" / group / f"{option}.yaml").read_text().splitlines()
    first = lines[1] if lines[0].startswith("# @package") else lines[0]
    assert first.startswith("# ")
    assert first.endswith((".", ":", ",")) or len(lines) > 2


@pytest.mark.parametrize("experiment", EXPERIMENTS)
def test_every_experiment_composes_and_sweeps_over_what_there_is(experiment: str) -> None:
    params = composed(f"experiment={experiment}").hydra.sweeper.params
    groups = {key: values for key, values in params.items() if (ROOT / "conf" / key).is_dir()}
    named = [(group, value) for group, values in groups.items() for value in str(values).split(",")]
    files = [ROOT / "conf" / group / f"{value}.yaml" for group, value in named if value != "null"]
    assert params
    assert [file for file in files if not file.exists()] == []


def test_every_experiment_has_its_page() -> None:
    missing = [stem for stem in EXPERIMENTS if not (ROOT / "experiments" / f"{stem}.md").exists()]
    assert not missing


def commands(page: Path) -> list[list[str]]:
    """Return the overrides of each run or sweep that a page tells to start."""
    lines = "\n".join(re.findall(r"^```sh\n(.*?)^```$", page.read_text(), re.DOTALL | re.MULTILINE))
    words = [shlex.split(line, comments=True) for line in lines.splitlines()]
    return [[word for word in line[2:] if word != "-m"] for line in words if line[:2] == ["python", "run.py"]]


def values(override: str) -> list[str]:
    """Return an override once for each value that it sweeps over."""
    (parsed,) = OverridesParser.create().parse_overrides([override])
    if not parsed.is_sweep_override():
        return [override]
    return [f"{parsed.key_or_group}={value}" for value in parsed.sweep_string_iterator()]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_every_value_of_a_pages_commands_composes(page: Path) -> None:
    met: set[str] = set()
    for given in commands(page):
        fixed = [word for word in given if word.startswith("experiment=")]
        params = composed(*fixed).hydra.sweeper.params or {}
        grid = {key: f"{key}={value}" for key, value in params.items()}
        grid |= {word.split("=", 1)[0]: word for word in given if word not in fixed}
        runs = [values(override) for override in grid.values()]
        for column in itertools.zip_longest(*runs):
            words = [each or run[-1] for each, run in zip(column, runs, strict=True)]
            if not met.issuperset(words):
                composed(*fixed, *words)
            met.update(words)
    assert met


@pytest.mark.parametrize(
    ("target", "sentence"),
    [
        ("os.system", r"must begin with finepruning"),
        ("finepruning.record.os.system", r"is no class of"),
        ("finepruning.data.packed.np.load", r"is no class of"),
        ("finepruning.record.Path", r"is no class of"),
        ("finepruning.record.Path.unlink", r"is no class of"),
        ("finepruning.record.os.environ.clear", r"is no class of"),
        ("finepruning.data.packed.np", r"is no class of"),
        ("finepruning.networks.DigitsCNN.load_state_dict", r"is no class of"),
        ("pytorch_lightning.LightningModule.load_from_checkpoint", r"is no class of"),
        ("pytorch_lightning.core.module.torch.load", r"is no class of"),
        ("finepruning.suspect.python_file._call", r"begins with an underscore"),
        ("finepruning.record.__builtins__.exec", r"begins with an underscore"),
    ],
)
def test_a_target_that_is_not_allowed_is_refused(target: str, sentence: str) -> None:
    config = OmegaConf.create({"a": [{"_target_": target, "command": "true"}]})
    with pytest.raises(ValueError, match=rf"'{re.escape(target)}' is not allowed.*{sentence}"):
        build(config)


@pytest.mark.parametrize(
    "target",
    [
        "pytorch_lightning.loggers.CSVLogger",
        "pytorch_lightning.plugins.environments.LightningEnvironment",  # of lightning_fabric
        "finepruning.suspect.known_attack",  # a function
        "finepruning.nowhere.Something",  # whoever builds it says that it is not there
    ],
)
def test_what_is_ours_and_lightnings_may_be_a_target(target: str) -> None:
    check_target(target)


def test_the_precision_is_that_which_the_cpu_is_fast_in(tmp_path: Path) -> None:
    for flags, precision in (
        ("fma avx512_bf16", "bf16-mixed"),
        ("avx2 amx_bf16", "bf16-mixed"),
        ("avx2 avx512f", "32-true"),
    ):
        (tmp_path / "cpuinfo").write_text(f"flags : {flags}\n")
        assert cpu_precision(cpuinfo=tmp_path / "cpuinfo") == precision
    assert cpu_precision(cpuinfo=tmp_path / "none") == "32-true"


def test_callbacks_in_another_order_are_another_run() -> None:
    first = "a: {_target_: finepruning.callbacks.PruneLipschitz, u: 3.0}"
    second = "b: {_target_: finepruning.callbacks.PruneChannels, max_drop: 0.04}"
    orders = (f"{{{first}, {second}}}", f"{{{second}, {first}}}")
    runs = [composed("defense=prune", "~defense.callbacks", f"+defense.callbacks={each}") for each in orders]
    assert len({choices_hash(run) for run in runs}) == 2


@pytest.mark.parametrize("trainer", ["cpu", "ddp_cpu"])
def test_a_sweeps_start_decides_the_precision_and_names_stay(
    trainer: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("finepruning.pipeline.resolvers.cpu_precision", lambda: "of-the-start")
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        loader = GlobalHydra.instance().config_loader()
        context = HydraContext(config_loader=loader, callbacks=Callbacks())
        given = ["defense=none", f"trainer={trainer}"]
        sweep = loader.load_configuration("config", [], RunMode.MULTIRUN)
        config, place = compose(context, sweep, given, 0)
        chosen, _ = compose(context, sweep, [*given, "trainer.precision=32-true"], 1)
    monkeypatch.setattr("finepruning.pipeline.resolvers.cpu_precision", lambda: "of-the-worker")
    assert config.trainer.precision == "of-the-start"
    assert choices_hash(config) == choices_hash(composed(*given))
    assert place.name == f"digits-badnet-none-s1-{choices_hash(config)}"
    assert chosen.trainer.precision == "32-true"
    assert choices_hash(chosen) != choices_hash(config)


def test_no_configuration_names_a_path_of_one_machine() -> None:
    texts = [path.read_text() for path in Path(ROOT / "conf").rglob("*.yaml")]
    own = re.compile(r"(?<![\w$}.~])/(home|root|Users|work|mnt|tmp)/\w")
    assert own.search("data_dir: /home/me/data")
    assert not [text for text in texts if own.search(text)]
