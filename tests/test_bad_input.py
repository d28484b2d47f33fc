"""What cannot be run is refused in a sentence, before any training, with the key to change."""

import gzip
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from hydra.core.hydra_config import HydraConfig

from finepruning import record as records
from finepruning.data.digits import MNIST
from finepruning.pipeline import Refused, preview
from tests.conftest import QUICK, ROOT, composed, run_here

RunHere = Callable[..., dict[str, Any]]

REFUSED = {
    "attack.target_label=10": r"Target label 10 is not one of the 10 classes 0\.\.9\. Change attack\.target",
    "attack.target_label=-1": r"Target label -1 is not one of the 10 classes",
    "attack.trigger.size=17": r"A 17x17 pixel patch does not fit a 16x16 image\. Lower attack\.trigger\.size",
    "attack.trigger.value=1.5": r"Brightness 1\.5 is outside \[0, 1\]\. Change attack\.trigger\.value",
    "attack.trigger.position=[14,14]": r"leaves the 16x16 image\. Change attack\.trigger\.position",
    "attack.target_label=1.5": r"target_label=1\.5 does not fit: .*integer.* Change attack\.target_label",
    "attack.target_label=stop": r"target_label=stop does not fit: .* Change attack\.target_label",
    "attack.trigger.size=2.5": r"size=2\.5 does not fit: .* Change attack\.trigger\.size",
    "attack.poison_rate=10%": r"poison_rate=10% does not fit: .* Change attack\.poison_rate",
    "trainer.max_epochs=-1": r"trainer\.max_epochs=-1 is no number of epochs\. Set it to 1 or more",
    "trainer.threads=0": r"trainer\.threads=0 is no number of cores\. Set it to 1 or more",
    "trainer.threads=null": r"trainer\.threads=None is no number of cores",
    "seed=abc": r"seed=abc is no seed\. Set it to a whole number from 0",
    "seed=null": r"seed=None is no seed",
    "seed=-1": r"seed=-1 is no seed",
    "defense.tuning.learning_rate=null": r"Without a learning_rate nothing is tuned\. Set defense\.tuning",
    "+defense.tuning.compile=true": r"FinePrunedClassifier has no option compile",
    "attack.poison_rate=0": r"Poison rate 0 is outside \(0, 1\]\. Change attack\.poison_rate",
    "attack.poison_rate=1.5": r"Poison rate 1\.5 is outside \(0, 1\]",
    "attack.poison_rate=1.0": r"only \d+ of the 1211 training images are eligible",
    "attack.poison_rate=0.0001": r"is not even one\. Raise attack\.poison_rate",
    "attack.poisoning=mix": r"poisoning=mix does not fit: it should be 'replace' or 'add'\. Change attack",
    "defender.fraction=0": r"defender\.fraction=0 leaves one side without an image",
    "defender.fraction=1.0": r"defender\.fraction=1 leaves one side without an image",
    "defender.fraction=0.001": r"Class '0' has \d+ training images, which leaves none for tuning",
    "defender.validation_share=0": r"defender\.validation_share=0 leaves one side without an image",
    "defense.max_drop=1.5": r"max_drop=1\.5 is outside \[0, 1\]",
    "defense.max_drop=-0.1": r"max_drop=-0\.1 is outside \[0, 1\]",
    "defense.layers=[features.conv9]": r"no layer 'features\.conv9'\. .*among: .*features\.conv3.*pool3",
    "defense.tuning.learning_rate=0": r"learning_rate=0 must be above 0",
    "defense.tuning.optimizer=adam": r"optimizer=adam does not fit: it should be 'sgd' or 'adamw'",
    "training.label_smoothing=1": r"label_smoothing=1 is outside \[0, 1\)\. Change training\.label",
    "training.weight_decay=-1": r"weight_decay=-1 is below 0\. Set training\.weight_decay",
    "training.schedule=step": r"schedule='step' is unknown; choose one_cycle, cosine or constant",
    "dataset.size=4": r"dataset\.size=4 is below the digits' own 8 pixels",
    "model.width=0": r"Set model\.width to 1 or more",
}


@pytest.mark.parametrize(("override", "sentence"), REFUSED.items())
def test_a_bad_value_is_refused_before_training(
    override: str, sentence: str, quick_run: RunHere, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("pytorch_lightning.Trainer.fit", lambda *_, **__: pytest.fail("training began"))
    with pytest.raises(Refused, match=sentence):
        quick_run(override)
    began = override.startswith("training.")  # which is seen when the parts are there
    assert began == any((tmp_path / "runs").glob("*/config.yaml"))  # what makes it a run


def test_a_name_that_another_configuration_has_is_refused(quick_run: RunHere, tmp_path: Path) -> None:
    first = quick_run("name=mine", "defense=none")
    with pytest.raises(
        Refused, match=r"'mine' belongs to a run with another configuration .* overwrite=true"
    ):
        quick_run("name=mine", "defense=none", "seed=2")
    assert records.read(tmp_path / "runs" / "mine") == first
    assert quick_run("name=mine", "defense=none", "seed=2", "overwrite=true")["seed"] == 2


def test_a_training_that_diverges_stops_and_says_the_epoch(quick_run: RunHere, tmp_path: Path) -> None:
    rate = "training.learning_rate=1e30"
    with pytest.raises(
        Refused, match=r"loss became (nan|inf) in epoch 1 \(train\).* record is marked failed"
    ):
        quick_run("name=bad", rate, f"store_dir={tmp_path / 'store'}")
    record = records.read(tmp_path / "runs" / "bad")
    assert record is not None
    assert record["status"] == "failed"
    assert "epoch 1" in record["error"]
    assert not list((tmp_path / "store").rglob("network.safetensors"))


def test_the_last_good_checkpoint_of_a_diverged_training_is_kept(
    quick_run: RunHere, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from finepruning.modules import BackdooredClassifier

    step = BackdooredClassifier.training_step
    monkeypatch.setattr(
        BackdooredClassifier,
        "training_step",
        lambda self, *args: step(self, *args) * (float("nan") if self.current_epoch else 1.0),
    )
    monkeypatch.setattr(
        BackdooredClassifier,
        "on_train_batch_end",
        lambda self, outputs, *_: self._epoch_loss.add_(outputs["loss"] * 0),
    )
    with pytest.raises(Refused, match=r"loss became nan in epoch 2"):
        quick_run(f"store_dir={tmp_path / 'store'}")
    assert len(list((tmp_path / "store" / "suspect").glob("*.partial/last.ckpt"))) == 1


def cli(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "run.py", *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)


def test_the_preview_says_what_a_run_says(monkeypatch: pytest.MonkeyPatch) -> None:
    config = composed("attack.trigger.value=1.5")
    monkeypatch.setattr(HydraConfig.instance(), "cfg", config)
    with pytest.raises(Refused, match=r"^Brightness 1\.5 is outside \[0, 1\]\. Change attack\.trigger\.val"):
        preview.main(config)


def test_an_unknown_option_shows_the_choices() -> None:
    done = cli("attack=unheard_of")
    assert done.returncode != 0
    assert "Could not find 'attack/unheard_of'" in done.stderr
    assert "badnet_pixel" in done.stderr


@pytest.mark.parametrize("mode", [(), ("-m",)])
def test_a_runs_folder_that_cannot_be_written_is_said(mode: tuple[str, ...], tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    done = cli(*mode, f"runs_dir={tmp_path / 'file' / 'runs'}")
    assert done.returncode != 0
    assert done.stderr.startswith(
        f"runs_dir={tmp_path / 'file' / 'runs'} cannot be written (Not a directory)."
    )


@pytest.mark.slow
def test_one_bad_run_of_a_sweep_takes_no_other_with_it(tmp_path: Path) -> None:
    places = (f"runs_dir={tmp_path / 'runs'}", f"store_dir={tmp_path / 'store'}")
    done = cli("-m", "attack.target_label=0,10", "defense=none", *QUICK, *places)
    assert done.returncode == 1
    assert "1 of 2 runs failed:" in done.stderr
    assert "attack.target_label=10" in done.stderr
    assert "Target label 10 is not one of the 10 classes" in done.stderr
    assert len(list((tmp_path / "runs").glob("*/record.json"))) == 1


@pytest.mark.slow
def test_a_damaged_record_in_a_sweep_hides_no_other_run(tmp_path: Path) -> None:
    arguments = ("defense=none", *QUICK, f"runs_dir={tmp_path / 'runs'}", f"store_dir={tmp_path / 'store'}")
    damaged = Path(run_here(*arguments)["name"])
    (tmp_path / "runs" / damaged / "record.json").write_text("{")
    done = cli("-m", "seed=1,2", *arguments)
    assert done.returncode == 1
    assert "1 of 2 runs failed:" in done.stderr
    assert "record.json is damaged" in done.stderr
    assert "│ digits" in done.stdout
    assert "Traceback" not in done.stderr


def test_a_damaged_record_is_named(quick_run: RunHere, tmp_path: Path) -> None:
    record = quick_run("defense=none")
    (tmp_path / "runs" / record["name"] / "record.json").write_text("{")
    with pytest.raises(Refused, match=r"record\.json is damaged .* Delete it to run again"):
        quick_run("defense=none")


@pytest.mark.parametrize("text", ["", "{", "name: mine", "\udcff"])
def test_a_damaged_configuration_of_a_run_is_named(text: str, quick_run: RunHere, tmp_path: Path) -> None:
    place = tmp_path / "runs" / "mine"
    place.mkdir(parents=True)
    (place / "config.yaml").write_bytes(text.encode(errors="surrogateescape"))
    with pytest.raises(Refused, match=r"(?s)mine/config\.yaml is damaged \(.*\)\. Delete it to run again"):
        quick_run("name=mine", "defense=none")


def test_a_config_of_a_run_can_be_read_again(quick_run: RunHere, tmp_path: Path) -> None:
    record = quick_run("defense=none")
    text = (tmp_path / "runs" / record["name"] / "config.yaml").read_text()
    assert yaml.safe_load(text)["config"] == record["config"]


def test_missing_mnist_names_the_three_ways(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FINEPRUNING_DATA", str(tmp_path / "nowhere"))
    monkeypatch.setattr("torchvision.datasets.MNIST.mirrors", ["http://127.0.0.1:9/"])
    with pytest.raises(FileNotFoundError, match=r"FINEPRUNING_DATA.*data_dir.*internet") as caught:
        MNIST(data_dir=str(tmp_path / "data"))
    assert str(tmp_path / "nowhere") in str(caught.value)


def test_a_damaged_idx_file_is_named(
    data_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    raw = tmp_path / "MNIST" / "raw"
    shutil.copytree(data_root / "MNIST" / "raw", raw)
    raw.chmod(0o755)
    labels = raw / "train-labels-idx1-ubyte"
    labels.chmod(0o644)
    labels.write_bytes(gzip.compress(labels.read_bytes())[:1000])
    monkeypatch.setenv("FINEPRUNING_DATA", str(tmp_path))
    with pytest.raises(Refused, match=r"MNIST files in .*raw are damaged"):
        run_here(
            "dataset=mnist", f"runs_dir={tmp_path / 'runs'}", f"store_dir={tmp_path / 'store'}", "logger=none"
        )
