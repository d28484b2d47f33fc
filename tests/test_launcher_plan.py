"""What a sweep decides before and while it runs: pure functions, worked by hand."""

import io
import multiprocessing
from pathlib import Path
from typing import Any

import pytest
from omegaconf import OmegaConf
from rich.console import Console

from finepruning import record as records
from finepruning.launcher import processes
from finepruning.launcher.display import Display, board, line
from finepruning.launcher.forecast import Earlier, announcement, duration, earlier_runs, estimate
from finepruning.launcher.plan import (
    SUSPECT_PARTS,
    Job,
    Outcome,
    at_a_time,
    check_gpus,
    cores_needed,
    defended_hash,
    gpus_needed,
    next_job,
    start_hash,
    suspect_hash,
    telling,
    unique,
    visible_gpus,
)

CHOICES = {"dataset": "digits", "model": "digits_cnn", "attack": "badnet", "defense": "prune"}


def job(number: int = 0, suspect: str = "a", gpus: int = 0, **changes: Any) -> Job:
    values = {
        "number": number,
        "overrides": f"seed={number}",
        "config": OmegaConf.create(),
        "place": Path(f"runs/{number}"),
        "chosen": str(number),
        "choices": CHOICES,
        "epochs": 10,
        "cores": 1,
        "gpus": gpus,
        "suspect": suspect,
        "start": None,
        "defended": f"{suspect} {number}",
    }
    return Job(**(values | changes))


def order(jobs: list[Job], made: set[str], places: int) -> list[int]:
    """Return the numbers in which jobs start if each takes as long as the others."""
    waiting, running, started = list(jobs), [], []
    while waiting:
        if len(running) == places:
            made = made | running.pop(0).shared
        making = {network for each in running for network in each.shared}
        following = next_job(waiting, making, made, 0)
        assert following is not None
        waiting.remove(following)
        running.append(following)
        started.append(following.number)
    return started


def test_jobs_that_train_different_suspects_start_first() -> None:
    jobs = [job(0, "a"), job(1, "a"), job(2, "a"), job(3, "b"), job(4, "b")]
    assert order(jobs, set(), 2) == [0, 3, 1, 2, 4]
    assert order(jobs, set(), 1) == [0, 3, 1, 2, 4]
    assert order(jobs, {"a", "b"}, 2) == [0, 1, 2, 3, 4]


def test_a_job_that_would_wait_for_another_ones_training_starts_when_nothing_else_is_left() -> None:
    jobs = [job(0, "a"), job(1, "a")]
    first = next_job(jobs, set(), set(), 0)
    assert first is jobs[0]
    assert next_job(jobs[1:], {"a"}, set(), 0) is jobs[1]


def test_jobs_whose_suspects_begin_with_one_network_do_not_start_side_by_side() -> None:
    jobs = [job(0, "a", start="clean"), job(1, "b", start="clean"), job(2, "c"), job(3, "clean")]
    assert order(jobs, set(), 2) == [0, 2, 1, 3]
    assert order(jobs, {"clean"}, 2) == [0, 1, 2, 3]


def test_a_crafted_attack_and_decoys_begin_with_the_clean_network_and_transfer_with_its_source() -> None:
    shared = {"seed": 1, "dataset": {"size": 8}}
    clean = suspect_hash(shared | {"attack": {}})
    assert start_hash(shared | {"attack": {"crafting": {"steps": 3}}}) == clean
    assert start_hash(shared | {"attack": {"survivors": None}}) == clean
    assert start_hash(shared | {"attack": {"poison_rate": 0.1}}) is None
    assert start_hash(shared | {"attack": {}}) is None
    moved = [{"source": {"dataset": "signs"}, "strengthen": factor} for factor in (1, 10)]
    first, second = (start_hash(shared | {"attack": attack}) for attack in moved)
    assert first == second is not None


def test_a_job_waits_until_its_gpus_are_free() -> None:
    jobs = [job(0, "a", gpus=2), job(1, "b", gpus=1), job(2, "c")]
    assert next_job(jobs, set(), set(), 2) is jobs[0]
    assert next_job(jobs, set(), set(), 1) is jobs[1]
    assert next_job(jobs, set(), set(), 0) is jobs[2]
    assert next_job(jobs[:2], set(), set(), 0) is None


def test_a_job_gets_as_many_gpus_as_it_asks_for() -> None:
    assert gpus_needed({"accelerator": "cpu", "devices": 4}) == 0
    assert gpus_needed({"accelerator": "gpu", "devices": 1}) == 1
    assert gpus_needed({"accelerator": "gpu", "devices": "2"}) == 2
    with pytest.raises(ValueError, match=r"trainer\.devices=0 is no number of GPUs"):
        gpus_needed({"accelerator": "gpu", "devices": 0})
    with pytest.raises(ValueError, match=r"accelerator=auto leaves open .* Use trainer=cpu or trainer=gpu"):
        gpus_needed({"accelerator": "auto", "devices": 1})


def test_gpus_are_named_as_the_environment_names_them() -> None:
    assert visible_gpus(3, None) == ["0", "1", "2"]
    assert visible_gpus(2, "5,GPU-8f") == ["5", "GPU-8f"]
    assert visible_gpus(1, "5,99") == ["5"]  # CUDA stops at the first one that is not there
    assert visible_gpus(0, "") == []


def test_more_gpus_than_there_are_are_refused() -> None:
    check_gpus([job(gpus=2)], 2)
    with pytest.raises(ValueError, match=r"trainer\.devices=2 asks for more GPUs than there are: 1 visible"):
        check_gpus([job(gpus=0), job(gpus=2)], 1)


def test_cores_and_gpus_say_how_many_jobs_run_at_a_time() -> None:
    assert at_a_time([job(cores=1), job(cores=2)], cores=8, gpus=0) == 4
    assert at_a_time([job(cores=4)], cores=2, gpus=0) == 1
    assert at_a_time([job(gpus=2), job(gpus=1)], cores=2, gpus=4) == 4
    assert at_a_time([job(gpus=2)], cores=2, gpus=4) == 2
    assert at_a_time([job(gpus=1), job(cores=1)], cores=8, gpus=2) == 10


def test_processes_of_a_job_share_the_cores() -> None:
    assert cores_needed({"accelerator": "cpu", "devices": 2, "threads": 3}) == 6
    assert cores_needed({"accelerator": "gpu", "devices": 2, "threads": 3}) == 3
    assert cores_needed({"accelerator": "cpu", "devices": "auto", "threads": 3}) == 3


def test_equal_runs_count_once_and_different_ones_need_different_names() -> None:
    jobs = [job(0), job(1, place=Path("runs/0"), chosen="0"), job(2)]
    assert [each.number for each in unique(jobs)] == [0, 2]
    with pytest.raises(ValueError, match=r"share the name '0', such as 'seed=0' and 'seed=1'\. Leave name"):
        unique([job(0), job(1, place=Path("runs/0"))])


def test_a_job_is_told_by_what_the_others_have_not() -> None:
    assert telling([["a=1", "b=1"], ["a=1", "b=2"]]) == ["b=1", "b=2"]
    assert telling([["a=1", "b=1"]]) == ["a=1 b=1"]
    assert telling([["a=1"], ["a=1", "b=2"]]) == ["a=1", "b=2"]


def test_the_parts_that_decide_a_suspect_are_those_of_the_store() -> None:
    from finepruning.pipeline.suspects import SUSPECT_KEYS

    assert set(SUSPECT_PARTS) == {*SUSPECT_KEYS, "dataset", "suspect"}


def test_only_the_parts_that_decide_a_network_change_its_hash() -> None:
    config = {"seed": 1, "model": {"width": 4}, "defense": {"max_drop": 0.1}, "name": "x"}
    assert suspect_hash(config) == suspect_hash(config | {"name": "y", "defense": None})
    assert suspect_hash(config) != suspect_hash(config | {"seed": 2})
    quarter, half = ({**config, "defender": {"fraction": 0.1, "validation_share": s}} for s in (0.25, 0.5))
    assert suspect_hash(quarter) == suspect_hash(half)
    assert defended_hash(quarter) != defended_hash(half)
    assert suspect_hash(half) != suspect_hash(half | {"defender": {"fraction": 0.2}})
    assert defended_hash(config) != defended_hash(config | {"defense": {"max_drop": 0.2}})
    assert defended_hash(config) != defended_hash(config | {"seed": 2})
    assert defended_hash(config | {"defense": None}) is None
    orders = ({"callbacks": {name: {} for name in names}} for names in ("ab", "ba"))
    assert len({defended_hash(config | {"defense": defense}) for defense in orders}) == 2


def earlier(epochs: int = 5, seconds: float = 50, hashes: tuple[str, ...] = (), **choices: str) -> Earlier:
    times = {"clean": seconds / 2, "suspect": seconds / 2, "defended": 8.0, "referee": 1.0, "run": 99.0}
    return Earlier(CHOICES | choices, epochs, times, frozenset(hashes))


def test_an_estimate_counts_trainings_by_epochs_and_shares_them_out() -> None:
    jobs = [job(0, "a"), job(1, "a"), job(2, "b")]
    # two suspects of 10 epochs at 50 / 5 s each, three defended networks of 8 s, three scorings of 1 s
    assert estimate(jobs, [earlier()], 1) == 2 * 100 + 3 * 8 + 3 * 1
    assert estimate(jobs, [earlier()], 2) == (2 * 100 + 3 * 8 + 3 * 1) / 2
    assert estimate(jobs, [earlier()], 99) == 100 + 8 + 1  # the longest one
    assert estimate(jobs, [earlier(hashes=("a", "b", "b 2"))], 1) == 2 * 8 + 3 * 1


def test_an_estimate_prefers_the_same_defense_and_needs_the_same_data_and_model() -> None:
    slow = Earlier(
        CHOICES | {"defense": "finetune"}, 5, earlier().seconds | {"defended": 80.0}, frozenset("a")
    )
    assert estimate([job(0, "a")], [slow, earlier()], 1) == 8 + 1
    assert estimate([job(0, "a")], [slow], 1) == 80 + 1
    assert estimate([job(0, "a")], [earlier(dataset="mnist"), earlier(model="deepid")], 1) is None


def test_a_sweep_says_what_it_will_do() -> None:
    jobs = [job(0, "a"), job(1, "a"), job(2, "b")]
    assert announcement(5, 2, jobs, [earlier()], 2) == (
        "5 runs, 2 of them done, 3 to do, 2 at a time. To make: about 2 suspects and 3 defended networks; "
        "about 2 min."
    )
    assert "about 1 suspect and 3 defended networks; no earlier run tells how long" in announcement(
        3, 0, jobs, [earlier(dataset="mnist", hashes=("b",))], 2
    )
    assert announcement(5, 5, [], [], 2) == "5 runs, all of them done"
    assert announcement(1, 1, [], [], 2) == "1 run, all of them done"
    assert announcement(5, 3, [], [], 2) == "5 runs, 3 of them done"  # two are refused


@pytest.mark.parametrize(
    ("seconds", "said"),
    [(0.4, "0 s"), (59.4, "59 s"), (61, "1 min"), (3600, "1 h 0 min"), (7509, "2 h 5 min")],
)
def test_times_are_said_as_people_say_them(seconds: float, said: str) -> None:
    assert duration(seconds) == said


def test_only_stages_that_the_store_still_has_count_as_made(tmp_path: Path) -> None:
    config = {"seed": 1, "trainer": {"max_epochs": 3}, "defense": {"max_drop": 0.1}}
    record = CHOICES | {
        "status": "finished",
        "config": config,
        "seconds": {"suspect": 1.0, "referee": 1.0},
        "stages": {"clean": "suspect/0", "suspect": "suspect/1", "defended": "defended/1"},
    }
    (tmp_path / "runs" / "x").mkdir(parents=True)
    (tmp_path / "store" / "suspect" / "1").mkdir(parents=True)
    records.write(tmp_path / "runs" / "x", record)
    (tmp_path / "runs" / "damaged").mkdir()
    (tmp_path / "runs" / "damaged" / "record.json").write_text("{")
    (tmp_path / "runs" / "foreign").mkdir()
    (tmp_path / "runs" / "foreign" / "record.json").write_text('{"schema": 1, "hello": "world"}')
    [found] = earlier_runs(tmp_path / "runs", tmp_path / "store")
    assert found.hashes == {suspect_hash(config)}
    assert (found.epochs, found.seconds) == (3, record["seconds"])


def shown(*arguments: Any) -> str:
    console = Console(file=io.StringIO(), width=100)
    console.print(board(*arguments))
    return console.file.getvalue()  # type: ignore[attr-defined]


def test_a_board_of_two_hundred_jobs_fits_a_screen() -> None:
    outcomes = [Outcome(job(n), 61.0, (0.98, None)) for n in range(100)]
    outcomes += [Outcome(job(n), 2.0, error=f"reason {n}\nmore") for n in range(100, 150)]
    text = shown(200, 7, {job(150): 3723.0}, outcomes, 59.0)
    assert "107 of 200 runs done, 1 running, 42 waiting, 50 failed, 0:00:59" in text
    assert len(text.splitlines()) < 40
    assert "seed=99" in text
    assert "seed=94" not in text
    assert "1:02:03" in text
    assert "98.0" in text
    assert "reason 149" in text
    assert "more" not in text


def test_a_terminal_gets_a_live_board_and_anything_else_lines(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    for terminal in (True, False):
        file = io.StringIO()
        display = Display(3, 1, Console(file=file, width=100, force_terminal=terminal))
        with display:
            display.started(job(1))
            display.ended(Outcome(job(2), 12.4, (0.98, 0.003)))
        assert ("2 of 3 runs done, 1 running, 0 waiting, 0 failed" in file.getvalue()) == terminal
    assert caplog.messages == ["[2/3] done seed=2, 12 s, clean 98.0 %, attack 0.3 %"]


def test_gpus_are_handed_out_once_and_come_back(monkeypatch: pytest.MonkeyPatch) -> None:
    fork, handed = multiprocessing.get_context("fork"), []

    def start(_: Any, each: Job, gpus: list[str]) -> processes.Running:
        handed.append(tuple(gpus))
        process: Any = fork.Process(target=int)
        process.start()
        return processes.Running(each, process, None, tuple(gpus), 0.0)  # type: ignore[arg-type]

    def outcome(ended: processes.Running) -> Outcome:
        ended.process.join()
        return Outcome(ended.job, 0.0)

    monkeypatch.setattr(processes, "_start", start)
    monkeypatch.setattr(processes, "_outcome", outcome)
    jobs = [job(number, str(number), gpus=count) for number, count in enumerate((1, 1, 2))]
    display = Display(3, 0, Console(file=io.StringIO()))
    processes.run_jobs(None, jobs, 3, ["4", "7"], (), display)  # type: ignore[arg-type]
    assert sorted(handed[:2]) == [("4",), ("7",)]
    assert sorted(handed[2]) == ["4", "7"]


def test_a_line_tells_how_a_job_ended() -> None:
    assert line(Outcome(job(3), 12.4, (0.98, 0.003))) == "done seed=3, 12 s, clean 98.0 %, attack 0.3 %"
    assert line(Outcome(job(3), 12.4, (0.98, None))) == "done seed=3, 12 s, clean 98.0 %"
    assert line(Outcome(job(3), 12.4, error="why")) == "failed seed=3, 12 s"
