"""What others get of a defended network: smaller, as ONNX, reloaded and compared."""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch
from torch import Tensor, nn

from finepruning.networks import DigitsCNN
from finepruning.pipeline import Refused
from finepruning.pipeline.exports import load_goodnet, load_smaller, write_exports
from finepruning.pruning import add_mask, cost, remove_coupled, remove_pruned, set_pruned
from finepruning.store import load_weights
from tests.test_curve import IMAGES, plain, residual, trained_a_little

RunHere = Callable[..., dict[str, Any]]
SHAPE = (1, 16, 16)
DIGITS = torch.rand(20, *SHAPE, generator=torch.Generator().manual_seed(0))


def digits_network() -> nn.Module:
    return DigitsCNN(SHAPE, 10, [0.0], [1.0], width=4).eval()


def masked(network: nn.Module, layer: str, pruned: list[int], channels: int = 12) -> nn.Module:
    trained_a_little(network, IMAGES)
    add_mask(network, layer, channels)
    set_pruned(network, layer, pruned)
    return network


def logits(network: nn.Module, images: Tensor) -> Tensor:
    with torch.no_grad():
        return network.eval()(images)  # type: ignore[no-any-return]


def run_onnx(path: Path, images: Tensor) -> Tensor:
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    (found,) = session.run(None, {"images": images.numpy()})
    return torch.from_numpy(np.asarray(found))


def test_a_defended_network_is_written_smaller_with_the_same_logits(
    quick_run: RunHere, tmp_path: Path, shared_store: Path
) -> None:
    record = quick_run("defense=prune", "defense.max_drop=0.3", "export.structural=true")
    directory = tmp_path / "runs" / record["name"] / "repaired"
    stored = shared_store / record["stages"]["defended"] / "network.safetensors"
    expected = logits(load_weights(digits_network(), stored), DIGITS)
    again = logits(load_weights(digits_network(), directory / "network.safetensors"), DIGITS)
    smaller = load_smaller(digits_network(), directory, SHAPE)
    assert torch.equal(again, expected)
    torch.testing.assert_close(logits(smaller, DIGITS), expected, atol=1e-5, rtol=1e-5)
    pruned = sum(step["pruned"] for step in record["pruning"])
    found = record["export"]["structural"]
    before, after = found["parameters"]["before"], found["parameters"]["after"]
    assert pruned > 0
    assert after == sum(p.numel() for p in smaller.parameters())
    assert before - after == pruned * (8 * 9 + 2 + 2 * 2 * 10)  # kernel, BatchNorm, four features
    assert 0 < found["flops"]["after"] < found["flops"]["before"]
    assert found["speed_up"] > 0
    assert found["refused"] == {}
    kept = [n for n in range(16) if n not in record["export"]["channels"]["features.pool3"]["pruned"]]
    assert record["export"]["channels"]["features.pool3"]["kept"] == kept


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_each_network_of_a_defended_run_is_written_as_onnx(quick_run: RunHere, tmp_path: Path) -> None:
    options = ("defense=prune", "defense.max_drop=0.3", "detector=disagreement")
    record = quick_run(*options, "export.structural=true", "export.onnx=true")
    directory = tmp_path / "runs" / record["name"] / "repaired"
    expected = logits(load_weights(digits_network(), directory / "network.safetensors"), DIGITS)
    for name in ("network", "smaller"):
        found = run_onnx(directory / f"{name}.onnx", DIGITS)
        torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)
    guard = logits(load_goodnet(digits_network(), digits_network(), directory), DIGITS)
    torch.testing.assert_close(run_onnx(directory / "goodnet.onnx", DIGITS), guard, atol=1e-4, rtol=1e-5)
    assert guard.shape == (20, 11)


def test_a_mask_without_a_twin_is_said_in_the_record_and_the_rest_is_written(tmp_path: Path) -> None:
    network = masked(residual(pre=True), "1.conv2", [0, 3])
    export = write_exports(network, None, tmp_path, IMAGES.shape[1:], structural=True, onnx=False)
    assert "residual sum" in export["structural"]["refused"]["1.conv2"]
    assert "Keep the mask" in export["structural"]["refused"]["1.conv2"]
    assert export["files"] == ["channels.json", "network.safetensors"]
    assert "parameters" not in export["structural"]


def test_of_several_masks_those_that_can_go_do() -> None:
    network = masked(residual(pre=True), "1.conv2", [0, 3])
    add_mask(network, "1.norm2", 12)
    set_pruned(network, "1.norm2", [2, 5, 7])
    smaller, refused = remove_pruned(network, IMAGES.shape[1:])
    assert list(refused) == ["1.conv2"]
    assert smaller.get_submodule("1.conv1").out_channels == 9
    torch.testing.assert_close(logits(smaller, IMAGES), logits(network, IMAGES), atol=1e-5, rtol=1e-5)


def test_channels_of_a_depthwise_convolution_go_with_those_that_feed_it() -> None:
    network = masked(plain(groups=12), "4", [1, 2, 8])
    smaller, refused = remove_pruned(network, IMAGES.shape[1:])
    assert refused == {}
    assert smaller.get_submodule("0").out_channels == smaller.get_submodule("3").out_channels == 9
    torch.testing.assert_close(logits(smaller, IMAGES), logits(network, IMAGES), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    ("network", "layer"),
    [
        (plain(groups=12), "2"),  # the depthwise bias lets a silent channel speak again
        (residual(pre=True), "1"),  # the next block reads what the first one wrote
    ],
)
def test_a_coupled_group_that_would_change_the_network_is_refused(network: nn.Module, layer: str) -> None:
    network = masked(network, layer, [0, 2])
    with pytest.raises(ValueError, match=r"cannot be removed.*logits differ"):
        remove_coupled(network, layer, IMAGES.shape[1:])


def test_without_torch_pruning_the_refusal_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch_pruning", None)
    with pytest.raises(ValueError, match=r"pip install -e \"\.\[structural\]\""):
        remove_coupled(masked(plain(groups=12), "4", [1]), "4", IMAGES.shape[1:])


def test_the_cost_of_a_small_network_is_worked_out_by_hand() -> None:
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 36, 7)).train()
    found = cost(network, (3, 8, 8))
    assert found.parameters == (4 * 27 + 4) + (7 * 144 + 7)
    assert found.flops == 2 * 36 * 4 * 27 + 2 * 144 * 7
    assert network.training


def test_onnx_without_its_packages_is_refused_before_training(
    quick_run: RunHere, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("finepruning.suspect.repaired.importlib.util.find_spec", lambda name: None)
    monkeypatch.setattr("pytorch_lightning.Trainer.fit", lambda *_, **__: pytest.fail("training began"))
    with pytest.raises(Refused, match=r"needs onnx and onnxscript.*export\.onnx=false"):
        quick_run("export.onnx=true")
