"""Files of weights are hostile: none runs code, and whatever is wrong with one is our own error."""

import copy
import io
import pickle
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from finepruning.suspect import PictureTrigger, UnreadableError
from tests.weight_files import WRITERS, load, tiny, write_keras

MUTANTS = 200  # of each kind of file


class Bomb:
    """Unpickled, it makes a file."""

    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.trace,)


def raw_pickle(bomb: Any, path: Path) -> None:
    path.write_bytes(pickle.dumps({"state_dict": bomb}))


def torch_zip(bomb: Any, path: Path) -> None:
    torch.save({"state_dict": {"conv.weight": torch.ones(2)}, "callbacks": bomb}, path)


def torch_legacy(bomb: Any, path: Path) -> None:
    torch.save(bomb, path, _use_new_zipfile_serialization=False)


def zip_with_a_swapped_pickle(bomb: Any, path: Path) -> None:
    """A sound file of weights whose one pickle is replaced."""
    buffer = io.BytesIO()
    torch.save(tiny().state_dict(), buffer)
    with zipfile.ZipFile(buffer) as source, zipfile.ZipFile(path, "w") as target:
        for name in source.namelist():
            content = pickle.dumps(bomb) if name.endswith("data.pkl") else source.read(name)
            target.writestr(name, content)


def plain_zip(bomb: Any, path: Path) -> None:
    with zipfile.ZipFile(path, "w") as target:
        target.writestr("weights.pkl", pickle.dumps(bomb))


BOMBS = (raw_pickle, torch_zip, torch_legacy, zip_with_a_swapped_pickle, plain_zip)


@pytest.mark.parametrize("ending", [".pt", ".pth", ".ckpt", ".bin", ".safetensors", ".h5"])
@pytest.mark.parametrize("plant", BOMBS)
def test_a_pickle_that_runs_code_is_refused_and_does_not_run(
    plant: Callable[[Any, Path], None], ending: str, tmp_path: Path
) -> None:
    trace, path = tmp_path / "exploded", tmp_path / f"bomb{ending}"
    plant(Bomb(trace), path)
    with pytest.raises(UnreadableError, match=r"cannot be read as weights alone|not a sound HDF5 file"):
        load(tiny(), path)
    assert not trace.exists()


def test_names_in_a_file_cannot_reach_the_terminal(tmp_path: Path) -> None:
    torch.save({"\x1b]0;owned\x07\n": torch.ones(3)}, tmp_path / "named.pt")
    with pytest.raises(UnreadableError) as refused:
        load(tiny(), tmp_path / "named.pt")
    assert str(refused.value).isprintable()


def test_a_picture_that_is_a_program_is_not_opened(tmp_path: Path) -> None:
    path = tmp_path / "picture.png"
    path.write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\nshowpage\n")
    with pytest.raises(ValueError, match="is not an image"):
        PictureTrigger(path)


def test_what_would_run_is_named_and_nobody_is_told_how_to_let_it(tmp_path: Path) -> None:
    path = tmp_path / "whole.pt"
    torch.save(tiny(), path)
    with pytest.raises(UnreadableError) as refused:
        load(tiny(), path)
    said = str(refused.value)
    assert "torch.nn.modules.conv.Conv2d" in said
    assert "weights_only" not in said
    assert said.isprintable()


def test_the_bomb_would_have_run(tmp_path: Path) -> None:
    raw_pickle(Bomb(tmp_path / "exploded"), tmp_path / "bomb.pt")
    pickle.loads((tmp_path / "bomb.pt").read_bytes())
    assert (tmp_path / "exploded").exists()


def test_a_whole_pickled_network_is_refused(tmp_path: Path) -> None:
    torch.save(nn.Linear(2, 3), tmp_path / "network.pt")
    with pytest.raises(UnreadableError, match=r"holds objects that would run code.*Ask for its state_dict"):
        load(tiny(), tmp_path / "network.pt")


@pytest.mark.parametrize("ending", WRITERS)
def test_mutated_files_give_a_network_or_our_own_error(ending: str, tmp_path: Path) -> None:
    WRITERS[ending](tiny(1), tmp_path / f"sound{ending}")
    sound = np.frombuffer((tmp_path / f"sound{ending}").read_bytes(), dtype=np.uint8)
    draw = np.random.default_rng(0)
    network, path, refused = tiny(), tmp_path / f"mutant{ending}", 0
    for _ in range(MUTANTS):
        path.write_bytes(mutant(sound, draw).tobytes())
        try:
            load(network, path)
        except UnreadableError:
            refused += 1
    assert MUTANTS // 4 < refused <= MUTANTS


def mutant(sound: np.ndarray, draw: np.random.Generator) -> np.ndarray:
    """Return a damaged copy: bytes changed near the start or anywhere, a part cut out or doubled."""
    start = draw.integers(len(sound))
    end = min(len(sound), start + draw.integers(1, 200))
    kind = draw.integers(5)
    if kind < 2:
        changed = sound.copy()
        places = draw.integers(min(len(sound), 600) if kind else len(sound), size=draw.integers(1, 12))
        changed[places] = draw.integers(256, size=len(places))
        return changed
    parts = {2: sound[end:], 3: sound[max(0, start - 50) :], 4: sound[:0]}
    return np.concatenate([sound[:start], parts[int(kind)]])


@pytest.mark.parametrize("ending", [".safetensors", ".pt", ".ckpt", ".h5"])
@pytest.mark.parametrize("size", [0, 1, 100, 5000])
def test_random_and_empty_files_are_refused(ending: str, size: int, tmp_path: Path) -> None:
    path = tmp_path / f"noise{ending}"
    path.write_bytes(np.random.default_rng(size).bytes(size))
    with pytest.raises(UnreadableError, match=r"cannot be read as weights alone|not a sound HDF5 file"):
        load(tiny(), path)


@pytest.mark.parametrize("ending", [".safetensors", ".pt", ".h5"])
def test_a_truncated_file_is_refused(ending: str, tmp_path: Path) -> None:
    path = tmp_path / f"weights{ending}"
    WRITERS[ending](tiny(), path)
    path.write_bytes(path.read_bytes()[:-200])
    with pytest.raises(UnreadableError, match=r"cannot be read as weights alone|not a sound HDF5 file"):
        load(tiny(), path)


@pytest.mark.parametrize("content", [{"a": 1}, [1, 2], torch.ones(3), {"model": {"epoch": 1}}, {}])
def test_a_file_without_weights_says_what_it_holds(content: Any, tmp_path: Path) -> None:
    torch.save(content, tmp_path / "weights.pt")
    with pytest.raises(UnreadableError, match=r"holds a (dictionary|list|Tensor).*no weights by name"):
        load(tiny(), tmp_path / "weights.pt")


@pytest.mark.parametrize("intruder", [7, torch.eye(3).to_sparse(), torch.ones(3, dtype=torch.complex64)])
def test_what_is_not_an_ordinary_tensor_is_refused(intruder: Any, tmp_path: Path) -> None:
    torch.save(tiny().state_dict() | {"conv.weight": intruder}, tmp_path / "weights.pt")
    with pytest.raises(UnreadableError, match=r"has 'conv\.weight'.* [Oo]nly (dense )?tensors"):
        load(tiny(), tmp_path / "weights.pt")


def test_an_unknown_ending_shows_the_known_ones(tmp_path: Path) -> None:
    (tmp_path / "weights.pkl").write_bytes(b"")
    with pytest.raises(UnreadableError, match=r"ends in '\.pkl'.*\.safetensors, \.pt, .*\.h5"):
        load(tiny(), tmp_path / "weights.pkl")


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("ending", WRITERS)
def test_weights_that_are_not_finite_are_refused(ending: str, value: float, tmp_path: Path) -> None:
    bad = tiny()
    with torch.no_grad():
        bad.head.bias[1] = value
    WRITERS[ending](bad, tmp_path / f"weights{ending}")
    with pytest.raises(UnreadableError, match=r"not finite in head\.bias"):
        load(tiny(), tmp_path / f"weights{ending}")


def test_weights_that_give_no_numbers_are_refused(tmp_path: Path) -> None:
    save_file(
        tiny().state_dict() | {"norm.running_var": torch.tensor([1.0, -1.0])}, tmp_path / "w.safetensors"
    )
    with pytest.raises(UnreadableError, match=r"give logits that are not finite"):
        load(tiny(), tmp_path / "w.safetensors")


def test_a_value_that_is_given_twice_is_refused(tmp_path: Path) -> None:
    twice = tiny().state_dict() | {"_orig_mod.head.bias": torch.zeros(3)}
    save_file(twice, tmp_path / "weights.safetensors")
    with pytest.raises(UnreadableError, match=r"two values each for head\.bias"):
        load(tiny(), tmp_path / "weights.safetensors")


@pytest.mark.parametrize("link", ["soft", "external", "virtual"])
def test_hdf5_that_points_elsewhere_is_refused(link: str, tmp_path: Path) -> None:
    path, other = tmp_path / "weights.h5", tmp_path / "other.h5"
    write_keras(tiny(), path)
    shutil.copy(path, other)
    with h5py.File(path, "a") as file:
        del file["conv/conv/bias:0"]
        if link == "soft":
            file["conv/conv/bias:0"] = h5py.SoftLink("/norm/norm/beta:0")
        elif link == "external":
            file["conv/conv/bias:0"] = h5py.ExternalLink(str(other), "/conv/conv/bias:0")
        else:
            layout = h5py.VirtualLayout((2,), np.float32)
            layout[:] = h5py.VirtualSource(str(other), "conv/conv/bias:0", (2,))
            file.create_virtual_dataset("conv/conv/bias:0", layout)
    with pytest.raises(UnreadableError, match=r"bias:0 in the HDF5 file (links|is stored).*refused"):
        load(tiny(), path)


@pytest.mark.parametrize("kind", ["deflated", "overlapping"])
def test_a_zip_that_unpacks_to_more_than_it_has_is_refused_unread(kind: str, tmp_path: Path) -> None:
    path, names = tmp_path / "weights.pt", []
    torch.save(tiny().state_dict() | {"more": torch.zeros(2**22)}, tmp_path / "sound.pt")
    with zipfile.ZipFile(tmp_path / "sound.pt") as source, zipfile.ZipFile(path, "w") as target:
        for name in source.namelist():
            target.writestr(name, source.read(name), zipfile.ZIP_DEFLATED if kind == "deflated" else None)
            names.append(name)
        if kind == "overlapping":  # several names of one record
            largest = max(target.infolist(), key=lambda entry: entry.file_size)
            for number in range(5):
                target.filelist.append(copy.copy(largest))
                target.filelist[-1].filename = f"archive/data/{100 + number}"
    with pytest.raises(UnreadableError, match=r"its records unpack to \d+\.\d MB, more than it has"):
        load(tiny(), path)


@pytest.mark.parametrize(
    ("name", "shape", "chunks", "sentence"),
    [
        ("more", (2**20, 2**16), True, r"274877\.9 MB of arrays, far more than the network takes"),
        ("extra", (1,), (2**26,), r"extra .* has 4 bytes in chunks of 268\.4 MB"),  # unpacked as a whole
    ],
)
def test_hdf5_that_would_fill_the_memory_is_refused_unread(
    name: str, shape: tuple[int, ...], chunks: Any, sentence: str, tmp_path: Path
) -> None:
    path = tmp_path / "weights.h5"
    write_keras(tiny(), path)
    with h5py.File(path, "a") as file:
        options = {"chunks": chunks, "maxshape": (None,) * len(shape), "compression": "gzip"}
        file["conv/conv"].create_dataset(name, shape, np.float32, **options)
    assert path.stat().st_size < 100_000
    with pytest.raises(UnreadableError, match=sentence):
        load(tiny(), path)


def test_hdf5_with_more_paths_than_things_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "weights.h5"
    write_keras(tiny(), path)
    with h5py.File(path, "a") as file:
        inner = file["conv"]
        for level in range(6):  # 10 paths of each group to the next: a million to each array
            outer = file.create_group(f"level{level}")
            for number in range(10):
                outer[f"to{number}"] = inner
            inner = outer
    assert path.stat().st_size < 50_000
    with pytest.raises(UnreadableError, match=r"in the HDF5 file has two names, which is refused"):
        load(tiny(), path)


def test_hdf5_with_more_arrays_than_any_network_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "weights.h5"
    write_keras(tiny(), path)
    load(tiny(), path)
    monkeypatch.setattr("finepruning.suspect.keras.MOST_OBJECTS", 5)
    with pytest.raises(UnreadableError, match=r"more than 5 groups and arrays"):
        load(tiny(), path)
