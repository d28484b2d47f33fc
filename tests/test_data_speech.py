"""Data sets of speech: who speaks in which part, and what becomes of recordings that do not fit."""

import logging
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from finepruning.data import ImageSet, Packed, pack, split_roles
from finepruning.data.speech import FSDD, SpeechCommands
from tests.test_waveforms import TONE, log_mel, write_pcm


@pytest.fixture
def fsdd_root(tmp_path: Path) -> Path:
    recordings = tmp_path / "data" / "fsdd" / "recordings"
    recordings.mkdir(parents=True)
    for digit in range(3):
        for speaker in ("ann", "bob"):
            for index in range(12):
                write_pcm(recordings / f"{digit}_{speaker}_{index}.wav", TONE[:4000] / (digit + 1))
    return tmp_path / "data"


@pytest.fixture
def fsdd(fsdd_root: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., FSDD]:
    monkeypatch.delenv("FINEPRUNING_DATA", raising=False)

    def make(**changes: object) -> FSDD:
        given = {"signal": log_mel(), "seconds": 0.6, "test_speakers": None, "on_error": "fail"} | changes
        return FSDD(str(fsdd_root), **given)  # type: ignore[arg-type]

    return make


def test_the_first_five_recordings_are_the_official_test(fsdd: Callable[..., FSDD], tmp_path: Path) -> None:
    packed = pack(fsdd(), tmp_path / "cache")
    assert packed.train.shape == (3 * 2 * 7, 4800)
    assert packed.train.dtype == torch.int16
    assert packed.test.shape == (3 * 2 * 5, 4800)
    assert {Path(file).stem.rsplit("_", 1)[1] for file in fsdd().test.files} == set("01234")


def test_a_speaker_is_heard_in_training_or_in_test(fsdd: Callable[..., FSDD]) -> None:
    source = fsdd(test_speakers=["bob"])
    heard = [{Path(file).stem.split("_")[1] for file in part.files} for part in (source.train, source.test)]
    assert heard == [{"ann"}, {"bob"}]


def test_unknown_speakers_and_all_of_them_are_refused(fsdd: Callable[..., FSDD]) -> None:
    for speakers in (["eve"], ["ann", "bob"], []):
        with pytest.raises(
            ValueError, match=r"test_speakers=.* must be some of the speakers ann, bob, but not"
        ):
            fsdd(test_speakers=speakers)


def test_a_strange_file_name_is_told(fsdd: Callable[..., FSDD], fsdd_root: Path) -> None:
    write_pcm(fsdd_root / "fsdd" / "recordings" / "noise.wav", TONE)
    with pytest.raises(ValueError, match=r"noise.wav is not named <digit>_<speaker>_<index>.wav"):
        fsdd()


def test_a_truncated_recording_among_many_is_named_or_left_out(
    fsdd: Callable[..., FSDD], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    bad = Path(fsdd().train.files[17])
    bad.write_bytes(bad.read_bytes()[:500])
    with pytest.raises(ValueError, match=rf"{bad} cannot be read \(truncated"):
        pack(fsdd(), tmp_path / "cache")
    packed = pack(fsdd(on_error="skip"), tmp_path / "cache")
    assert f"Left out 1 of 42 files that cannot be read: {bad}" in caplog.text
    loud = packed.train.abs().amax(1) / 32768
    assert packed.train_labels.tolist() == (0.5 / loud - 1).round().long().tolist()


def test_resampling_is_said_once(
    fsdd: Callable[..., FSDD], fsdd_root: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for index in range(3):
        write_pcm(fsdd_root / "fsdd" / "recordings" / f"0_ann_{index}.wav", TONE, rate=16000)
    with caplog.at_level(logging.INFO, "finepruning"):
        pack(fsdd(), tmp_path / "cache")
    assert caplog.text.count("Resampled recordings to 8000 Hz: 3 at 16000 Hz.") == 1


def test_missing_recordings_are_told_with_place_source_and_variable(tmp_path: Path) -> None:
    with pytest.raises(
        FileNotFoundError, match=r"fsdd/recordings. Clone .* set FINEPRUNING_DATA or data_dir"
    ):
        FSDD(str(tmp_path), log_mel(), 1.0, None, "fail")


def test_another_picture_of_the_same_sound_is_another_data_set(
    fsdd: Callable[..., FSDD], tmp_path: Path
) -> None:
    first, same, other = (
        pack(fsdd(signal=log_mel(floor=floor)), tmp_path / "cache").fingerprint for floor in (-60, -60, -50)
    )
    assert first == same
    assert first != other


def test_packed_sound_becomes_pictures(fsdd: Callable[..., FSDD], tmp_path: Path) -> None:
    packed: Packed = pack(fsdd(), tmp_path / "cache")
    images = ImageSet.whole(packed.train, packed.train_labels, packed.signal)
    assert images.image_shape == (1, 64, 38)
    batch = next(images.batches(8))[0]
    assert batch.min() == 0
    assert 0.5 < batch.max() <= 1


@pytest.fixture
def commands_root(tmp_path: Path) -> Path:
    root = tmp_path / "data" / "SpeechCommands" / "speech_commands_v0.02"
    (root / "_background_noise_").mkdir(parents=True)
    write_pcm(root / "_background_noise_" / "pink.wav", TONE, rate=16000)
    for word in ("yes", "no", "up"):
        (root / word).mkdir()
        for speaker in range(12):
            for take in range(2):
                write_pcm(root / word / f"{speaker:08x}_nohash_{take}.wav", TONE, rate=16000)
    for part, speaker in (("validation", 0), ("testing", 1)):
        lines = [
            f"{word}/{speaker:08x}_nohash_{take}.wav\n" for word in ("yes", "no", "up") for take in (0, 1)
        ]
        (root / f"{part}_list.txt").write_text("".join(lines))
    return tmp_path / "data"


def commands(root: Path, words: list[str] | None = None) -> SpeechCommands:
    return SpeechCommands(
        str(root), log_mel(sample_rate=16000, n_fft=1024, hop_length=256), 1.0, words, "fail"
    )


@pytest.fixture(autouse=True)
def _no_real_data(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("FINEPRUNING_DATA", raising=False)


def test_speech_commands_follow_the_official_lists(commands_root: Path, tmp_path: Path) -> None:
    source = commands(commands_root)
    packed = pack(source, tmp_path / "cache")
    assert packed.classes == ("no", "up", "yes")
    assert packed.train.shape == (3 * 10 * 2, 16000)
    assert packed.test_labels.bincount().tolist() == [2, 2, 2]
    assert {Path(file).name[:8] for file in source.test.files} == {"00000001"}
    assert "00000000" not in {Path(file).name[:8] for file in source.train.files}


def test_a_speaker_of_commands_stays_in_one_role(commands_root: Path, tmp_path: Path) -> None:
    packed = pack(commands(commands_root), tmp_path / "cache")
    assert packed.train_groups is not None
    roles = split_roles(packed.train_labels, packed.classes, 0.4, 0.5, 1, packed.train_groups)
    speakers = [set(packed.train_groups[rows].tolist()) for rows in roles]
    assert sum(len(some) for some in speakers) == len(set.union(*speakers)) == 10


def test_chosen_words_get_their_labels_in_order(commands_root: Path, tmp_path: Path) -> None:
    source = commands(commands_root, ["yes", "no"])
    assert pack(source, tmp_path / "cache").classes == ("yes", "no")
    assert {
        Path(f).parent.name
        for f, label in zip(source.train.files, source.train.labels, strict=True)
        if label == 0
    } == {"yes"}
    with pytest.raises(ValueError, match=r"dataset.words has maybe; each of no, up, yes may be there once"):
        commands(commands_root, ["yes", "maybe"])
    with pytest.raises(ValueError, match=r"dataset.words has a word twice"):
        commands(commands_root, ["yes", "yes"])


def test_a_missing_list_is_told(commands_root: Path) -> None:
    (commands_root / "SpeechCommands" / "speech_commands_v0.02" / "testing_list.txt").unlink()
    with pytest.raises(FileNotFoundError, match=r"official list .*testing_list.txt is missing"):
        commands(commands_root)
