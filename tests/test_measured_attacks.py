"""The triggers of the attacks that a repair is measured against, by hand and by law."""

from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torch import Tensor

from finepruning.attacks.triggers import (
    Checkerboards,
    CraftedPatch,
    InputAware,
    OthersTrigger,
    PatchTrigger,
    Perturbed,
    Sinusoid,
    TiledBlend,
    Trigger,
    Warp,
)
from finepruning.attacks.triggers.chance import uniform

INDEX = torch.arange(3)


def test_a_sinusoid_brightens_and_darkens_its_columns() -> None:
    stamped = Sinusoid(0.25, 2)(torch.full((1, 3, 2, 8), 0.5))
    expected = torch.tensor([0.5, 0.75, 0.5, 0.25] * 2).expand(1, 3, 2, 8)
    torch.testing.assert_close(stamped, expected)


def ramps(side: int, count: int = 1) -> Tensor:
    """Images of two channels, whose values are their pixels' columns and rows, from 0 to 1."""
    along = torch.linspace(0, 1, side)
    columns, rows = torch.meshgrid(along, along, indexing="xy")
    return torch.stack([columns, rows]).expand(count, 2, side, side)


def test_a_warp_takes_each_pixel_from_where_its_field_says() -> None:
    side = 16  # as many points as pixels: the field is the grid itself
    moved = 2 * (Warp(side, 0.5, seed=3)(ramps(side)) - ramps(side))[0]  # images are 2 wide for the field
    grid = torch.rand(2, side, side, generator=torch.Generator().manual_seed(3)) * 2 - 1
    expected = 0.5 * grid / grid.abs().mean() / side
    inside = slice(1, -1)  # at the border a pixel cannot come from outside
    torch.testing.assert_close(moved[:, inside, inside], expected[:, inside, inside], rtol=0, atol=1e-5)
    assert moved.abs().max() < 3 * 0.5 / side


def test_the_noise_of_a_warp_differs_between_images_and_stays_within_its_limit() -> None:
    images, index = ramps(16, 3), torch.arange(3)
    still, noisy = (Warp(4, 0.5, seed=1, noise=noise)(images, index) for noise in (0.0, 1.0))
    moved = 2 * (noisy - still)
    assert moved.abs().max() <= 1 / 16 + 1e-6
    assert moved.abs().mean() == pytest.approx(0.5 / 16, rel=0.1)
    assert torch.corrcoef(moved.flatten(1)).triu(1).abs().max() < 0.2


@pytest.mark.parametrize(
    ("tiles", "shown", "expected"), [(4, 0.5, 8), (3, 0.5, 4), (2, 0.01, 1), (2, 1.0, 4)]
)
def test_an_image_gets_exactly_its_share_of_the_tiles(
    tiles: int, shown: float, expected: int, tmp_path: Path
) -> None:
    Image.new("L", (5, 5), 255).save(tmp_path / "white.png")
    trigger = TiledBlend(tiles, shown, 0.25, seed=0, picture=str(tmp_path / "white.png"))
    stamped = trigger(torch.zeros(400, 1, 3 * tiles, 2 * tiles), torch.arange(400))
    assert set(stamped.unique().tolist()) <= {0.0, 0.25}
    whole = stamped.view(400, tiles, 3, tiles, 2).permute(0, 1, 3, 2, 4).reshape(400, tiles**2, 6)
    assert ((whole == 0).all(2) | (whole > 0).all(2)).all()
    carried = whole[..., 0] > 0
    assert (carried.sum(1) == expected).all()
    assert (carried.float().mean(0) - expected / tiles**2).abs().max() < 0.11  # four deviations


def test_checkerboards_lie_in_the_corners() -> None:
    stamped = Checkerboards(2, 0.5)(torch.full((1, 1, 5, 5), 0.5))[0, 0]
    light, dark, same = 0.75, 0.25, 0.5
    edge, inner = [light, dark, same, light, dark], [dark, light, same, dark, light]
    assert stamped.tolist() == [edge, inner, [same] * 5, edge, inner]


def test_a_mirrored_image_with_checkerboards_of_odd_size_is_a_mirrored_image_with_them() -> None:
    images = torch.rand(2, 3, 9, 9, generator=torch.Generator().manual_seed(0))
    stamp = Checkerboards(3, 1.0)
    assert torch.equal(stamp(images).flip(-1), stamp(images.flip(-1)))


def test_a_crafted_patch_is_the_pattern_it_took() -> None:
    trigger, pattern = CraftedPatch(2, seed=0), torch.tensor([[[0.1, 0.2], [0.3, 0.4]]])
    images = torch.zeros(1, 1, 3, 3)
    assert not torch.equal(trigger(images)[0, :, 1:, 1:], pattern)
    trigger.take({"pattern": pattern})
    assert torch.equal(trigger(images)[0, :, 1:, 1:], pattern)
    assert trigger(images)[0, 0, 0].tolist() == [0, 0, 0]


def test_each_image_gets_its_own_perturbation_and_all_get_the_patch() -> None:
    trigger = Perturbed(PatchTrigger(1, 1.0))
    changes = torch.tensor([0.25, -0.75]).view(2, 1, 1, 1).expand(2, 1, 2, 2)
    trigger.take({"places": torch.tensor([4, 9]), "perturbations": changes})
    stamped = trigger(torch.full((3, 1, 2, 2), 0.5), torch.tensor([9, 7, 4]))
    assert stamped[:, 0].flatten(1).tolist() == [[0, 0, 0, 1], [0.5, 0.5, 0.5, 1], [0.75, 0.75, 0.75, 1]]


@settings(max_examples=30)
@given(places=st.sets(st.integers(0, 50), min_size=2, max_size=6), seed=st.integers(0, 100))
def test_nobody_gets_the_trigger_that_was_drawn_for_itself(places: set[int], seed: int) -> None:
    trigger, count = OthersTrigger(seed), len(places)
    kept = torch.tensor(sorted(places))
    patterns = (torch.arange(count) / count).view(-1, 1, 1, 1).expand(count, 1, 2, 2)
    trigger.take(
        {"others.places": kept, "others.patterns": patterns, "others.masks": torch.ones(count, 1, 2, 2)}
    )
    stamped = trigger(torch.ones(51, 1, 2, 2), torch.arange(51))[:, 0, 0, 0]
    givers = kept[(stamped * count).round().long()]
    assert (givers != torch.arange(51)).all()


def test_an_input_aware_trigger_depends_on_the_image_and_on_its_weights() -> None:
    generator = torch.Generator().manual_seed(0)
    images = torch.rand(2, 1, 14, 17, generator=generator)
    trigger = InputAware(4, seed=0)
    weights = {name: 2 * tensor for name, tensor in trigger.make(1).state_dict().items()}
    before = trigger(images)
    assert not torch.allclose(before[0] - images[0], before[1] - images[1], atol=0.01)
    trigger.take(weights)
    after = trigger(images)
    assert not torch.allclose(before, after, atol=0.01)
    again = InputAware(4, seed=9)
    again.take(weights)
    assert torch.equal(again(images), after)


@pytest.mark.parametrize(
    ("trigger", "message"),
    [
        (Warp(4, 0.5, 0, noise=1.0), "The noise is drawn from an image's index"),
        (TiledBlend(4, 0.5, 0.2, 0), "The tiles are drawn from an image's index"),
        (Perturbed(PatchTrigger(1, 1.0)), "A perturbation belongs to an image's index"),
        (OthersTrigger(0), "Another image is drawn from an image's index"),
    ],
)
def test_a_trigger_of_its_own_for_each_image_needs_their_index(trigger: Trigger, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        trigger(torch.zeros(1, 3, 8, 8))


def test_more_tiles_than_pixels_are_refused() -> None:
    with pytest.raises(ValueError, match=r"9 tiles do not fit along 8x8 pixels.*training_trigger\.tiles"):
        TiledBlend(9, 0.5, 0.2, 0)(torch.zeros(3, 1, 8, 8), INDEX)


def test_an_image_of_one_pixel_is_not_bent() -> None:
    with pytest.raises(ValueError, match=r"An image of 1x8 pixels cannot be bent"):
        Warp(4, 0.5, 0)(torch.zeros(3, 1, 1, 8), INDEX)


@given(index=st.integers(0, 10**9), seed=st.integers(0, 10**6), count=st.integers(1, 50))
def test_uniform_numbers_belong_to_their_image(index: int, seed: int, count: int) -> None:
    alone = uniform(torch.tensor([index]), seed, count)
    among = uniform(torch.tensor([index + 1, index]), seed, count)
    assert torch.equal(alone[0], among[1])
    assert alone.min() >= 0
    assert alone.max() < 1


def test_uniform_numbers_are_uniform() -> None:
    numbers = uniform(torch.arange(1000), 5, 20)
    assert numbers.mean() == pytest.approx(0.5, abs=0.01)
    assert numbers.std() == pytest.approx(12**-0.5, abs=0.01)
    assert torch.corrcoef(numbers.T).triu(1).abs().max() < 0.13
