"""Weights of every kind of file, prefix and precision are found, and what does not fit a network is named."""

from pathlib import Path
from typing import Any

import h5py
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from finepruning.networks import BadNetsCNN, DigitsCNN, SignCNN
from finepruning.suspect import UnreadableError, load_suspect
from tests.weight_files import FACTS, SHAPE, WRITERS, load, same, tiny, write_keras


@pytest.mark.parametrize("ending", WRITERS)
def test_every_kind_of_file_gives_the_network_back(ending: str, tmp_path: Path) -> None:
    path = tmp_path / f"weights{ending}"
    WRITERS[ending](tiny(1), path)
    loaded = load(tiny(2), path)
    expected, images = tiny(1), torch.rand(5, *SHAPE)
    expected.norm.eps = {".h5": 1e-3}.get(ending, 1e-5)  # Keras's, and torch's
    with torch.no_grad():
        torch.testing.assert_close(loaded.eval()(images), expected(images))


@pytest.mark.parametrize(
    "nest", [(), ("state_dict",), ("net",), ("model",), ("network",), ("model", "state_dict")]
)
@pytest.mark.parametrize(
    "prefix", ["", "module.", "network.", "_orig_mod.", "module._orig_mod.", "model.module."]
)
def test_weights_are_found_under_the_usual_keys_and_prefixes(
    nest: tuple[str, ...], prefix: str, tmp_path: Path
) -> None:
    content: dict[str, Any] = {prefix + name: values for name, values in tiny(1).state_dict().items()}
    for key in reversed(nest):
        content = {"epoch": 3, key: content}
    torch.save(content, tmp_path / "weights.ckpt")
    assert same(load(tiny(2), tmp_path / "weights.ckpt"), tiny(1))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_weights_of_another_precision_are_converted(dtype: torch.dtype, tmp_path: Path) -> None:
    network = tiny(1)
    save_file(
        {
            name: values.to(dtype) if values.is_floating_point() else values
            for name, values in network.state_dict().items()
        },
        tmp_path / "weights.safetensors",
    )
    loaded = load(tiny(2), tmp_path / "weights.safetensors")
    assert torch.equal(loaded.get_parameter("head.weight"), network.head.weight.to(dtype).float())
    assert loaded.get_parameter("head.weight").dtype == torch.float32


def test_weights_of_another_architecture_list_what_differs(tmp_path: Path) -> None:
    save_file(
        SignCNN(**FACTS | {"image_shape": (3, 16, 16), "mean": [0.0] * 3, "std": [1.0] * 3}).state_dict(),
        tmp_path / "weights.safetensors",
    )
    network = BadNetsCNN(**FACTS)
    before = {name: values.clone() for name, values in network.state_dict().items()}
    with pytest.raises(UnreadableError, match=r"missing: .*fc1\.weight.*unexpected: .* and \d+ more"):
        load(network, tmp_path / "weights.safetensors")
    assert all(torch.equal(values, before[name]) for name, values in network.state_dict().items())


def test_wrong_shapes_are_listed(tmp_path: Path) -> None:
    save_file(DigitsCNN(**FACTS, width=8).state_dict(), tmp_path / "weights.safetensors")
    with pytest.raises(
        UnreadableError, match=r"wrong shapes: .*conv1\.weight \[8, 1, 3, 3\] instead of \[4, 1, 3, 3\]"
    ):
        load(DigitsCNN(**FACTS, width=4), tmp_path / "weights.safetensors")


@pytest.mark.parametrize("classes", [2, 10])
def test_another_number_of_classes_says_both(classes: int, tmp_path: Path) -> None:
    save_file(BadNetsCNN(**FACTS | {"num_classes": classes}).state_dict(), tmp_path / "weights.safetensors")
    with pytest.raises(UnreadableError, match=rf"for {classes} classes, and the data set has 3\."):
        load(BadNetsCNN(**FACTS), tmp_path / "weights.safetensors")


@pytest.mark.parametrize(
    ("masks", "sentence"),
    [
        ({"conv9.channel_mask": torch.ones(2)}, r"'conv9', which is no layer with channels"),
        ({".channel_mask": torch.ones(2)}, "'', which is no layer with channels"),
        ({"conv.channel_mask": torch.ones(3)}, r"2 zeros and ones are needed"),
        ({"conv.channel_mask": torch.tensor([0.0, 0.5])}, r"2 zeros and ones are needed"),
    ],
)
def test_a_mask_that_does_not_fit_is_refused(masks: dict[str, Tensor], sentence: str, tmp_path: Path) -> None:
    save_file(tiny().state_dict() | masks, tmp_path / "weights.safetensors")
    with pytest.raises(UnreadableError, match=sentence):
        load(tiny(), tmp_path / "weights.safetensors")


def test_a_tensor_beside_the_network_is_named_alone(tmp_path: Path) -> None:
    state = {f"model.{name}": values for name, values in tiny(1).state_dict().items()}
    torch.save({"state_dict": state | {"criterion.weight": torch.ones(3)}}, tmp_path / "last.ckpt")
    with pytest.raises(UnreadableError) as refused:
        load(tiny(2), tmp_path / "last.ckpt")
    assert "not of this network. unexpected: criterion.weight. Take that out of the file" in str(
        refused.value
    )


def test_keras_layers_that_do_not_pair_are_named(tmp_path: Path) -> None:
    write_keras(tiny(), tmp_path / "weights.h5")
    with pytest.raises(UnreadableError, match=r"do not pair.*fc1.*suspect\.layer_map"):
        load(BadNetsCNN(**FACTS), tmp_path / "weights.h5")


def test_a_layer_map_pairs_keras_layers_of_other_names(tmp_path: Path) -> None:
    write_keras(tiny(1), tmp_path / "named.h5")
    with h5py.File(tmp_path / "named.h5", "a") as file:
        file.move("head", "predictions")
    layer_map = {"conv": "conv", "norm": "norm", "head": "predictions"}
    loaded = load_suspect(tiny(2), tmp_path / "named.h5", SHAPE, 3, layer_map)
    assert torch.equal(loaded.get_parameter("head.weight"), tiny(1).head.weight)
