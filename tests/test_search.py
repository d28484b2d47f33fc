"""A search decides by what the defender sees, goes on where it ended, and says what it found."""

import shlex
from collections.abc import Callable
from pathlib import Path

import optuna
import pytest
from hydra.errors import CompactHydraException
from omegaconf import DictConfig
from optuna.trial import TrialState

from finepruning import search
from tests.searches import Record, Search, record_of


@pytest.fixture
def searching(tmp_path: Path) -> Search:
    return Search(tmp_path / "runs")


def drops(configs: list[DictConfig]) -> list[float]:
    return [config.defense.max_drop for config in configs]


def test_a_search_goes_on_where_it_ended(searching: Search) -> None:
    first = searching("sweep.trials=3")
    file = searching.file
    more = searching("sweep.trials=5", "sweep.n_jobs=1")
    assert [len(first), len(more)] == [3, 2]
    assert searching.file == file
    assert len(set(drops(first + more))) == 5
    assert searching("sweep.trials=5") == []


def test_another_search_is_kept_apart(searching: Search) -> None:
    searching("sweep.trials=1")
    assert len(searching("sweep.trials=1", "sweep.objective=channels_pruned")) == 1
    assert len(searching("sweep.trials=1", "attack=blended")) == 1
    assert len(list((searching.runs_dir / "searches").glob("*.journal"))) == 3


def attacked(success: Callable[[DictConfig], float]) -> Callable[[DictConfig], Record]:
    def make(config: DictConfig) -> Record:
        scores = {"clean_accuracy": 0.9, "attack_success_rate": success(config)}
        return record_of(config, scores={"suspect": scores, "defended": scores})

    return make


def test_attack_success_changes_nothing_that_is_tried(tmp_path: Path) -> None:
    options = ("sweep.trials=13",)  # Optuna's first ten are random
    one = Search(tmp_path / "one")(*options, make=attacked(lambda config: config.defense.max_drop))
    other = Search(tmp_path / "other")(*options, make=attacked(lambda config: 1 - config.defense.max_drop))
    assert drops(one) == drops(other)


def test_an_oracle_follows_attack_success_and_is_marked(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ("sweep.trials=13", "sweep.objective=oracle")
    one = Search(tmp_path / "one")(*options, make=attacked(lambda config: config.defense.max_drop))
    other = Search(tmp_path / "other")(*options, make=attacked(lambda config: 1 - config.defense.max_drop))
    assert drops(one)[:10] == drops(other)[:10]
    assert drops(one) != drops(other)
    assert all(config.oracle is True for config in one)
    assert "ORACLE: chosen by attack success on the test set" in capsys.readouterr().out


def test_an_oracles_runs_have_names_of_their_own(searching: Search) -> None:
    honest, oracle = searching("sweep.trials=1"), searching("sweep.trials=1", "sweep.objective=oracle")
    assert "oracle" not in honest[0]
    assert drops(honest) == drops(oracle)
    assert honest[0].name != oracle[0].name


def test_a_trial_is_named_like_the_same_run_by_hand(searching: Search) -> None:
    config = searching("sweep.trials=1")[0]
    assert "sweep" not in config
    again = searching.trials()[0].user_attrs["commands"][0]
    assert again == shlex.join(["python", "run.py", *config.hydra.overrides.task])


def test_values_are_what_the_record_counts() -> None:
    record = {
        "validation": {"suspect": {"clean_accuracy": 0.95}, "defended": {"clean_accuracy": 0.90}},
        "pruning": [{"pruned": False}, {"pruned": True}, {"pruned": False}, {"pruned": False}, {"pruned": 0}],
        "scores": {"defended": {"clean_accuracy": 0.8, "attack_success_rate": 0.1}},
    }
    assert search.values(record, "pareto", 0.0) == [0.90, 0.25]
    assert search.values(record, "validation_accuracy", 0.0) == [0.90]
    assert search.values(record, "channels_pruned", 0.06) == [0.25]
    assert search.values(record, "channels_pruned", 0.02) == [pytest.approx(-0.03)]
    assert search.values(record | {"pruning": []}, "pareto", 0.0) == [0.90, 0.0]
    assert search.values(record, "oracle", 0.0) == [0.8, 0.1]


def test_a_run_without_what_is_searched_for_says_so() -> None:
    record = {"status": "finished", "dead": False, "pruning": [], "pruned": {"conv1": [0, 3]}}
    assert search.failure(record, "pareto") == "no defense: nothing was validated"
    record |= {"validation": {"suspect": {}, "defended": {}}}
    assert str(search.failure(record, "pareto")).startswith("no pruning curve: sweep.objective=pareto needs")
    assert search.failure(record, "validation_accuracy") is None
    assert str(search.failure(record | {"pruned": {}}, "pareto")).startswith("no pruning curve")
    scored = record | {"scores": {"defended": {"clean_accuracy": 0.9, "attack_success_rate": None}}}
    assert str(search.failure(scored, "oracle")).startswith("attack success was not measured")


def test_a_trial_that_diverged_is_told_as_failed_and_the_others_count(searching: Search) -> None:
    def make(config: DictConfig) -> Record:
        diverged = config.seed == 1 and config.defense.order == "l1"
        return record_of(config, **({"status": "failed", "error": "The loss became nan"} if diverged else {}))

    tried = searching("sweep.trials=8", make=make)
    failed = [trial for trial in searching.trials() if trial.state == TrialState.FAIL]
    assert len(tried) == 8
    assert 0 < len(failed) < 8
    assert {trial.params["defense.order"] for trial in failed} == {"l1"}
    assert failed[0].user_attrs["reason"] == "The loss became nan"


def test_a_killed_run_fails_its_trial_alone(searching: Search) -> None:
    made: list[Record | None] = []

    def make(config: DictConfig) -> Record | None:
        made.append(None if len(made) == 1 else record_of(config))
        return made[-1]

    searching("sweep.trials=4", make=make)
    assert [trial.state.name for trial in searching.trials()] == ["COMPLETE", "FAIL", "COMPLETE", "COMPLETE"]


def test_a_search_against_a_dead_attack_gives_up(searching: Search) -> None:
    with pytest.raises(CompactHydraException, match=r"The first 4 trials failed.*dead attack"):
        searching("sweep.trials=30", make=lambda config: record_of(config, dead=True))


def test_a_batch_that_never_ran_ends_the_search_with_the_reason(searching: Search) -> None:
    with pytest.raises(CompactHydraException, match=r"killed by signal 9"):
        searching("sweep.trials=30", make=lambda _: None)
    assert len(searching.launched) == 2


def test_a_killed_run_that_is_a_batch_by_itself_is_a_failed_trial_and_the_search_goes_on(
    searching: Search,
) -> None:
    tried = 0

    def make(config: DictConfig) -> Record | None:
        nonlocal tried
        tried += 1
        if tried != 2:
            return record_of(config)
        place = Path(config.hydra.sweep.dir) / config.hydra.sweep.subdir
        place.mkdir(parents=True)
        (place / "run.log").write_text("it began")
        return None

    searching("sweep.trials=3", "sweep.n_jobs=1", make=make)
    assert [trial.state.name for trial in searching.trials()] == ["COMPLETE", "FAIL", "COMPLETE"]
    assert "killed by signal 9" in searching.trials()[1].user_attrs["reason"]


def test_an_interrupted_trial_comes_first_again_and_does_not_count(searching: Search) -> None:
    def stop(_: DictConfig) -> Record:
        raise KeyboardInterrupt

    searching("sweep.trials=2")
    with pytest.raises(KeyboardInterrupt):
        searching("sweep.trials=4", make=stop)
    interrupted = [trial.params["defense.max_drop"] for trial in searching.trials()[2:4]]
    again = searching("sweep.trials=4")
    assert drops(again) == interrupted


def test_of_several_seeds_the_mean_counts(searching: Search) -> None:
    def make(config: DictConfig) -> Record:
        accuracy = {"suspect": {"clean_accuracy": 0.9}, "defended": {"clean_accuracy": config.seed / 10}}
        return record_of(config, validation=accuracy)

    run = searching("sweep.trials=2", "sweep.seeds=[1,2,6]", make=make)
    assert [config.seed for config in run] == [1, 1, 2, 2, 6, 6]
    assert [trial.values[0] for trial in searching.trials()] == pytest.approx([0.3, 0.3])


def test_a_bad_trial_ends_after_its_first_seed(searching: Search) -> None:
    def make(config: DictConfig) -> Record:
        number = len({round(each, 12) for each in drops(searching_now)})
        searching_now.append(config)
        accuracy = 0.9 if number < 6 else 0.1  # Optuna prunes nothing before the sixth trial
        seen = {"suspect": {"clean_accuracy": 0.9}, "defended": {"clean_accuracy": accuracy}}
        return record_of(config, validation=seen)

    searching_now: list[DictConfig] = []
    options = ("sweep.trials=7", "sweep.n_jobs=1", "sweep.seeds=[1,2]", "sweep.objective=validation_accuracy")
    searching(*options, make=make)
    runs = [drops(searching_now).count(drop) for drop in dict.fromkeys(drops(searching_now))]
    assert runs == [2, 2, 2, 2, 2, 2, 1]


def test_the_command_line_beats_the_space(searching: Search) -> None:
    tried = searching(
        "sweep.trials=6",
        "defense.order=l1",
        "defense.max_drop=interval(0.5,0.6)",
        "attack.poison_rate=0.1,0.2",
    )
    assert {config.defense.order for config in tried} == {"l1"}
    assert all(0.5 <= drop <= 0.6 for drop in drops(tried))
    assert {config.attack.poison_rate for config in tried} == {0.1, 0.2}


def test_what_a_defense_does_not_have_is_not_searched(searching: Search) -> None:
    tried = searching("sweep.trials=2", "defense=prune")
    assert {key for key in searching.trials()[0].params} == {"defense.max_drop", "defense.order"}
    assert "tuning" not in tried[0].defense


def test_one_process_searches_at_a_time(searching: Search) -> None:
    searching("sweep.trials=1")
    with (
        search.open_study(searching.file, "pareto", 1),
        pytest.raises(CompactHydraException, match=r"going on in another process \(.*\.open\)"),
    ):
        searching("sweep.trials=2")


def test_a_journal_that_a_power_cut_tore_goes_on(searching: Search) -> None:
    searching("sweep.trials=2")
    with searching.file.open("a") as file:
        file.write('{"op_code": 4, "wor')
    assert len(searching("sweep.trials=3")) == 1
    assert len(searching.trials()) == 3


REFUSED = {
    (
        "sweep.objective=attack_success",
    ): r"sweep\.objective=attack_success is unknown\. Set it to pareto, val",
    ("sweep.trials=0",): r"sweep\.trials=0, sweep\.n_jobs=2: set both to 1 or more",
    ("sweep.n_jobs=0",): r"sweep\.trials=30, sweep\.n_jobs=0: set both to 1 or more",
    ("sweep.tolerance=2",): r"sweep\.tolerance=2 is outside \[0, 1\]",
    ("sweep.seeds=[]",): r"sweep\.seeds=\[\]: give at least one",
    ("seed=1,2",): r"A search does not choose seeds\. Set sweep\.seeds",
    ("defense=none",): r"Nothing is left to search",
    ("defense.max_drop=interval(0.2,0.1)",): r"sweep\.space of defense\.max_drop is .* Give \{low: 0\.01",
}


@pytest.mark.parametrize(("overrides", "sentence"), REFUSED.items())
def test_a_search_that_cannot_be_is_refused(
    overrides: tuple[str, ...], sentence: str, searching: Search
) -> None:
    with pytest.raises(CompactHydraException, match=sentence):
        searching(*overrides)
    assert searching.launched == []


def test_the_best_of_a_front_prunes_most_within_the_tolerance() -> None:
    study = optuna.create_study(directions=["maximize", "maximize"])
    for values in ((0.99, 0.1), (0.98, 0.4), (0.90, 0.9), (0.97, 0.2)):
        study.add_trial(optuna.trial.create_trial(values=values))
    assert [trial.number for trial in search.ranked(study, 0.02)] == [1, 0, 2]
    assert [trial.number for trial in search.ranked(study, 0.0)] == [0, 1, 2]
