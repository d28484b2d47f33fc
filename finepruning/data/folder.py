"""Any folder of images with one sub-folder a class."""

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from torchvision.datasets.folder import IMG_EXTENSIONS

from finepruning.data.decoding import OnError, list_classes, split_stratified
from finepruning.data.image_files import ImageFiles
from finepruning.data.packed import DATA_VARIABLE, data_roots


class Folder(ImageFiles):
    """Images of any size and mode in one sub-folder a class; a fixed share of each class is the test set.

    Args:
        root: The folder; a relative path is looked for here, then in ``FINEPRUNING_DATA``.
        size: Height and width that all images are scaled to, in pixels. At least 1.
        channels: 3 for colour (grey is repeated), 1 for grey.
        test_share: Share of each class for the test set, in (0, 1).
        on_error: ``"fail"`` names the first image that cannot be read, ``"skip"`` leaves such images out.
        on_empty: ``"fail"`` names the first sub-folder without an image, ``"keep"`` counts it as a class: one
            that a stranger's network knows, and of which the defender has no image.

    Raises:
        FileNotFoundError: If there is no such folder.
        ValueError: If a value is out of range, a class is empty, or there are fewer than two.
    """

    def __init__(
        self,
        root: str | None,
        size: Sequence[int],
        channels: int,
        test_share: float,
        on_error: OnError,
        on_empty: Literal["fail", "keep"] = "fail",
    ) -> None:
        if on_empty not in ("fail", "keep"):
            raise ValueError(f"dataset.on_empty={on_empty!r} is unknown; choose fail or keep.")
        examples, classes = list_classes(self._find(root), IMG_EXTENSIONS, min_files=int(on_empty == "fail"))
        train, test = split_stratified(examples, classes, test_share)
        super().__init__(train, test, classes, size=size, channels=channels, on_error=on_error)

    @staticmethod
    def _find(root: str | None) -> Path:
        if not root:
            raise ValueError(
                "dataset=folder needs dataset.root: a folder with one sub-folder of images a class."
            )
        places = [Path(root).expanduser(), *(place / root for place in data_roots(""))]
        for place in places:
            if place.is_dir():
                return place
        raise FileNotFoundError(
            f"dataset.root={root} is no folder (looked for {' and '.join(str(place) for place in places)}). "
            f"Set it to a folder with one sub-folder of images a class, in {DATA_VARIABLE} or anywhere."
        )
