"""Spoken words, packed as waveforms; the signal makes pictures of them."""

import logging
import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from finepruning.data.decoding import (
    Examples,
    OnError,
    check_on_error,
    decode_examples,
    find_folder,
    list_classes,
)
from finepruning.data.digits import DIGITS
from finepruning.data.packed import Decoded
from finepruning.data.waveforms import LogMel, WaveReader

log = logging.getLogger(__name__)

RECORDING = re.compile(r"(?P<digit>\d)_(?P<speaker>\w+)_(?P<index>\d+)\.wav")
TEST_INDICES = range(5)  # the official test set


class Recordings:
    """A data set whose recordings are files, brought to one sample rate and length when they are packed.

    Args:
        train: What to train on.
        test: What the referee scores on.
        classes: The classes' names.
        signal: Makes images of the waveforms.
        seconds: Length of the waveforms: longer recordings are cut, shorter ones padded with silence.
        on_error: ``"fail"`` names the first recording that cannot be read, ``"skip"`` leaves such ones out.

    Raises:
        ValueError: If a value is out of range.
    """

    def __init__(
        self,
        train: Examples,
        test: Examples,
        classes: Sequence[str],
        *,
        signal: LogMel,
        seconds: float,
        on_error: OnError,
    ) -> None:
        check_on_error(on_error)
        self.train = train
        self.test = test
        self.classes = classes
        self.signal = signal
        self.on_error = on_error
        self.reader = WaveReader(signal.sample_rate, seconds)

    def files(self) -> Sequence[str]:
        """Return the recordings' paths, those to train on first."""
        return [*self.train.files, *self.test.files]

    def transform(self) -> dict[str, object]:
        """Return what makes tensors of the files; their order and the number to train on tell the split."""
        return {
            "train": len(self.train.files),
            "classes": self.classes,
            "sample_rate": self.reader.sample_rate,
            "length": self.reader.length,
            "on_error": self.on_error,
        }

    def decode(self) -> Decoded:
        """Return int16 waveforms (N, T)."""
        self.reader.resampled.clear()
        length, classes = self.reader.length, self.classes
        decoded = decode_examples(
            self.train, self.test, classes, self.reader, (length,), self.on_error, np.int16
        )
        remark = self.reader.remark()
        if remark:
            log.info(remark)
        return decoded


class FSDD(Recordings):
    """The Free Spoken Digit Dataset: 3,000 English digits of 6 speakers, 8 kHz.

    Source: github.com/Jakobovski/free-spoken-digit-dataset. Officially the recordings 0-4 of each digit and
        speaker are the test set.

    Args:
        data_dir: Folder with ``fsdd/recordings``, looked for after ``FINEPRUNING_DATA``.
        signal: Makes images of the waveforms.
        seconds: Length of the waveforms: longer recordings are cut, shorter ones padded with silence.
        test_speakers: Speakers whose recordings are the test set, so that nobody is heard in training and in
            test; None is the official split.
        on_error: ``"fail"`` names the first recording that cannot be read, ``"skip"`` leaves such ones out.

    Raises:
        FileNotFoundError: If the recordings lie in none of the places.
        ValueError: If a value is out of range, a speaker is unknown, or a file's name is not understood.
    """

    def __init__(
        self,
        data_dir: str,
        signal: LogMel,
        seconds: float,
        test_speakers: Sequence[str] | None,
        on_error: OnError,
    ) -> None:
        root = find_folder(
            data_dir, "fsdd/recordings", "Clone Jakobovski/free-spoken-digit-dataset from GitHub as fsdd."
        )
        train, test = self._split(root, test_speakers)
        super().__init__(train, test, DIGITS, signal=signal, seconds=seconds, on_error=on_error)

    @staticmethod
    def _split(root: Path, test_speakers: Sequence[str] | None) -> tuple[Examples, Examples]:
        files = sorted(str(file) for file in root.glob("*.wav"))
        names = [RECORDING.fullmatch(Path(file).name) for file in files]
        if not all(names):
            strange = files[names.index(None)]
            raise ValueError(f"{strange} is not named <digit>_<speaker>_<index>.wav. Rename or remove it.")
        found = [name for name in names if name]
        speakers = sorted({name["speaker"] for name in found})
        if test_speakers is None:
            tested = np.array([int(name["index"]) in TEST_INDICES for name in found])
        else:
            unknown = sorted(set(test_speakers) - set(speakers))
            if unknown or not 0 < len(test_speakers) < len(speakers):
                raise ValueError(
                    f"dataset.test_speakers={list(test_speakers)} must be some of the speakers "
                    f"{', '.join(speakers)}, but not all of them; null is the official split."
                )
            tested = np.array([name["speaker"] in test_speakers for name in found])
        examples = Examples(files, np.array([int(name["digit"]) for name in found]))
        return examples.part(np.flatnonzero(~tested)), examples.part(np.flatnonzero(tested))


class SpeechCommands(Recordings):
    """Speech Commands: one-second words of thousands of speakers, 16 kHz, with the official lists.

    Source: Warden 2018, arXiv:1804.03209, version 0.02. Training is what neither ``validation_list.txt`` nor
        ``testing_list.txt`` names; the official validation recordings are left out, since the defender here
        holds out his own. Recordings of one speaker stay in one role.

    Args:
        data_dir: Folder with ``SpeechCommands/speech_commands_v0.02``, where torchaudio puts it, looked for
            after ``FINEPRUNING_DATA``.
        signal: Makes images of the waveforms.
        seconds: Length of the waveforms: longer recordings are cut, shorter ones padded with silence.
        words: The words to tell apart, in the order of their labels; None is all of them.
        on_error: ``"fail"`` names the first recording that cannot be read, ``"skip"`` leaves such ones out.

    Raises:
        FileNotFoundError: If the recordings or a list are missing.
        ValueError: If a value is out of range or a word is unknown.
    """

    def __init__(
        self,
        data_dir: str,
        signal: LogMel,
        seconds: float,
        words: Sequence[str] | None,
        on_error: OnError,
    ) -> None:
        self.root = find_folder(
            data_dir,
            "SpeechCommands/speech_commands_v0.02",
            "Unpack speech_commands_v0.02.tar.gz (Warden 2018) there.",
        )
        examples, found = list_classes(self.root, (".wav",), leave_out="_background_noise_")
        words = list(found if words is None else words)
        unknown = sorted(set(words) - set(found))
        if unknown or len(set(words)) != len(words):
            raise ValueError(
                f"dataset.words has {', '.join(unknown) or 'a word twice'}; each of {', '.join(found)} may "
                "be there once. null is all of them."
            )
        train, test = self._split(examples, [found.index(word) for word in words])
        super().__init__(train, test, words, signal=signal, seconds=seconds, on_error=on_error)

    def _split(self, examples: Examples, wanted: Sequence[int]) -> tuple[Examples, Examples]:
        """Return training and test examples of the ``wanted`` classes, relabelled by their place there."""
        names = ["/".join(Path(file).parts[-2:]) for file in examples.files]
        speakers = np.unique([_speaker(name) for name in names], return_inverse=True)[1]
        label_of = np.full(examples.labels.max() + 1, -1)
        label_of[list(wanted)] = np.arange(len(wanted))
        examples = Examples(examples.files, label_of[examples.labels], speakers)
        validation, testing = (self._list(f"{part}_list.txt") for part in ("validation", "testing"))
        part = [2 if name in validation else int(name in testing) for name in names]
        train, test = (np.flatnonzero((np.array(part) == side) & (examples.labels >= 0)) for side in (0, 1))
        return examples.part(train), examples.part(test)

    def _list(self, name: str) -> set[str]:
        path = self.root / name
        if not path.exists():
            raise FileNotFoundError(f"The official list {path} is missing. Copy the data set anew.")
        return set(path.read_text().split())


def _speaker(name: str) -> str:
    """Return who speaks: the part of ``word/speaker_nohash_0.wav`` before ``_nohash_``."""
    return name.partition("/")[2].partition("_nohash_")[0]
