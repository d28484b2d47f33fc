"""The folder of a run: what is not a run's stays, and what is of another run goes."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from finepruning.pipeline import Refused

RunHere = Callable[..., dict[str, Any]]


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
