"""What nobody foresaw can be traced to its line; what a check says is a sentence and no more."""

import subprocess
import sys
import traceback
from pathlib import Path

import pytest
from hydra.errors import CompactHydraException

from finepruning.pipeline import Refused, devices
from finepruning.pipeline.refusals import by_check
from finepruning.pipeline.targets import check_kind
from tests.conftest import ROOT, run_here, sweep_here

FAULTY = """
from torch import nn
class Net(nn.Sequential):
    pruned_layer = "1"
    def __init__(self):
        super().__init__(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 14 * 14, 10))
    def forward(self, x):
        return super().forward(x if not self.training else None + 1)
"""
LINE = 8
WHY = "unsupported operand type"


@pytest.fixture
def faulty(tmp_path: Path) -> tuple[str, ...]:
    """A job whose network fails when it is trained, which no check sees."""
    file = tmp_path / "net.py"
    file.write_text(FAULTY)
    model = ("model=python_file", f"model.file={file}", "model.call=Net", "model.run_code=true")
    places = (f"runs_dir={tmp_path / 'runs'}", f"store_dir={tmp_path / 'store'}", "logger=none")
    return (*model, *places, "dataset.size=16", "defense=none", "trainer.max_epochs=1", "name=mine")


def test_the_log_of_a_job_says_where_an_error_comes_from_and_the_screen_where_the_log_is(
    faulty: tuple[str, ...], tmp_path: Path
) -> None:
    log = tmp_path / "runs" / "mine" / "run.log"
    with pytest.raises(CompactHydraException, match=rf"mine: {WHY}.* \(see {log}\)"):
        sweep_here(*faulty)
    text = log.read_text()
    assert f'File "{tmp_path / "net.py"}", line {LINE}, in forward' in text
    assert text.splitlines()[-1].startswith(WHY)


def test_the_log_of_a_job_that_a_check_refuses_holds_its_sentence_alone(
    faulty: tuple[str, ...], tmp_path: Path
) -> None:
    with pytest.raises(CompactHydraException, match=r"Poison rate 2 is outside"):
        sweep_here(*faulty, "attack.poison_rate=2")
    assert "Traceback" not in (tmp_path / "runs" / "mine" / "run.log").read_text()


def test_a_single_run_says_how_to_see_where_an_error_comes_from(faulty: tuple[str, ...]) -> None:
    command = [sys.executable, "run.py", *faulty]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert WHY in done.stderr
    assert "Set HYDRA_FULL_ERROR=1" in done.stderr
    assert "Traceback" not in done.stderr
    assert done.returncode == 1
    with pytest.raises(Refused, match=WHY) as refused:
        run_here(*faulty)
    assert refused.value.__cause__ is not None  # which that variable shows
    place = traceback.extract_tb(refused.value.__cause__.__traceback__)[-1]
    assert (Path(place.filename).name, place.lineno) == ("net.py", LINE)


def raised(function: object, *arguments: object) -> BaseException:
    with pytest.raises((ValueError, TypeError, OSError)) as caught:
        function(*arguments)  # type: ignore[operator]
    return caught.value


def test_a_check_is_told_from_an_error_that_nobody_foresaw() -> None:
    assert by_check(raised(devices.threads, {"threads": 0}))
    assert by_check(raised(check_kind, "two", int, "attack.trigger.size"))  # as pydantic's reason
    assert not by_check(raised(devices._count, None))  # in this package, and no check of it
    assert not by_check(raised(Path("/nowhere").read_text))
    assert not by_check(ValueError("never raised"))


@pytest.mark.parametrize(
    ("override", "sentence"),
    [
        ("trainer.max_epochs=ten", r"trainer\.max_epochs=ten is no number of epochs\. Set it to 1 or more"),
        ("trainer.max_epochs=[1,2]", r"trainer\.max_epochs=\[1, 2\] is no number of epochs"),
        ("~trainer.threads", r"trainer\.threads=None is no number of cores"),
        ("~trainer.devices", r"trainer\.devices is missing\. Leave it as conf/trainer/ has it"),
        ("~trainer.accelerator", r"trainer\.accelerator is missing"),
        ("~trainer", r"trainer\.accelerator is missing"),  # the data set's own keys are left
        ("defender=null", r"defender=None leaves a run without the keys of defender\..* defender\.fraction"),
    ],
)
def test_what_a_sweep_is_planned_by_is_refused_in_a_sentence(override: str, sentence: str) -> None:
    with pytest.raises(CompactHydraException, match=sentence):
        sweep_here(override)


@pytest.mark.parametrize(
    ("override", "sentence"),
    [
        ("~trainer", r"trainer\.accelerator is missing"),
        ("defender=null", r"defender=None leaves a run without the keys of defender\."),
    ],
)
def test_a_run_without_a_group_is_refused_in_a_sentence(override: str, sentence: str) -> None:
    with pytest.raises(Refused, match=sentence):
        run_here(override)
