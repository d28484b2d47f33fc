import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given, settings
from pytorch_lightning import Trainer
from torch import Tensor, nn

from finepruning.attacks import Attack
from finepruning.attacks.triggers import PatchTrigger
from finepruning.data import AttackerData, Augment, DefenderData, ImageSet
from finepruning.data.images import Pixels
from finepruning.modules import CleanClassifier


def some_images(count: int = 64, channels: int = 3, height: int = 12, width: int = 10) -> Tensor:
    return torch.rand(count, channels, height, width, generator=torch.Generator().manual_seed(0))


def windows(image: Tensor, rows: int, columns: int) -> list[Tensor]:
    """Every shift of an image (C, H, W), made one by one."""
    height, width = image.shape[1:]
    return [
        image[:, [min(max(row + down, 0), height - 1) for row in range(height)]][
            :, :, [min(max(column + right, 0), width - 1) for column in range(width)]
        ]
        for down in range(-rows, rows + 1)
        for right in range(-columns, columns + 1)
    ]


@settings(max_examples=40)
@given(
    shift=st.one_of(st.integers(0, 14), st.tuples(st.integers(0, 3), st.integers(0, 3))),
    flip=st.booleans(),
    gain=st.floats(0, 3),
    noise=st.floats(0, 1),
    channels=st.sampled_from([1, 3]),
    count=st.integers(1, 5),
)
def test_shape_type_and_range_are_kept_and_the_input_is_untouched(
    shift: int | tuple[int, int], flip: bool, gain: float, noise: float, channels: int, count: int
) -> None:
    images = some_images(count, channels)
    before = images.clone()
    changed = Augment(shift, flip, gain, noise)(images)
    assert changed.shape == images.shape
    assert changed.dtype == images.dtype
    assert changed.min() >= 0
    assert changed.max() <= 1
    assert torch.equal(images, before)


@pytest.mark.parametrize(
    "augment",
    [Augment(2), Augment(flip=True), Augment(gain=0.5), Augment(noise=0.1), Augment(1, True, 0.5, 0.1)],
)
def test_the_seed_decides_every_change(augment: Augment) -> None:
    images = some_images()
    first, again, other = (augment(images) for seed in (1, 1, 2) if torch.manual_seed(seed))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert not torch.equal(first, images)


@pytest.mark.parametrize(("rows", "columns"), [(2, 2), (0, 3), (1, 0)])
def test_a_shift_is_one_of_all_shifts_and_repeats_the_border(rows: int, columns: int) -> None:
    torch.manual_seed(0)
    images = some_images(200)
    drawn = set()
    for image, shifted in zip(images, Augment([rows, columns])(images), strict=True):
        equal = [
            number for number, window in enumerate(windows(image, rows, columns)) if window.equal(shifted)
        ]
        assert len(equal) == 1
        drawn.update(equal)
    assert drawn == set(range((2 * rows + 1) * (2 * columns + 1)))


def test_about_half_of_the_images_are_mirrored_and_the_others_are_not() -> None:
    torch.manual_seed(0)
    images = some_images(400)
    changed = Augment(flip=True)(images)
    mirrored = (changed == images.flip(-1)).flatten(1).all(1)
    assert torch.equal(~mirrored, (changed == images).flatten(1).all(1))
    assert 150 < mirrored.sum() < 250


def test_noise_has_the_deviation_that_was_asked_for() -> None:
    torch.manual_seed(0)
    images = torch.full((64, 3, 32, 32), 0.5)
    noise = Augment(noise=0.05)(images) - images
    assert noise.std().item() == pytest.approx(0.05, rel=0.02)
    assert noise.mean().item() == pytest.approx(0.0, abs=0.001)


@pytest.mark.parametrize("shift", [-1, [2], [1, -2], [1, 2, 3]])
def test_a_shift_that_is_no_size_in_pixels_is_refused(shift: int | list[int]) -> None:
    with pytest.raises(ValueError, match=r"augment\.shift"):
        Augment(shift)


def test_gain_scales_each_image_by_one_factor() -> None:
    images = torch.full((500, 3, 4, 4), 0.01)
    factors = Augment(gain=0.5)(images) / images
    assert torch.equal(factors.amin((1, 2, 3)), factors.amax((1, 2, 3)))
    assert factors[:, 0, 0, 0].log().std().item() == pytest.approx(0.5, rel=0.1)


def test_a_negative_gain_is_refused() -> None:
    with pytest.raises(ValueError, match=r"A gain of -1 is below 0\. Change augment\.gain"):
        Augment(gain=-1)


@pytest.mark.parametrize("noise", [-0.1, 1.5])
def test_noise_out_of_range_is_refused(noise: float) -> None:
    with pytest.raises(ValueError, match=r"augment\.noise"):
        Augment(noise=noise)


class Watcher(nn.Module):
    """Remembers the images that it is given while it trains and while it does not."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(1, 2)
        self.seen: dict[bool, list[Tensor]] = {True: [], False: []}

    def forward(self, images: Tensor) -> Tensor:
        self.seen[self.training].append(images.detach().clone())
        logits: Tensor = self.head(images.mean((1, 2, 3))[:, None])
        return logits


class Darken(nn.Module):
    def forward(self, images: Tensor) -> Tensor:
        return images * 0.5


def fit(data: AttackerData | DefenderData, epochs: int = 1) -> dict[bool, list[Tensor]]:
    network = Watcher()
    trainer = Trainer(
        max_epochs=epochs,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        use_distributed_sampler=False,
    )
    trainer.fit(CleanClassifier(network, learning_rate=1e-3, seed=3), datamodule=data)
    return network.seen


def white_images(count: int = 8) -> ImageSet:
    raw = torch.full((count, 1, 6, 6), 255, dtype=torch.uint8)
    return ImageSet.whole(raw, torch.tensor([0, 1] * (count // 2)), Pixels())


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_only_training_images_are_changed_and_only_after_they_are_triggered() -> None:
    clean = white_images()
    poisoned = Attack(PatchTrigger(2, 0.5), poison_rate=0.5, target_label=0).poison(clean)
    seen = fit(AttackerData(poisoned, [clean], batch_size=8, seed=0, augment=Darken()))
    assert torch.equal(seen[False][0], torch.ones(8, 1, 6, 6))
    assert torch.equal(seen[True][0][:, :, 0, 0], torch.full((8, 1), 0.5))
    assert (seen[True][0][:, :, -1, -1] == 0.25).sum() == 4  # stamped with 0.5, then halved


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_the_defenders_validation_images_are_never_changed() -> None:
    seen = fit(DefenderData(white_images(), white_images(4), batch_size=8, seed=0, augment=Darken()))
    assert torch.equal(seen[False][0], torch.ones(4, 1, 6, 6))
    assert torch.equal(seen[True][0], torch.full((8, 1, 6, 6), 0.5))


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_two_trainings_see_the_same_changes_and_two_epochs_do_not() -> None:
    raw = (some_images(16, 1, 8, 8) * 255).to(torch.uint8)
    images = ImageSet.whole(raw, torch.tensor([0, 1] * 8), Pixels())
    first, again = (
        fit(AttackerData(images, [images], 16, 0, Augment(2, noise=0.1)), epochs=2)[True] for _ in range(2)
    )
    assert torch.equal(torch.stack(first), torch.stack(again))
    assert not torch.equal(first[0].sort(0).values, first[1].sort(0).values)
