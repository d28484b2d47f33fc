"""What is seen while the referee scores: activations, confusions, pictures."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from finepruning.attacks import Attack
from finepruning.attacks.triggers import PatchTrigger
from finepruning.data import ImageSet
from finepruning.data.images import Pixels
from finepruning.pruning import mean_activations
from finepruning.referee import score
from finepruning.views import Watch, example_sheet, filter_sheet, small_png, watched_layers

RunHere = Callable[..., dict[str, Any]]
CLASSES = 4


def some_images(count: int = 300, seed: int = 0) -> ImageSet:
    generator = torch.Generator().manual_seed(seed)
    raw = torch.randint(0, 256, (count, 1, 8, 8), dtype=torch.uint8, generator=generator)
    return ImageSet.whole(raw, torch.arange(count) % CLASSES, Pixels())


def small_network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, 6, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, CLASSES)
    )


def attack() -> Attack:
    return Attack(PatchTrigger(size=2, value=1.0), poison_rate=0.5, target_label=0)


def images_of(test: ImageSet) -> list[Tensor]:
    return [images for images, _ in test.batches(64)]


def test_activations_are_those_of_the_defenders_own_ranking() -> None:
    network, test = small_network().eval(), some_images()
    with Watch(network, ["1"], test.labels) as watch:
        score(network, test, attack())
    rows = watch.activations({"1": [2]})
    for kind, images in (("clean", test), ("triggered", attack().stamp(test))):
        expected = mean_activations(network, ["1"], images_of(images))["1"]
        assert [row[kind] for row in rows] == pytest.approx(expected.tolist(), rel=1e-5)
    assert [row["number"] for row in rows] == list(range(6))
    assert [row["number"] for row in rows if row["pruned"]] == [2]


def test_a_confusion_matrix_is_counted_image_by_image() -> None:
    network, test = small_network().eval(), some_images()
    with Watch(network, (), test.labels) as watch:
        found = score(network, test, attack())
    expected = [[0] * CLASSES for _ in range(CLASSES)]
    predictions = torch.cat([network(images) for images in images_of(test)]).argmax(1)
    for label, prediction in zip(test.labels.tolist(), predictions.tolist(), strict=True):
        expected[label][prediction] += 1
    counts = watch.confusion()
    assert counts == expected
    assert sum(counts[label][label] for label in range(CLASSES)) == found.clean_accuracy.hits


def test_watching_ends_with_the_scoring_and_changes_no_score() -> None:
    network, test = small_network(), some_images()
    with Watch(network, ["1"], test.labels) as watch:
        watched = score(network, test, attack())
    before = watch.confusion()
    assert score(network, test, attack()) == watched
    assert watch.confusion() == before


def test_without_triggered_images_there_are_no_activations() -> None:
    network, test = small_network(), some_images()
    with Watch(network, ["1"], test.labels) as watch:
        score(network, test, None)
    assert watch.activations(()) == []


def test_more_than_a_hundred_classes_have_no_matrix() -> None:
    network, test = nn.Sequential(nn.Flatten(), nn.Linear(64, 101)), some_images()
    with Watch(network, (), test.labels) as watch:
        score(network, test, None)
    assert watch.confusion() is None


def test_a_network_that_names_no_layer_is_not_watched() -> None:
    assert watched_layers(small_network(), ()) == []


def test_the_sheet_shows_clean_triggered_and_their_difference() -> None:
    sheet = example_sheet(some_images(), attack())
    side, gap = 96, 2
    tiles = [sheet[0, gap + row * (side + gap) :][:side, gap : gap + side] for row in range(3)]
    assert torch.allclose((tiles[1] - tiles[0]).abs(), tiles[2])
    assert (tiles[2] > 0).nonzero().min() >= 6 * side // 8  # a patch of 2 of 8 pixels, at the bottom right
    assert (tiles[1][-side // 4 :, -side // 4 :] == 1).all()


def test_a_strangers_triggered_images_are_shown_without_a_difference() -> None:
    class Stranger:
        untargeted = False

        def wanted(self, images: ImageSet) -> Tensor:
            return torch.zeros(7, dtype=torch.long)

        def stamp(self, images: ImageSet) -> ImageSet:
            return some_images(7, seed=1)

    assert example_sheet(some_images(), Stranger()).shape[1] == 2 * (96 + 2) + 2
    assert example_sheet(some_images(), None).shape[1] == 96 + 2 + 2


def test_a_filter_is_grey_where_its_weight_is_zero() -> None:
    network = small_network()
    with torch.no_grad():
        network[0].weight.zero_()
        network[0].weight[0, 0, 0, 0] = -2.0
    sheet = filter_sheet(network)
    assert sheet is not None
    assert sheet[0, 2, 2] == 0
    assert sheet[0, 2 + 11, 2] == 0.5
    assert filter_sheet(nn.Sequential(nn.Flatten(), nn.Linear(64, 4))) is None


def test_even_noise_fits_into_a_small_file() -> None:
    noise = torch.rand(3, 300, 500, generator=torch.Generator().manual_seed(0))
    assert len(small_png(noise)) <= 60_000


def test_a_record_names_its_pictures_and_counts(quick_run: RunHere, tmp_path: Path) -> None:
    record = quick_run("defense=prune", "defense.max_drop=0.5")
    place = tmp_path / "runs" / record["name"]
    assert record["views"] == {"examples": "views/examples.png", "filters": "views/filters.png"}
    for file in record["views"].values():
        with Image.open(place / file) as picture:
            picture.verify()
        assert (place / file).stat().st_size < 60_000
    pruned = {(step["layer"], step["number"]) for step in record["pruning"] if step["pruned"]}
    assert {(row["layer"], row["number"]) for row in record["activations"] if row["pruned"]} == pruned
    assert len(record["activations"]) == len(record["pruning"]) - 1
    for network in ("suspect", "defended"):
        counts = record["confusion"][network]
        hits = record["scores"][network]["counts"]["clean_accuracy"]["hits"]
        assert sum(counts[label][label] for label in range(10)) == hits
    assert record["oracle"] is False


def test_views_can_be_switched_off_and_change_nothing_else(quick_run: RunHere, tmp_path: Path) -> None:
    record = quick_run("defense=none", "views=false")
    whole = quick_run("defense=none", "overwrite=true")
    assert record["name"] == whole["name"]
    assert not {"views", "activations", "confusion"} & set(record)
    assert whole["scores"] == record["scores"]
    assert whole["confusion"]["defended"] == whole["confusion"]["suspect"]
