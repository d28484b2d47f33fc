"""The folder of a run: what is not a run's stays, and what is of another run goes."""

import logging
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from omegaconf import OmegaConf
from PIL import Image

from finepruning.pipeline import Refused
from finepruning.pipeline.resolvers import folder_hashes
from tests.conftest import run_here

RunHere = Callable[..., dict[str, Any]]


def write_images(folder: Path, first: int, last: int, brightness: int) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    random = np.random.default_rng(first + brightness)
    for number in range(first, last):
        pixels = random.integers(0, 80, (16, 16, 3), dtype=np.uint8) + np.uint8(brightness)
        Image.fromarray(pixels).save(folder / f"{number}.png")


def test_what_lies_in_a_folder_that_was_never_a_run_stays(quick_run: RunHere, tmp_path: Path) -> None:
    mine = tmp_path / "runs" / "thesis"
    for folder in ("report", "views", "repaired", "suspect"):
        (mine / folder).mkdir(parents=True)
        (mine / folder / "chapter.tex").write_text("mine")
    (mine / "suspect" / "metrics.csv").write_text("mine")
    quick_run("name=thesis", "defense=none", "views=false")
    assert len(list(mine.glob("*/chapter.tex"))) == 4
    assert (mine / "suspect" / "metrics.csv").exists()


@pytest.mark.parametrize(
    ("file", "sentence"),
    [("record.json", r"record\.json is (damaged|not a record)"), ("config.yaml", r"config\.yaml is damaged")],
)
def test_what_only_has_the_name_of_a_runs_file_is_not_overwritten(
    quick_run: RunHere, tmp_path: Path, file: str, sentence: str
) -> None:
    mine = tmp_path / "runs" / "mine"
    mine.mkdir(parents=True)
    (mine / file).write_text('{"mine": 1}')
    with pytest.raises(Refused, match=sentence):
        quick_run("name=mine", "defense=none", "overwrite=true")
    assert (mine / file).read_text() == '{"mine": 1}'


@pytest.mark.parametrize("name", ["", ".", "..", "../mine", "a/../..", "a/..", "/tmp/mine", "null"])
def test_a_name_that_leaves_the_folder_of_runs_is_refused(
    quick_run: RunHere, tmp_path: Path, name: str
) -> None:
    with pytest.raises(Refused, match=r"name=.* names no folder inside runs_dir\. Choose another name"):
        quick_run(f"name='{name}'" if name != "null" else "name=null", "defense=none")
    assert not list(tmp_path.rglob("config.yaml"))


def test_metrics_of_another_configuration_go_and_those_of_the_same_stay(
    quick_run: RunHere, tmp_path: Path
) -> None:
    place = tmp_path / "runs" / "mine"
    run = ("name=mine", "overwrite=true", f"store_dir={tmp_path / 'store'}")
    quick_run(*run, "defense=none", "seed=2")
    quick_run(*run, "defense=finetune")
    tables = {stage: (place / stage / "metrics.csv").read_text() for stage in ("suspect", "defended")}
    (place / "notes").mkdir()
    (place / "notes" / "metrics.csv").write_text("mine")
    quick_run(*run, "defense=finetune")
    assert {stage: (place / stage / "metrics.csv").read_text() for stage in tables} == tables
    quick_run(*run, "defense=none", "seed=2")
    assert sorted(path.parent.name for path in place.rglob("metrics.csv")) == ["notes"]


def test_a_run_on_images_of_ones_own_is_run_again_when_they_change(
    quick_run: RunHere, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    root = tmp_path / "images"
    write_images(root / "dark", 0, 40, 20)
    write_images(root / "light", 0, 40, 120)
    mine = ("dataset=folder", f"dataset.root={root}", "dataset.size=[16,16]", "attack=none", "defense=none")
    options = (*mine, "training.batch_size=16", "trainer.max_epochs=1")

    def run() -> dict[str, Any]:
        return run_here("model.width=4", "logger=none", "views=false", *options, *places)

    places = (f"runs_dir={tmp_path / 'runs'}", f"store_dir={tmp_path / 'store'}")
    caplog.set_level(logging.INFO)
    first = run()
    with monkeypatch.context() as patch:
        patch.setattr("finepruning.pipeline._new_record", lambda *_: pytest.fail("ran again"))
        assert run() == first
    write_images(root / "light", 40, 80, 120)
    again = run()
    assert first["scores"]["suspect"]["counts"]["clean_accuracy"]["total"] == 16
    assert again["scores"]["suspect"]["counts"]["clean_accuracy"]["total"] == 24
    assert again["name"] == first["name"]
    assert f"dataset.root={root} has changed since {first['name']}; it is run again." in caplog.text


def test_a_folder_is_known_by_names_sizes_and_times_wherever_it_lies(tmp_path: Path) -> None:
    def known() -> dict[str, str]:
        config = {"dataset": {"root": str(root)}, "attack": {"source": {"dataset": {"root": "not/there"}}}}
        return folder_hashes(OmegaConf.create(config))

    root = tmp_path / "images"
    (root / "a").mkdir(parents=True)
    image = root / "a" / "1.png"
    image.write_bytes(b"12")
    os.utime(image, (100, 100))
    seen = [known()]
    root = root.rename(tmp_path / "moved")
    assert known() == seen[0]
    image = root / "a" / "1.png"
    os.utime(image, (200, 200))
    seen.append(known())
    image.write_bytes(b"123")
    os.utime(image, (200, 200))
    seen.append(known())
    image.rename(root / "a" / "2.png")
    seen.append(known())
    assert [list(each) for each in seen] == [["dataset.root"]] * 4
    assert len({each["dataset.root"] for each in seen}) == 4


def test_a_data_set_without_a_folder_of_ones_own_keeps_what_it_is_known_by(
    quick_run: RunHere, tmp_path: Path
) -> None:
    name = quick_run("defense=none")["name"]
    assert yaml.safe_load((tmp_path / "runs" / name / "config.yaml").read_text())["files"] == {}
