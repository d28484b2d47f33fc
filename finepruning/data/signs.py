"""Traffic signs: the German benchmark and Italian street photographs."""

import csv
import logging
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torchvision.datasets.utils import download_and_extract_archive

from finepruning.data.decoding import Examples, OnError, find_folder, list_classes
from finepruning.data.image_files import ImageFiles
from finepruning.data.packed import DATA_VARIABLE, data_roots
from finepruning.data.splits import split_groups

log = logging.getLogger(__name__)
HOST = "https://sid.erda.dk/public/archives/daaeac0d7ce1152aea9b61d9f1e19370"
ARCHIVES = {  # and their MD5
    "GTSRB_Final_Training_Images.zip": "f33fd80ac59bff73c82d25ab499e03a3",
    "GTSRB_Final_Test_Images.zip": "c7e4e6327067d32654124b0fe9e82185",
    "GTSRB_Final_Test_GT.zip": "fe31e9c9270bbcd7b84b7f21a9d9d9e5",
}
TRAINING, *TEST = ARCHIVES
GERMAN_TRAINING = 39_209  # images of the final training set
COMPETITION = 26_640  # of the first one, which torchvision downloads
GERMAN_SIGNS = (
    "speed limit 20",
    "speed limit 30",
    "speed limit 50",
    "speed limit 60",
    "speed limit 70",
    "speed limit 80",
    "end of speed limit 80",
    "speed limit 100",
    "speed limit 120",
    "no passing",
    "no passing for trucks",
    "right of way at the next intersection",
    "priority road",
    "yield",
    "stop",
    "no vehicles",
    "no trucks",
    "no entry",
    "danger",
    "dangerous curve to the left",
    "dangerous curve to the right",
    "double curve",
    "bumpy road",
    "slippery road",
    "road narrows on the right",
    "road work",
    "traffic signals",
    "pedestrians",
    "children crossing",
    "bicycles crossing",
    "ice or snow",
    "wild animals crossing",
    "end of all limits",
    "turn right ahead",
    "turn left ahead",
    "ahead only",
    "straight or right",
    "straight or left",
    "keep right",
    "keep left",
    "roundabout",
    "end of no passing",
    "end of no passing for trucks",
)


class GTSRB(ImageFiles):
    """The German Traffic Sign Recognition Benchmark: 39,209 training and 12,630 official test images.

    Source: Stallkamp et al. 2012, Neural Networks 32. Looked for in ``FINEPRUNING_DATA``, then in
        ``data_dir``, then downloaded there. Training images lie in ``Final_Training/Images``, as the archive
        unpacks, or in ``Training``, where torchvision puts the smaller set of the first competition; a set
        of another size is used with a warning.

    The training images are tracks of 30 pictures of one sign. Tracks are split between the roles: the
    smallest classes have seven of them, too few to keep together. Test images are of other signs, and a
    validation image is like them only if no other of its track was tuned on.

    Args:
        data_dir: Folder with ``gtsrb``, or the folder that a download may fill.
        size: Height and width that images are scaled to, in pixels.
        on_error: ``"fail"`` names the first image that cannot be read, ``"skip"`` leaves such images out.

    Raises:
        FileNotFoundError: If the images lie in none of the places and cannot be downloaded.
        ValueError: If a value is out of range or the folder is not whole.
    """

    def __init__(self, data_dir: str, size: Sequence[int], on_error: OnError) -> None:
        self.root = self._find(data_dir)
        self.annotations = self.root / "GT-final_test.csv"
        super().__init__(
            self._list_training(),
            self._list_test(),
            GERMAN_SIGNS,
            size=size,
            channels=3,
            on_error=on_error,
        )

    def files(self) -> Sequence[str]:
        """Return the images' paths and the test labels' file."""
        return [*super().files(), str(self.annotations)]

    def _list_training(self) -> Examples:
        root = _training_folder(self.root)
        examples, folders = list_classes(root, (".ppm",))
        if folders != [f"{label:05}" for label in range(len(GERMAN_SIGNS))]:
            raise ValueError(
                f"{root} has {len(folders)} class folders instead of 00000..00042. Delete the folder gtsrb "
                "and run again to download it, or copy it anew."
            )
        if len(examples.files) != GERMAN_TRAINING:
            log.warning(_size_remark(root, len(examples.files), self.root))
        # .../00012/00003_00029.ppm: class, track of the class, frame
        named = [path.rsplit("_", 1)[0] for path in examples.files]
        return examples._replace(tracks=np.unique(named, return_inverse=True)[1])

    def _list_test(self) -> Examples:
        try:
            with self.annotations.open(newline="") as file:
                rows = [(row["Filename"], int(row["ClassId"])) for row in csv.DictReader(file, delimiter=";")]
        except (OSError, KeyError, TypeError, ValueError) as error:
            raise ValueError(
                f"{self.annotations} does not tell the test images' labels ({error!r}). Download or copy it "
                "anew."
            ) from error
        folder = self.root / "GTSRB" / "Final_Test" / "Images"
        return Examples([f"{folder}/{name}" for name, _ in rows], np.array([label for _, label in rows]))

    @staticmethod
    def _find(data_dir: str) -> Path:
        roots = [root / "gtsrb" for root in data_roots(data_dir)]
        for root in roots:
            if _training_folder(root).is_dir() and (root / "GTSRB" / "Final_Test").is_dir():
                return root
        root = Path(data_dir).expanduser() / "gtsrb"
        try:
            _download(root)
        except (RuntimeError, OSError) as error:
            looked = ", ".join(str(root) for root in roots)
            raise FileNotFoundError(
                f"GTSRB was not found (looked in {looked}) and the download failed ({error}). Set "
                f"{DATA_VARIABLE} to a folder that holds gtsrb/GTSRB, or set data_dir to one, or connect to "
                "the internet for the download."
            ) from error
        return root


def _training_folder(root: Path) -> Path:
    """Return where the training images lie, as one archive or the other unpacks."""
    final = root / "GTSRB" / "Final_Training" / "Images"
    return final if final.is_dir() else root / "GTSRB" / "Training"


def _download(root: Path) -> None:
    """Fetch what is not there yet. torchvision's own class fetches the smaller training set."""
    missing = [] if _training_folder(root).is_dir() else [TRAINING]
    missing += [] if (root / "GTSRB" / "Final_Test").is_dir() else TEST
    for name in missing:
        download_and_extract_archive(f"{HOST}/{name}", download_root=str(root), md5=ARCHIVES[name])


def _size_remark(folder: Path, count: int, root: Path) -> str:
    """Return a sentence on a training set of another size."""
    smaller = " It is the smaller set that torchvision downloads." if count == COMPETITION else ""
    return (
        f"{folder} has {count:,} images, not the {GERMAN_TRAINING:,} of the final training set.{smaller} For "
        f"the whole set unpack {HOST}/{TRAINING} in {root}; Final_Training is read before Training."
    )


class ItalianSigns(ImageFiles):
    """Italian traffic signs, cut out of street photographs: 3,456 images of 49 classes.

    Source: github.com/marcomoauro/traffic-sign-dataset, classes with at least 30 images. A file's name is
        ``<frame>_<box>``; all boxes of a frame stay on one side of every split, since they share light,
        camera and often the very sign.

    Args:
        data_dir: Folder with ``italian_signs``, looked for after ``FINEPRUNING_DATA``.
        size: Height and width that images are scaled to, in pixels.
        test_share: Share of each class for the test set, in (0, 1), as nearly as whole frames allow.
        on_error: ``"fail"`` names the first image that cannot be read, ``"skip"`` leaves such images out.

    Raises:
        FileNotFoundError: If the images lie in none of the places.
        ValueError: If a value is out of range or a file's name has no frame.
    """

    def __init__(self, data_dir: str, size: Sequence[int], test_share: float, on_error: OnError) -> None:
        if not 0 < test_share < 1:
            raise ValueError(
                f"dataset.test_share={test_share:g} leaves one side empty. Choose it inside (0, 1)."
            )
        root = find_folder(
            data_dir, "italian_signs", "Cut the signs out of marcomoauro/traffic-sign-dataset on GitHub."
        )
        examples, classes = list_classes(root, (".png",))
        frames = np.array([_frame(file) for file in examples.files])
        train, test = split_whole(examples._replace(groups=frames), classes, test_share)
        super().__init__(train, test, classes, size=size, channels=3, on_error=on_error)


def split_whole(examples: Examples, classes: Sequence[str], test_share: float) -> tuple[Examples, Examples]:
    """Return training and test examples, no group divided, whatever the run's seed.

    Raises:
        ValueError: If a class comes out empty.
    """
    sizes = np.bincount(examples.labels).tolist()
    quota = [round(test_share * size) for size in sizes]
    labels, groups = torch.from_numpy(examples.labels), torch.from_numpy(examples.groups)
    part = split_groups(labels, groups, [quota], torch.Generator().manual_seed(0)).numpy()
    train, test = (examples.part(np.flatnonzero(part == side)) for side in (0, 1))
    for name, side in (("training", train), ("test", test)):
        found = np.bincount(side.labels, minlength=len(sizes))
        if not found.all():
            raise ValueError(
                f"Class {classes[int(found.argmin())]!r} has no {name} image with dataset.test_share="
                f"{test_share:g}, frames kept whole. Change it."
            )
    return train, test


def _frame(file: str) -> int:
    frame, _, box = Path(file).stem.partition("_")
    if not (frame.isdecimal() and box.isdecimal()):
        raise ValueError(f"{file} is not named <frame>_<box>.png, both of them numbers.")
    return int(frame)
