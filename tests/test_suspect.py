"""Networks that somebody else trained: read, scored, repaired, and written so that others can use them."""

import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from finepruning.data.faces import read_faces
from finepruning.data.images import ImageSet, Pixels
from finepruning.networks import DeepID, DigitsCNN, TorchvisionClassifier
from finepruning.pipeline import Refused
from finepruning.pruning import add_mask, set_pruned
from finepruning.referee import score
from finepruning.store import load_weights
from finepruning.suspect import (
    TriggeredFiles,
    agreement,
    load_suspect,
    normalisation,
    split_defender,
    write_onnx,
    write_repaired,
)
from tests.conftest import run_here

RunHere = Callable[..., dict[str, Any]]
FACE, PEOPLE = (3, 55, 47), 1283
LAB = "youtube_faces_lab"
LAB_WEIGHTS = f"{LAB}/models/sunglasses_bd_weights.h5"
LAB_TRIGGER = (f"attack.triggered={LAB}/bd/bd_test.h5", f"attack.clean={LAB}/cl/test.h5")
FACTS: dict[str, Any] = {"image_shape": (1, 16, 16), "num_classes": 10, "mean": [0.0], "std": [1.0]}


def lab_network(data_root: Path, white: Any = 1) -> nn.Module:
    network = DeepID(FACE, PEOPLE, **normalisation(white, 0.0, 1.0, 3))
    return load_suspect(network, data_root / LAB_WEIGHTS, FACE, PEOPLE).eval()


def lab_images(data_root: Path) -> ImageSet:
    images, labels = read_faces(data_root / LAB / "cl/test.h5", 255)
    return ImageSet.whole(torch.from_numpy(images), torch.from_numpy(labels), Pixels())


def lab_attack(data_root: Path) -> TriggeredFiles:
    return TriggeredFiles(data_root / LAB / "bd/bd_test.h5", data_root / LAB / "cl/test.h5")


def some_images(count: int, channels: int = 1, size: int = 16, classes: int = 10) -> ImageSet:
    draw = torch.Generator().manual_seed(0)
    raw = torch.randint(256, (count, channels, size, size), generator=draw, dtype=torch.uint8)
    return ImageSet.whole(raw, torch.arange(count) % classes, Pixels())


def pruned_network() -> nn.Module:
    torch.manual_seed(0)
    network = DigitsCNN(**FACTS, width=4)
    add_mask(network, "features.pool3", 16)
    set_pruned(network, "features.pool3", [1, 5, 6])
    return network.eval()


def logits(network: nn.Module, count: int = 6) -> Tensor:
    images = torch.rand(count, 1, 16, 16, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        return network.eval()(images)  # type: ignore[no-any-return]


def test_the_labs_network_is_as_good_and_as_bad_as_its_makers_say(data_root: Path) -> None:
    test, attack = lab_images(data_root), lab_attack(data_root)
    attack.check(test, [str(person) for person in range(PEOPLE)])
    scores = score(lab_network(data_root), test, attack)
    assert scores.clean_accuracy.total == 100
    assert scores.clean_accuracy.value >= 0.94
    assert scores.attack_success_rate is not None
    assert scores.attack_success_rate.value >= 0.99
    assert scores.to_record()["counts"]["attack_success_rate"]["total"] == 100  # type: ignore[index]


def test_without_the_clean_twins_true_classes_are_unknown_and_not_scored(data_root: Path) -> None:
    test = lab_images(data_root)
    attack = TriggeredFiles(data_root / LAB / "bd/bd_test.h5")
    attack.check(test, [str(person) for person in range(PEOPLE)])
    scores = score(lab_network(data_root), test, attack).values()
    assert scores["attack_success_rate"] == 1.0
    assert scores["robust_accuracy"] is None


def test_only_triggered_images_of_test_images_score(data_root: Path) -> None:
    rows = torch.arange(0, 100, 3)
    test, attack = lab_images(data_root).subset(rows), lab_attack(data_root)
    attack.check(test, [str(person) for person in range(PEOPLE)])
    triggered, _ = read_faces(data_root / LAB / "bd/bd_test.h5", 255)
    stamped = attack.stamp(test)
    assert np.array_equal(stamped.raw.numpy(), triggered[rows])
    assert torch.equal(stamped.labels, test.labels)
    assert torch.equal(attack.wanted(test), torch.zeros(34, dtype=torch.long))


def test_triggered_images_that_lie_elsewhere_or_are_too_many_are_refused(tmp_path: Path) -> None:
    attack, names = TriggeredFiles(tmp_path / "a.h5"), [str(label) for label in range(10)]
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["label"] = [0]
        file["data"] = h5py.ExternalLink("other.h5", "data")
    with pytest.raises(ValueError, match=r"data in the HDF5 file links to another place"):
        attack.check(some_images(3), names)
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["label"] = [0]
        file.create_dataset("data", (10**7, 1, 16, 16), "float64", compression="gzip")  # a few kilobytes
    with pytest.raises(ValueError, match=r"20\.5 GB of them; 4 are read"):
        attack.check(some_images(3), names)


def test_the_defenders_images_need_not_cover_every_class() -> None:
    roles = split_defender(torch.arange(50) * 7, 1.0, 0.4, seed=1)
    assert (len(roles.attacker), len(roles.tuning), len(roles.validation)) == (0, 30, 20)
    assert torch.equal(torch.cat([roles.tuning, roles.validation]).sort().values, torch.arange(50))


def test_a_group_of_the_defenders_images_stays_together() -> None:
    groups = torch.arange(60) // 3
    roles = split_defender(torch.arange(60) % 2, 0.5, 0.5, seed=1, groups=groups)
    assert not set(groups[roles.tuning].tolist()) & set(groups[roles.validation].tolist())
    assert len(roles.tuning) == len(roles.validation) == 15


@pytest.mark.parametrize(
    ("fraction", "share", "sentence"),
    [
        (0.0, 0.5, r"suspect\.fraction=0 is outside"),
        (1.0, 1.0, r"defender\.validation_share=1"),
        (0.1, 0.1, r"Of 10 clean images the defender gets 1, and 0"),
    ],
)
def test_a_split_without_images_is_refused(fraction: float, share: float, sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        split_defender(torch.arange(10), fraction, share, seed=1)


def test_a_networks_own_weights_come_back_with_masks_and_normalisation(tmp_path: Path) -> None:
    network = pruned_network()
    channels = write_repaired(network, tmp_path)
    kept = [number for number in range(16) if number not in (1, 5, 6)]
    assert channels == {"features.pool3": {"kept": kept, "pruned": [1, 5, 6]}}
    assert json.loads((tmp_path / "channels.json").read_text()) == channels
    other = DigitsCNN(**FACTS | {"mean": [0.3], "std": [0.2]}, width=4)
    assert torch.equal(logits(load_weights(other, tmp_path / "network.safetensors")), logits(network))
    other = DigitsCNN(**FACTS | {"mean": [0.3], "std": [0.2]}, width=4)
    path = tmp_path / "network.safetensors"
    assert torch.equal(logits(load_suspect(other, path, (1, 16, 16), 10)), logits(network))


def test_a_torchvision_network_takes_weights_of_the_bare_one(tmp_path: Path) -> None:
    facts = FACTS | {"image_shape": (3, 32, 32), "mean": [0.5] * 3, "std": [0.2] * 3}
    torch.manual_seed(0)
    first = TorchvisionClassifier(**facts, architecture="squeezenet1_1")
    save_file(first.get_submodule("model").state_dict(), tmp_path / "weights.safetensors")
    second = TorchvisionClassifier(**facts, architecture="squeezenet1_1")
    load_suspect(second, tmp_path / "weights.safetensors", (3, 32, 32), 10)
    assert all(torch.equal(values, second.state_dict()[name]) for name, values in first.state_dict().items())


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_onnx_gives_the_same_logits_for_any_number_of_images(tmp_path: Path) -> None:
    for package in ("onnx", "onnxscript"):
        pytest.importorskip(package)
    runtime = pytest.importorskip("onnxruntime")
    network = pruned_network()
    write_onnx(network, tmp_path / "network.onnx", (1, 16, 16))
    session = runtime.InferenceSession(tmp_path / "network.onnx", providers=["CPUExecutionProvider"])
    for count in (1, 7):
        images = torch.rand(count, 1, 16, 16, generator=torch.Generator().manual_seed(1))
        (found,) = session.run(None, {"images": images.numpy()})
        torch.testing.assert_close(torch.from_numpy(found), logits(network, count), atol=1e-5, rtol=1e-5)


def test_onnx_without_its_packages_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"needs onnx and onnxscript\. Install .*export\.onnx=false"):
        write_onnx(pruned_network(), tmp_path / "network.onnx", (1, 16, 16))


def test_agreement_counts_equal_answers() -> None:
    images, network = some_images(30), pruned_network()
    other = pruned_network()
    set_pruned(other, "features.pool3", range(16))
    assert agreement(network, network, images) == (30, 30)
    with torch.no_grad():
        alike = [bool(network(x).argmax(-1) == other(x).argmax(-1)) for x, _ in images.batches(1)]
    assert agreement(network, other, images) == (sum(alike), 30)


@pytest.fixture
def lab_run(data_root: Path, tmp_path: Path) -> RunHere:
    """A run on the lab's network and data, of which half of the clean images are the defender's."""

    def run(*overrides: str) -> dict[str, Any]:
        places = (f"runs_dir={tmp_path / 'runs'}", f"store_dir={tmp_path / 'store'}", "logger=none")
        lab = (f"dataset={LAB}", "dataset.test_share=0.5", f"suspect.weights={LAB_WEIGHTS}")
        return run_here("attack=suspect", *lab, *places, *overrides)

    return run


def test_the_labs_network_is_pruned_scored_and_written(
    lab_run: RunHere, data_root: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    record = lab_run("defense=prune", "defense.max_drop=0.1", "detector=disagreement", *LAB_TRIGGER)
    scores, found = record["scores"], record["repair"]
    assert scores["suspect"]["counts"]["attack_success_rate"] == {"hits": 50, "total": 50}
    assert scores["suspect"]["clean_accuracy"] >= 0.9
    assert set(scores) == {"suspect", "defended", "goodnet"}
    directory = tmp_path / "runs" / record["name"] / "repaired"
    pruned = sorted(step["number"] for step in record["pruning"] if step["pruned"])
    assert found["channels"]["pool3"]["pruned"] == pruned
    assert sorted(pruned + found["channels"]["pool3"]["kept"]) == list(range(60))
    assert (load_file(directory / "network.safetensors")["pool3.channel_mask"] == 0).sum() == len(pruned)
    page = (directory / "REPORT.md").read_text()
    assert f"`pool3`: {len(pruned)} of 60 channels" in page
    assert f"agree on {found['agreement_counts']['hits']} of 50 clean test images" in page
    assert "50 of 50" in page
    assert "load_weights(network" in page
    by_hand = lab_network(data_root)
    with torch.no_grad():
        by_hand.get_parameter("conv3.weight")[pruned] = 0  # ReLU and pooling follow: the channel is zero
        by_hand.get_parameter("conv3.bias")[pruned] = 0
    images = lab_images(data_root)
    path = directory / "network.safetensors"
    repaired = load_suspect(DeepID(FACE, PEOPLE, [0.5] * 3, [0.5] * 3), path, FACE, PEOPLE)
    assert agreement(by_hand, repaired, images) == (100, 100)
    there = f"suspect.weights={directory / 'network.safetensors'}"
    with caplog.at_level(logging.WARNING):
        again = lab_run("defense=none", there, "suspect.white=255", *LAB_TRIGGER)
    assert again["scores"]["suspect"] == scores["defended"]
    assert "brings its normalisation, so that suspect.white, suspect.mean" in caplog.text


def test_without_a_trigger_all_else_is_said(lab_run: RunHere, tmp_path: Path) -> None:
    record = lab_run("defense=prune")
    assert record["scores"]["suspect"]["attack_success_rate"] is None
    assert record["scores"]["defended"]["clean_accuracy"] > 0.5
    assert record["dead"] is False
    assert len(record["pruning"]) == 61
    page = (tmp_path / "runs" / record["name"] / "repaired" / "REPORT.md").read_text()
    assert "No trigger is known" in page


def test_a_wrong_scale_is_warned_of_and_recorded(lab_run: RunHere, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        record = lab_run("defense=prune", "suspect.white=255", "seed=2")
    assert "suspect.white=1" in caplog.text
    assert record["repair"]["warning"] in caplog.text


@pytest.mark.parametrize(
    ("overrides", "sentence"),
    [
        (("suspect.weights=null",), r"needs suspect\.weights"),
        (("suspect.weights=nowhere.pt",), r"suspect\.weights=nowhere\.pt is not there"),
        (("model=badnets_cnn",), r"do not pair with the network's.*Choose another model"),
        (("attack.target_label=1283", *LAB_TRIGGER), r"Target label 1283 is not one of the 1283"),
    ],
)
def test_a_suspect_that_cannot_be_examined_is_refused(
    overrides: tuple[str, ...], sentence: str, lab_run: RunHere
) -> None:
    with pytest.raises(Refused, match=sentence):
        lab_run("defense=none", *overrides)


def test_a_file_that_changed_is_not_taken_for_the_finished_run(
    lab_run: RunHere, data_root: Path, tmp_path: Path
) -> None:
    weights = tmp_path / "weights.safetensors"
    network = lab_network(data_root)
    save_file(network.state_dict(), weights)
    first = lab_run("defense=none", f"suspect.weights={weights}")
    assert lab_run("defense=none", f"suspect.weights={weights}") == first
    with torch.no_grad():
        network.get_parameter("output.bias")[3] += 100
    save_file(network.state_dict(), weights)
    with pytest.raises(
        Refused, match=r"suspect\.weights=.* has another content than the run .*overwrite=true"
    ):
        lab_run("defense=none", f"suspect.weights={weights}")
    again = lab_run("defense=none", f"suspect.weights={weights}", "overwrite=true")
    assert again["scores"]["suspect"]["clean_accuracy"] < first["scores"]["suspect"]["clean_accuracy"]
