"""Poisoning: which images are chosen, what they look like afterwards, and what the referee makes of it."""

import wave
from pathlib import Path
from typing import Any

import pytest
import torch
from hydra.core.hydra_config import HydraConfig
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from finepruning.attacks import Attack
from finepruning.attacks.labels import AllToAll, RandomWrongLabel, SingleTarget
from finepruning.attacks.preview import write_preview
from finepruning.attacks.triggers import PatchTrigger, SpeechNoise
from finepruning.data.images import ImageSet, Pixels
from finepruning.pipeline import preview
from finepruning.pipeline.suspects import SuspectMaker
from tests.conftest import composed

CLASSES = 5
PATCH = PatchTrigger(2, 1.0)


def image_set(count: int = 100, first: int = 0) -> ImageSet:
    """Grey images whose brightness is their label, never as bright as the patch."""
    labels = torch.arange(count) % CLASSES
    raw = (labels * 40).to(torch.uint8).view(-1, 1, 1, 1).expand(-1, 1, 6, 6).contiguous()
    return ImageSet.whole(raw, labels, Pixels()).subset(torch.arange(first, count))


def attack(**changes: Any) -> Attack:
    options = {"trigger": PATCH, "poison_rate": 0.1, "target_label": 0} | changes
    made = Attack(**options)
    made.label_map.check(CLASSES)
    return made


def triggered(images: ImageSet) -> Tensor:
    """Which images carry the patch, seen in their pixels."""
    pixels = torch.cat([batch for batch, _ in images.batches(32)])
    return (pixels[:, 0, -2:, -2:] == 1).all(-1).all(-1)


@settings(max_examples=60)
@given(
    count=st.integers(40, 200),
    poison_rate=st.floats(0.03, 0.35),
    cover_rate=st.one_of(st.just(0.0), st.floats(0.03, 0.35)),
    poisoning=st.sampled_from(["replace", "add"]),
    poison_from=st.sampled_from(["other", "all"]),
    seed=st.integers(0, 1000),
)
def test_the_share_of_poisoned_and_of_cover_images_is_exact(
    count: int, poison_rate: float, cover_rate: float, poisoning: str, poison_from: str, seed: int
) -> None:
    clean = image_set(count)
    options = {"poisoning": poisoning, "poison_from": poison_from, "seed": seed}
    poisoned = attack(poison_rate=poison_rate, cover_rate=cover_rate, **options).poison(clean)
    stamped = triggered(poisoned)
    truth = clean.raw[poisoned.index, 0, 0, 0].long() // 40
    both = round(poison_rate * count) + round(cover_rate * count)
    assert stamped.sum() == both
    assert len(poisoned) == count + (both if poisoning == "add" else 0)
    changed = stamped & (poisoned.labels != truth)
    assert (poisoned.labels[changed] == 0).all()
    assert torch.equal(poisoned.labels[~stamped], truth[~stamped])
    exact = poison_from == "other"
    assert (
        changed.sum() == round(poison_rate * count) if exact else changed.sum() <= round(poison_rate * count)
    )


def test_added_copies_leave_every_clean_image_as_it_was() -> None:
    clean = image_set()
    poisoned = attack(poisoning="add", cover_rate=0.05).poison(clean)
    assert torch.equal(poisoned.index[:100], clean.index)
    assert torch.equal(poisoned.labels[:100], clean.labels)
    assert not triggered(poisoned)[:100].any()
    assert triggered(poisoned)[100:].all()


def test_no_image_is_both_poisoned_and_cover() -> None:
    chosen = attack(poison_rate=0.4, cover_rate=0.4).choose(image_set())
    assert len(torch.cat(chosen).unique()) == 80


def test_covers_of_a_single_source_are_of_other_classes() -> None:
    clean = image_set()
    covers = attack(target_label=None, label_map=SingleTarget(1, 3), cover_rate=0.5).choose(clean).covers
    assert len(covers) == 50
    assert (clean.labels[covers] != 1).all()


def test_clean_labels_are_of_the_target_class_and_stay() -> None:
    clean = image_set()
    dirty = attack(poison_from="target", poison_rate=0.15, target_label=2).poison(clean)
    assert torch.equal(dirty.labels, clean.labels)
    assert triggered(dirty).sum() == 15
    assert (dirty.labels[triggered(dirty)] == 2).all()


def test_covers_do_not_change_which_images_are_poisoned() -> None:
    alone, covered = attack(seed=4), attack(seed=4, cover_rate=0.2)
    assert torch.equal(alone.choose(image_set()).poisoned, covered.choose(image_set()).poisoned)


def test_the_attacks_own_seed_decides_its_images() -> None:
    torch.manual_seed(0)
    first = attack(seed=1).choose(image_set()).poisoned
    torch.manual_seed(99)
    assert torch.equal(attack(seed=1).choose(image_set()).poisoned, first)
    assert not torch.equal(attack(seed=2).choose(image_set()).poisoned, first)


def test_only_rows_of_the_given_set_are_poisoned() -> None:
    part = image_set(100, first=60)
    assert set(attack(poisoning="add").poison(part).index.tolist()) <= set(range(60, 100))


def test_random_labels_of_poisoned_images_are_wrong_and_depend_on_the_image_only() -> None:
    untargeted = attack(target_label=None, label_map=RandomWrongLabel(0), poison_rate=0.5)
    whole, part = image_set(), image_set(100, first=50)
    assert torch.equal(untargeted.wanted(whole)[50:], untargeted.wanted(part))
    dirty = untargeted.poison(whole)
    assert (dirty.labels != whole.labels).sum() == 50


def corner_values(images: ImageSet) -> list[float]:
    """The brightness of the corner of every image, where a patch would be."""
    pixels = torch.cat([batch for batch, _ in images.batches(7)])
    return [round(value, 1) for value in pixels[:, 0, -1, -1].tolist()]


def test_poisoned_images_covers_and_test_images_each_carry_their_own_trigger() -> None:
    clean = image_set()
    own = {"training_trigger": PatchTrigger(1, 0.9), "cover_trigger": PatchTrigger(1, 0.8)}
    made = attack(cover_rate=0.2, **own)
    chosen = made.choose(clean)
    rows_of = {"replace": torch.arange(100), "add": torch.cat([torch.arange(100), *chosen])}
    for poisoning, first in rows_of.items():
        made.poisoning = poisoning  # type: ignore[assignment]
        values = corner_values(made.poison(clean))
        stamped = torch.arange(len(first)) >= (0 if poisoning == "replace" else 100)
        poisoned, covers = (torch.isin(first, rows) & stamped for rows in chosen)
        for rows, expected in ((poisoned, 0.9), (covers, 0.8)):
            assert {values[row] for row in rows.nonzero().squeeze(1).tolist()} == {expected}
        rest = (~poisoned & ~covers).nonzero().squeeze(1)
        assert max(values[row] for row in rest.tolist()) < 0.7
    assert set(corner_values(made.stamp(clean))) == {1.0}


def test_covers_carry_what_poisoned_images_carry_unless_they_have_their_own() -> None:
    poisoned = attack(cover_rate=0.2, training_trigger=PatchTrigger(1, 0.9)).poison(image_set())
    assert corner_values(poisoned).count(0.9) == 30
    assert len(poisoned.triggers) == 1
    one = attack(cover_rate=0.2).poison(image_set())
    assert one.triggers == (PATCH,)


def test_a_part_of_a_poisoned_set_keeps_its_triggers() -> None:
    made = attack(cover_rate=0.2, cover_trigger=PatchTrigger(1, 0.8)).poison(image_set())
    rows = torch.arange(99, -1, -1)
    assert corner_values(made.subset(rows)) == corner_values(made)[::-1]


REFUSED = {
    "nothing poisoned": ({"poison_rate": 0.0}, r"outside \(0, 1\]. Change attack\.poison_rate"),
    "too much poisoned": ({"poison_rate": 1.2}, r"outside \(0, 1\]. Change attack\.poison_rate"),
    "all covers": ({"cover_rate": 1.0}, r"outside \[0, 1\). Change attack\.cover_rate"),
    "covers' trigger without covers": (
        {"cover_trigger": PATCH},
        r"attack\.cover_trigger has no image to go on: attack\.cover_rate is 0",
    ),
    "no label": ({"target_label": None}, r"either attack\.target_label or attack\.label_map"),
    "two labels": ({"label_map": AllToAll()}, r"either attack\.target_label or attack\.label_map"),
    "unknown poisoning": ({"poisoning": "mix"}, r"attack\.poisoning is 'mix'; it can be 'replace' or 'add'"),
    "unknown source": ({"poison_from": "none"}, r"attack\.poison_from is 'none'"),
    "clean labels without a target": (
        {"poison_from": "target", "target_label": None, "label_map": AllToAll()},
        r"attack\.poison_from='target' needs one target class; AllToAll has none",
    ),
}


@pytest.mark.parametrize(("changes", "message"), REFUSED.values(), ids=REFUSED.keys())
def test_an_attack_out_of_range_is_refused_with_its_key(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Attack(**({"trigger": PATCH, "poison_rate": 0.1, "target_label": 0} | changes))


IMPOSSIBLE = {
    "not one poisoned": ({"poison_rate": 0.004}, r"not even one. Raise attack\.poison_rate"),
    "not one cover": ({"cover_rate": 0.004}, r"not even one. Raise attack\.cover_rate"),
    "too few others": ({"poison_rate": 0.9}, r"attack\.poison_rate=0\.9 asks for 90 images, but only 80"),
    "too few left to cover": (
        {"cover_rate": 0.95},
        r"attack\.cover_rate=0\.95 asks for 95 images, but only 90",
    ),
    "more clean labels than the target class has": (
        {"poison_from": "target", "poison_rate": 0.3},
        r"only 20 .*\(of class 0, the target of a clean-label attack\)\. Lower it, or choose a larger class",
    ),
    "more of the source class than there are": (
        {"target_label": None, "label_map": SingleTarget(1, 2), "poison_rate": 0.3},
        r"only 20 of .* \(of class 1, the only source\)\. Lower it, or choose a larger class",
    ),
    "training trigger larger than the image": (
        {"training_trigger": PatchTrigger(7, 1.0)},
        r"does not fit.*attack\.trigger\.size",
    ),
    "target beyond the classes": ({"target_label": 5}, r"Target label 5 .*attack\.target_label"),
    "trigger larger than the image": (
        {"trigger": PatchTrigger(7, 1.0)},
        r"does not fit.*attack\.trigger\.size",
    ),
    "sound on images": ({"trigger": SpeechNoise(10.0, 0)}, r"added to sound, but the data set holds images"),
}


@pytest.mark.parametrize(("changes", "message"), IMPOSSIBLE.values(), ids=IMPOSSIBLE.keys())
def test_an_attack_that_a_data_set_cannot_have_is_refused_before_training(
    changes: dict[str, Any], message: str
) -> None:
    impossible = Attack(**({"trigger": PATCH, "poison_rate": 0.1, "target_label": 0} | changes))
    with pytest.raises(ValueError, match=message):
        impossible.check(image_set(), CLASSES)


def test_the_attacker_watches_the_images_that_show_success() -> None:
    clean = image_set()
    targeted = attack().watched(clean)
    assert (len(targeted), set(targeted.labels.tolist())) == (80, {0})
    untargeted = attack(target_label=None, label_map=RandomWrongLabel(0)).watched(clean)
    assert torch.equal(untargeted.labels, clean.labels)
    assert triggered(untargeted).all()


def test_what_is_watched_of_an_attack_on_one_class_are_images_of_it() -> None:
    clean, training = image_set(4000), {"batch_size": 64, "seed": 1}
    single = attack(poison_rate=0.01, label_map=SingleTarget(3, 0), target_label=None)
    both, untargeted = (
        SuspectMaker._data(each, clean, training, None).validation
        for each in (single, attack(target_label=None, label_map=RandomWrongLabel(0)))
    )
    assert [len(images) for images in (*both, *untargeted)] == [572, 800, 572, 572]
    assert triggered(both[1]).all()


class Waves(nn.Module):
    """Recordings whose picture is the sound itself."""

    domain = "waveform"
    sample_rate = 8000

    def decode(self, raw: Tensor) -> Tensor:
        return raw.float() / 32768

    def forward(self, waveforms: Tensor) -> Tensor:
        return waveforms.abs().view(len(waveforms), 1, 40, -1)


def test_a_preview_of_sound_holds_pictures_and_both_recordings(tmp_path: Path) -> None:
    generator = torch.Generator().manual_seed(0)
    raw = torch.randint(-3000, 3000, (20, 8000), generator=generator, dtype=torch.int16)
    noisy = attack(trigger=SpeechNoise(10.0, 0))
    paths = write_preview(ImageSet.whole(raw, torch.arange(20) % CLASSES, Waves()), noisy, tmp_path / "new")
    assert [path.name for path in paths] == ["preview.png", "clean.wav", "triggered.wav"]
    with wave.open(str(paths[1])) as clean, wave.open(str(paths[2])) as stamped:
        assert clean.getframerate() == stamped.getframerate() == 8000
        before, after = clean.readframes(8000), stamped.readframes(8000)
    assert len(before) == len(after) == 16000
    assert before != after


def test_a_preview_of_images_holds_one_picture(tmp_path: Path) -> None:
    assert [path.name for path in write_preview(image_set(), attack(), tmp_path)] == ["preview.png"]


def test_the_preview_command_writes_a_picture_and_says_where(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    places = (f"runs_dir={tmp_path / 'runs'}", f"store_dir={tmp_path / 'store'}")
    config = composed("attack=badnet_pattern", *places)
    monkeypatch.setattr(HydraConfig.instance(), "cfg", config)
    preview.main(config)
    (written,) = (tmp_path / "runs").rglob("preview.png")
    assert capsys.readouterr().out.split() == [str(written)]
