"""A network that the user's own Python file defines: it runs only when that is allowed."""

from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from finepruning.pipeline import Refused
from finepruning.suspect import PythonFile, load_suspect
from tests.conftest import run_here
from tests.test_suspect import FACTS, logits

PROGRAM = """
from torch import nn
class Net(nn.Sequential):
    pruned_layer = "1"
    def __init__(self, classes=10):
        super().__init__(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 14 * 14, classes))
def dead(): raise RuntimeError("no such luck")
def wordy(): return "a network"
def script():
    import argparse
    argparse.ArgumentParser().parse_args(["--lr", "0.1"])
def needy(): import blocks_beside_it
"""


@pytest.fixture
def program(tmp_path: Path) -> Path:
    (tmp_path / "nets.py").write_text(PROGRAM)
    return tmp_path / "nets.py"


def test_a_python_file_gives_a_network(program: Path, tmp_path: Path) -> None:
    network = PythonFile(**FACTS, file=str(program), call="Net", run_code=True)
    assert network.pruned_layer == "model.1"
    assert logits(network).shape == (6, 10)
    bare = network.get_submodule("model")
    torch.save({"net": bare.state_dict()}, tmp_path / "weights.pth")
    other = PythonFile(**FACTS, file=str(program), call="Net", run_code=True)
    assert torch.equal(
        logits(load_suspect(other, tmp_path / "weights.pth", (1, 16, 16), 10)), logits(network)
    )


def test_a_python_file_may_hold_dataclasses(program: Path) -> None:
    dataclass = "from dataclasses import dataclass\n@dataclass\nclass Size:\n    side: int = 3\n"
    program.write_text("from __future__ import annotations\n" + dataclass + PROGRAM)
    assert logits(PythonFile(**FACTS, file=str(program), call="Net", run_code=True)).shape == (6, 10)


@pytest.mark.parametrize("allowed", [False, None, "no", 1])
def test_a_python_file_does_not_run_unless_allowed(allowed: Any, tmp_path: Path) -> None:
    (tmp_path / "nets.py").write_text(f"open({str(tmp_path / 'trace')!r}, 'w')")
    with pytest.raises(ValueError, match=r"is a program, and reading it runs it.*model\.run_code=true"):
        PythonFile(**FACTS, file=str(tmp_path / "nets.py"), call="Net", run_code=allowed)
    assert not (tmp_path / "trace").exists()


@pytest.mark.parametrize(
    ("call", "options", "sentence"),
    [
        ("Net", {"classes": 7}, r"\[2, 7\]; \[2, 10\] is needed"),
        ("Net", {"people": 7}, r"TypeError.*model\.options"),
        ("Other", {}, r"AttributeError.*model\.call"),
        ("dead", {}, r"RuntimeError: no such luck"),
        ("script", {}, r"ends the program when it is read\. .* if __name__ == '__main__'"),
        ("needy", {}, r"imports blocks_beside_it, .* has to stand alone"),
        ("wordy", {}, r"gives a str, not a torch\.nn\.Module"),
    ],
)
def test_a_python_file_without_a_fitting_network_is_refused(
    call: str, options: dict[str, Any], sentence: str, program: Path
) -> None:
    with pytest.raises(ValueError, match=sentence):
        PythonFile(**FACTS, file=str(program), call=call, options=options, run_code=True)


def test_a_network_that_names_no_layer_asks_for_one(program: Path) -> None:
    program.write_text(PROGRAM.replace('pruned_layer = "1"', "pass"))
    network = PythonFile(**FACTS, file=str(program), call="Net", run_code=True)
    with pytest.raises(ValueError, match=r"Set defense\.layers to some of: model\.0, model\.1"):
        _ = network.pruned_layer


def test_a_python_file_works_from_the_command_line(program: Path, tmp_path: Path) -> None:
    network = PythonFile(**FACTS, file=str(program), call="Net", run_code=True)
    save_file(network.get_submodule("model").state_dict(), tmp_path / "weights.safetensors")
    places = (f"runs_dir={tmp_path / 'runs'}", f"store_dir={tmp_path / 'store'}", "logger=none")
    model = ("model=python_file", f"model.file={program}", "model.call=Net", "dataset.size=16")
    command = ("attack=suspect", f"suspect.weights={tmp_path / 'weights.safetensors'}", *model, *places)
    with pytest.raises(Refused, match=r"model\.run_code=true"):
        run_here(*command)
    record = run_here(*command, "model.run_code=true", "defense=fineprune", "defense.tuning.max_epochs=1")
    assert record["status"] == "finished"
    assert "model.1" in record["repair"]["channels"]


@pytest.mark.parametrize(
    ("defense", "sentence"),
    [
        (["clp"], r"nobody knows what follows its convolutions\. Choose another defense"),
        (["prune", "defense.order=l1"], r"weights of a channel cannot be found: .* defense\.order to"),
        (["anp"], r"nobody knows what follows its convolutions\. Choose another defense"),
    ],
)
def test_a_program_that_branches_on_its_images_is_refused_before_training_where_it_must_be_traced(
    defense: list[str], sentence: str, program: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    branch = "    def forward(self, x):\n        return super().forward(x if x.sum() > 0 else -x)\n"
    program.write_text(PROGRAM.replace("def dead", branch + "def dead"))
    monkeypatch.setattr("pytorch_lightning.Trainer.fit", lambda *_, **__: pytest.fail("training began"))
    model = ("model=python_file", f"model.file={program}", "model.call=Net", "model.run_code=true")
    name, *more = defense
    with pytest.raises(Refused, match=sentence):
        run_here(*model, "dataset.size=16", "logger=none", f"store_dir={tmp_path}", f"defense={name}", *more)


def test_what_a_users_files_hold_decides_the_suspect(program: Path, tmp_path: Path) -> None:
    picture = tmp_path / "picture.png"
    model = ("model=python_file", f"model.file={program}", "model.call=Net", "model.run_code=true")
    places = (f"runs_dir={tmp_path / 'runs'}", f"store_dir={tmp_path / 'store'}", "logger=none")
    options = ("attack=blended", f"attack.trigger.picture={picture}", "defense=none", "trainer.max_epochs=1")
    made = []
    for shade, comment in ((0, ""), (255, ""), (255, "# another program"), (255, "")):
        Image.new("L", (8, 8), shade).save(picture)
        program.write_text(PROGRAM + comment)
        made.append(
            run_here(*model, *options, *places, "dataset.size=16", "overwrite=true")["stages"]["suspect"]
        )
    assert len(set(made)) == 3
    assert made[1] == made[3]
