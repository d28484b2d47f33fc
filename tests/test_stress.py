"""Stress after repair: what is tuned and searched, by hand, and what a run says of it."""

import copy
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from omegaconf import OmegaConf
from PIL import Image
from torch import Tensor, nn

from finepruning.data.images import ImageSet, Pixels
from finepruning.metrics import Drop, Rate
from finepruning.pipeline import Refused
from finepruning.pipeline.build import build_parts
from finepruning.pipeline.parts import Stress
from finepruning.pipeline.stresses import make_control
from finepruning.pipeline.suspects import SuspectMaker
from finepruning.pruning import add_mask, set_pruned
from finepruning.store import save_weights
from finepruning.stress import Reactivation, Retune, away_loss, score_perturbed, toward_loss
from tests.conftest import composed

RunHere = Callable[..., dict[str, Any]]
RETUNE = {"clean": 6, "triggered": 2, "epochs": 1, "batch_size": 8, "learning_rate": 0.1, "momentum": 0.9}
REACTIVATION = {"images": 4, "radius": 0.05, "steps": 20, "batch_size": 2, "learning_rate": 1.0, "seed": 1}
FEW = ("stress.retune.clean=200", "stress.retune.epochs=1", "stress.control=false")


def retune(**changes: Any) -> Retune:
    return Retune(**{**RETUNE, "weight_decay": 0.0, "seed": 1} | changes)  # type: ignore[arg-type]


def reactivation(**changes: Any) -> Reactivation:
    return Reactivation(**REACTIVATION | changes)  # type: ignore[arg-type]


class ToZero:
    """Triggered images have a white corner; the attacker wants class 0, or any wrong one."""

    def __init__(self, untargeted: bool = False) -> None:
        self.untargeted = untargeted

    def wanted(self, images: ImageSet) -> Tensor:
        return (images.labels + 1) % 3 if self.untargeted else torch.zeros_like(images.labels)

    def stamp(self, images: ImageSet) -> ImageSet:
        raw = images.raw.clone()
        raw[..., -1, -1] = 255
        return replace(images, raw=raw)


def train_set(count: int = 30) -> ImageSet:
    raw = torch.randint(200, (count, 1, 2, 2), generator=torch.Generator().manual_seed(0)).to(torch.uint8)
    return ImageSet.whole(raw, torch.arange(count) % 3, Pixels())


def test_the_triggered_images_are_others_than_the_clean_ones_and_get_the_attackers_labels() -> None:
    train = train_set()
    clean, triggered = retune(clean=20, triggered=5).choose(train.labels != 0)
    assert not set(clean.tolist()) & set(triggered.tolist())
    assert (train.labels[triggered] != 0).all()
    images, labels = retune(clean=20, triggered=5).sample(train, ToZero(), "cpu")
    assert images.shape == (25, 1, 2, 2)
    assert torch.equal(labels, torch.cat([train.labels[clean], torch.zeros(5, dtype=torch.long)]))
    assert (images[20:, 0, 1, 1] == 1).all()
    assert (images[:20, 0, 1, 1] < 1).all()


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"clean": 29}, r"stress\.retune\.clean=29, but only 28 of the attacker's 30 training images"),
        ({"triggered": 21, "clean": 1}, r"stress\.retune\.triggered=21, but only 20 of the attacker's 30"),
    ],
)
def test_more_images_than_there_are_is_refused(changes: dict[str, int], sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        retune(**changes).choose(train_set().labels != 0)


def test_a_retuning_step_is_the_one_worked_out_by_hand() -> None:
    network = nn.Sequential(nn.Flatten(), nn.Linear(4, 2, bias=False))
    nn.init.zeros_(network[1].weight)
    images = torch.tensor([[1.0, 0, 0, 0], [0, 1.0, 0, 0]]).view(2, 1, 2, 2)
    retune().tune(network, images, torch.tensor([0, 1]))
    # both classes have 0.5: the mean over two images of (0.5 - is it the label) times the image
    expected = 0.1 * torch.tensor([[0.25, -0.25, 0, 0], [-0.25, 0.25, 0, 0]])
    assert torch.allclose(network[1].weight, expected)


def test_retuning_is_the_same_for_a_seed_and_leaves_the_global_chance_alone() -> None:
    start = nn.Sequential(nn.Flatten(), nn.Dropout(0.5), nn.Linear(4, 3))
    images, labels = retune().sample(train_set(), ToZero(), "cpu")
    first, again, other = (copy.deepcopy(start) for _ in range(3))
    torch.manual_seed(5)
    expected = torch.rand(1)
    torch.manual_seed(5)
    for network, seed in ((first, 1), (again, 1), (other, 2)):
        retune(epochs=3, batch_size=3, seed=seed).tune(network, images, labels)
    assert torch.equal(torch.rand(1), expected)
    assert torch.equal(first[2].weight, again[2].weight)
    assert not torch.allclose(first[2].weight, other[2].weight)
    assert not torch.allclose(first[2].weight, start[2].weight)


def test_a_retuning_that_diverges_is_no_result() -> None:
    network = nn.Sequential(nn.Flatten(), nn.Linear(4, 3), nn.Linear(3, 3))
    images, labels = retune().sample(train_set(), ToZero(), "cpu")
    with pytest.raises(ValueError, match=r"learning_rate=1e\+30 left weights that are no numbers"):
        retune(epochs=9, batch_size=3, learning_rate=1e30).tune(network, images, labels)


def test_a_pruned_channel_stays_silent_while_the_network_is_retuned() -> None:
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(1, 3, 1), nn.BatchNorm2d(3), nn.ReLU(), nn.Flatten(), nn.Linear(12, 3))
    add_mask(network, "2", 3)
    set_pruned(network, "2", [1])
    images, labels = retune().sample(train_set(), ToZero(), "cpu")
    retune(epochs=3).tune(network, images, labels)
    features = network[:3](images)
    assert (features[:, 1] == 0).all()
    assert features[:, [0, 2]].any()


def test_the_losses_are_those_worked_out_by_hand() -> None:
    logits = torch.tensor([[0.5, 0.3, 0.2], [0.1, 0.2, 0.7]]).log() + torch.tensor([[3.0], [-2.0]])
    # the strongest other class has 0.5 beside label 2, and 0.2 beside label 2
    first, second = -math.log(0.2) - math.log(1 - 0.5), -math.log(0.7) - math.log(1 - 0.2)
    assert toward_loss(logits, torch.tensor([2, 2])).item() == pytest.approx((first + second) / 2)
    expected = (-math.log(1 - 0.5) - math.log(1 - 0.2)) / 2
    assert away_loss(logits, torch.tensor([0, 1])).item() == pytest.approx(expected)


@pytest.mark.parametrize(("untargeted", "sign"), [(False, 1), (True, -1)])
def test_the_perturbation_of_a_linear_network_is_the_corner_of_its_ball(untargeted: bool, sign: int) -> None:
    network = nn.Sequential(nn.Flatten(), nn.Linear(4, 2, bias=False))
    with torch.no_grad():
        network[1].weight.copy_(torch.tensor([[1.0, -2, 3, 0], [-1, 2, -3, 0]]))
    images = torch.full((4, 1, 2, 2), 0.5)
    pattern = reactivation().search(network, images, torch.zeros(4, dtype=torch.long), untargeted)
    expected = sign * 0.05 * torch.tensor([[[1.0, -1], [1, 0]]])
    assert torch.allclose(pattern, expected)


def test_a_perturbation_is_searched_on_triggered_images_that_the_attacker_relabels() -> None:
    images, labels = reactivation(images=7).sample(train_set(), ToZero(), "cpu")
    assert (images[:, 0, 1, 1] == 1).all()
    assert labels.tolist() == [0] * 7
    assert len(reactivation(images=99).sample(train_set(), ToZero(), "cpu")[0]) == 20
    _, truth = reactivation(images=30).sample(train_set(), ToZero(untargeted=True), "cpu")
    assert sorted(truth.tolist()) == sorted(train_set().labels.tolist())


class Brightest(nn.Module):
    """The class of the brightest of three pixels."""

    def forward(self, images: Tensor) -> Tensor:
        return images[:, 0, 0, :3]


def test_what_a_perturbation_does_is_counted_by_hand() -> None:
    raw = torch.tensor([[250, 100, 0], [0, 250, 0], [0, 100, 250], [0, 250, 245]], dtype=torch.uint8)
    test = ImageSet.whole(raw.view(4, 1, 1, 3), torch.tensor([0, 1, 2, 1]), Pixels())

    class Same(ToZero):
        def stamp(self, images: ImageSet) -> ImageSet:
            return images

    pattern = torch.tensor([0.0, 0, 0.05]).view(1, 1, 3)  # the last image becomes class 2
    found = score_perturbed(Brightest(), pattern, test, Same(), Rate(4, 4))
    assert found.clean_accuracy == Rate(3, 4)
    assert found.attack_success_rate == Rate(0, 3)
    found = score_perturbed(Brightest(), pattern, test, Same(untargeted=True), Rate(4, 4))
    assert found.attack_success_rate == Drop(Rate(4, 4), Rate(3, 4))


WRONG = {
    "retune.clean=0": r"stress\.retune\.clean=0 is below 1",
    "retune.batch_size=1": r"stress\.retune\.batch_size=1 is below 2",
    "retune.learning_rate=0": r"stress\.retune\.learning_rate=0 must be above 0",
    "retune.momentum=1": r"stress\.retune\.momentum=1 is outside \[0, 1\)",
    "retune.weight_decay=-1": r"stress\.retune\.weight_decay=-1 is below 0",
    "reactivation.radius=0": r"stress\.reactivation\.radius=0 is outside \(0, 1\]",
    "reactivation.steps=0": r"stress\.reactivation\.steps=0 is below 1",
    "retune.triggered=2000": r"stress\.retune\.triggered=2000, but only \d+ of the attacker's 1211 training",
}


@pytest.mark.parametrize(("override", "sentence"), WRONG.items())
def test_a_bad_value_is_refused_before_training(
    override: str, sentence: str, quick_run: RunHere, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pytorch_lightning.Trainer.fit", lambda *_, **__: pytest.fail("training began"))
    with pytest.raises(Refused, match=sentence):
        quick_run("defense=finetune", "stress=all", f"stress.{override}")


def test_scoring_rungs_asks_nothing_of_the_training_images() -> None:
    class OfTestImagesAlone(ToZero):
        def wanted(self, images: ImageSet) -> Tensor:
            return torch.zeros(7, dtype=torch.long)

    Stress(rungs=True, control=False).check(train_set(), OfTestImagesAlone())


def test_the_control_of_an_attack_with_a_picture_is_the_suspect_of_none(tmp_path: Path) -> None:
    Image.new("L", (16, 16), 255).save(tmp_path / "picture.png")
    picture = f"attack.trigger.picture={tmp_path / 'picture.png'}"
    keys: list[Any] = []
    store = SimpleNamespace(stage=lambda *key: keys.append(key[:2]))

    def built(*chosen: str) -> tuple[Any, Any]:
        config = composed("dataset.size=16", f"store_dir={tmp_path}", "name=a", "group=b", *chosen)
        return OmegaConf.to_container(config, resolve=True), build_parts(config)

    plain, parts = built("attack=blended", picture)
    assert parts.files
    make_control(plain, parts, store, pytest.fail, "cpu")
    SuspectMaker(*built("attack=none"), store, pytest.fail, "cpu").make()
    assert keys[0] == keys[1]


@pytest.mark.parametrize("stress", ["retune", "reactivation", "all"])
def test_a_stress_without_an_attack_is_refused_before_any_work(
    stress: str, quick_run: RunHere, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("finepruning.pipeline.build.pack", lambda *_: pytest.fail("data were read"))
    with pytest.raises(Refused, match=r"needs a trigger, and attack=none has none.*stress=none"):
        quick_run("attack=none", f"stress={stress}")


def test_a_strangers_network_needs_a_trigger_that_can_be_stamped_and_has_no_control(
    quick_run: RunHere, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("finepruning.pipeline.build.pack", lambda *_: pytest.fail("data were read"))
    foreign = ("attack=suspect", "suspect.weights=here", "defense=none", "stress=retune")
    with pytest.raises(Refused, match=r"no trigger of this suspect is known.*attack\.picture.*stress=none"):
        quick_run(*foreign)
    with pytest.raises(Refused, match=r"no trigger of this suspect is known that can be"):
        quick_run(*foreign, "attack.triggered=some.h5")
    with pytest.raises(Refused, match=r"stress\.control=true trains a clean network.*stress\.control=false"):
        quick_run(*foreign, "attack.picture=trigger.png", "attack.target_label=0")


def test_a_strangers_network_is_stressed_with_a_known_picture(quick_run: RunHere, tmp_path: Path) -> None:
    from finepruning.networks import DigitsCNN

    save_weights(DigitsCNN((1, 16, 16), 10, [0.0], [1.0], width=4), tmp_path / "suspect.safetensors")
    Image.new("L", (16, 16), 255).save(tmp_path / "trigger.png")
    Image.new("L", (16, 16), 40).save(tmp_path / "mask.png")
    known = [f"attack.{name}={tmp_path / f'{name}.png'}" for name in ("mask",)]
    known += [f"attack.picture={tmp_path / 'trigger.png'}", "attack.target_label=3"]
    suspect = ("attack=suspect", f"suspect.weights={tmp_path / 'suspect.safetensors'}", "defense=none")
    record = quick_run(*suspect, *known, "stress=retune", *FEW)
    assert set(record["stress"]["networks"]) == {"suspect"}
    assert record["stress"]["networks"]["suspect"]["retuned"]["clean_accuracy"] is not None


def test_a_run_says_what_comes_back_of_each_network_and_makes_it_once(
    quick_run: RunHere, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = ("defense=finetune", "defense.tuning.max_epochs=1", "stress=all", "stress.retune.epochs=1")
    options += ("stress.reactivation.steps=3", "stress.reactivation.learning_rate=100")
    record = quick_run(*options)
    found = record["stress"]["networks"]
    assert set(found) == {"suspect", "defended", "clean"}
    for name in ("suspect", "defended"):
        assert found[name]["before"] == record["scores"][name]
    for tests in found.values():
        assert set(tests) == {"before", "retuned", "reactivated"}
        assert {scores["counts"]["attack_success_rate"]["total"] for scores in tests.values()} == {405}
        assert tests["retuned"]["counts"] != tests["before"]["counts"]
        assert all(len(scores["intervals"]["attack_success_rate"]) == 2 for scores in tests.values())
    assert found["suspect"]["reactivated"]["counts"] != found["suspect"]["before"]["counts"]
    clean = quick_run("attack=none", "defense=none")
    assert clean["stages"]["suspect"] == record["stages"]["clean"]
    assert found["clean"]["before"]["clean_accuracy"] == clean["scores"]["suspect"]["clean_accuracy"]
    assert found["clean"]["before"]["attack_success_rate"] < 0.5
    for name in ("retune.Retune.tune", "reactivation.Reactivation.search"):
        tested = name.split(".", 1)[1]
        monkeypatch.setattr(f"finepruning.stress.{tested}", lambda *_: pytest.fail("repeated"))
    again = quick_run(*options, "overwrite=true")
    assert again["stress"] == record["stress"]
    assert again["scores"] == record["scores"]


def test_a_stress_changes_neither_the_suspect_nor_the_defended_network(quick_run: RunHere) -> None:
    options = ("defense=finetune", "defense.tuning.max_epochs=1")
    plain, stressed = quick_run(*options), quick_run(*options, "stress=retune", *FEW)
    assert plain["scores"] == stressed["scores"]
    assert {key: plain["stages"][key] for key in ("suspect", "defended")} == {
        key: stressed["stages"][key] for key in ("suspect", "defended")
    }
    assert "stress" not in plain


@pytest.mark.slow
def test_every_rung_is_audited_and_then_scored_by_the_referee(quick_run: RunHere) -> None:
    fast = ("defense.inspection.search.steps=40", "defense.inspection.search.images=4", "defense.max_drop=1")
    tuning = ("defense.tuning.max_epochs=1", "defense.tuning.batch_size=32")
    ladder = "defense.ladder=[{weight: 0.05}, {weight: 0.1, prune: 0.05}]"
    plain = quick_run("defense=auto", *fast, *tuning, ladder)
    record = quick_run("defense=auto", *fast, *tuning, ladder, "stress=rungs")
    assert record["scores"] == plain["scores"]
    assert record["audit"] == plain["audit"]
    assert [rung["audit"] for rung in plain["ladder"]["rungs"]] == [None, None]
    rungs = record["ladder"]["rungs"]
    assert all("rankings" in rung["audit"] for rung in rungs)
    scored = record["stress"]["rungs"]
    assert len(scored) == len(rungs) == 2
    assert scored[record["ladder"]["kept"]] == record["scores"]["defended"]
    assert scored[0] != scored[1]
    assert record["stress"]["networks"] == {}


def test_without_a_stress_the_configuration_is_as_before() -> None:
    assert "stress" not in composed("attack=badnet")
