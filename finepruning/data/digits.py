"""Handwritten digits: scikit-learn's embedded ones and MNIST."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
import torchvision
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

from finepruning.data.images import Pixels
from finepruning.data.packed import Decoded, data_roots

DIGITS = tuple("0123456789")


class Digits:
    """The 1,797 digits of 8x8 pixels that ship inside scikit-learn, enlarged. Needs no file and no network.

    Source: Optical Recognition of Handwritten Digits, Alpaydin and Kaynak 1998, UCI; a fixed stratified
        quarter is the test set.

    Args:
        size: Side of the enlarged images, in pixels. At least 8.
    """

    def __init__(self, size: int) -> None:
        if size < 8:
            raise ValueError(f"dataset.size={size} is below the digits' own 8 pixels. Set it to 8 or more.")
        self.size = size
        self.signal = Pixels()

    def files(self) -> Sequence[Path]:
        """Return no file: the digits are part of scikit-learn."""
        return ()

    def transform(self) -> dict[str, object]:
        """Return the size."""
        return {"size": self.size}

    def decode(self) -> Decoded:
        """Return uint8 images (N, 1, size, size)."""
        small, labels = load_digits(return_X_y=True)
        images = torch.from_numpy(small).float().view(-1, 1, 8, 8) * (255 / 16)
        large = torch.nn.functional.interpolate(images, size=self.size, mode="bilinear", align_corners=False)
        packed = large.round().to(torch.uint8).numpy()
        train, test = train_test_split(
            np.arange(len(labels)), test_size=0.25, stratify=labels, random_state=0
        )
        return Decoded(packed[train], labels[train], packed[test], labels[test], DIGITS)


class MNIST:
    """The 70,000 digits of MNIST, 28x28 pixels, with the official test set.

    Source: LeCun et al. 1998. Looked for in ``FINEPRUNING_DATA``, then in ``data_dir``, then downloaded
        there.

    Args:
        data_dir: Folder with ``MNIST/raw``, or the folder that a download may fill.

    Raises:
        FileNotFoundError: If the digits lie in none of the places and cannot be downloaded.
    """

    def __init__(self, data_dir: str) -> None:
        self.signal = Pixels()
        self.root = self._find(data_dir)
        self.folder = self.root / "MNIST" / "raw"

    def files(self) -> Sequence[Path]:
        """Return the IDX files."""
        return sorted(self.folder.glob("*-ubyte"))

    def transform(self) -> dict[str, object]:
        """Return nothing: the images are kept as they are."""
        return {}

    def decode(self) -> Decoded:
        """Return uint8 images (N, 1, 28, 28)."""
        try:
            parts = [torchvision.datasets.MNIST(self.root, train=train) for train in (True, False)]
        except (ValueError, RuntimeError, OSError, IndexError, AssertionError) as error:
            raise ValueError(
                f"The MNIST files in {self.folder} are damaged ({error}). Delete that folder and run again "
                "to download them, or copy them anew."
            ) from error
        (train, train_labels), (test, test_labels) = (
            (part.data.numpy(), part.targets.numpy()) for part in parts
        )
        for images, labels in ((train, train_labels), (test, test_labels)):
            if len(images) != len(labels) or images.shape[1:] != (28, 28) or labels.max() > 9:
                raise ValueError(f"The MNIST files in {self.folder} are damaged: images and labels differ.")
        return Decoded(train[:, None], train_labels, test[:, None], test_labels, DIGITS)

    @staticmethod
    def _find(data_dir: str) -> Path:
        roots = data_roots(data_dir)
        for root in roots:
            if any((root / "MNIST" / "raw").glob("*-ubyte")):
                return root
        try:
            torchvision.datasets.MNIST(data_dir, train=True, download=True)
        except (RuntimeError, OSError) as error:
            looked = ", ".join(str(root / "MNIST" / "raw") for root in roots)
            raise FileNotFoundError(
                f"MNIST was not found (looked in {looked}) and the download failed ({error}). Set "
                "FINEPRUNING_DATA to a folder that holds MNIST/raw, or set data_dir to one, or connect to "
                "the internet for the download."
            ) from error
        return Path(data_dir)
