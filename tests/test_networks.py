from copy import deepcopy
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
import yaml
from hydra.utils import instantiate
from torch import Tensor, nn
from torch.nn import functional

from finepruning.networks import (
    BadNetsCNN,
    DeepID,
    DigitsCNN,
    PreActResNet18,
    SignCNN,
    SpectrogramCNN,
    SpeechCNN,
    TorchvisionClassifier,
)
from finepruning.pruning import (
    add_mask,
    channel_count,
    cut_at,
    mean_activations,
    set_pruned,
    step_predictions,
)
from finepruning.pruning.ranking import Channel
from finepruning.store import load_weights, save_weights

MODELS = Path(__file__).parent.parent / "conf" / "model"
CONFIGS = sorted(
    path for path in MODELS.glob("*.yaml") if path.stem != "python_file"
)  # that one is a stranger's
SHAPES = {
    "deepid": (3, 55, 47),
    "badnets_cnn": (1, 28, 28),
    "spectrogram_cnn": (1, 40, 50),
    "speech_cnn": (1, 40, 50),
}
CLASSES = 7
OURS: list[type[nn.Module]] = [
    BadNetsCNN,
    DeepID,
    DigitsCNN,
    PreActResNet18,
    SignCNN,
    SpectrogramCNN,
    SpeechCNN,
]


class Case(NamedTuple):
    """A model of conf/model, and images for it."""

    network: nn.Module
    images: Tensor

    def copy(self) -> nn.Module:
        """Return the network once more, to change it."""
        return deepcopy(self.network)


def facts(shape: tuple[int, int, int]) -> dict[str, Any]:
    channels = shape[0]
    return {"image_shape": shape, "num_classes": CLASSES, "mean": [0.4] * channels, "std": [0.2] * channels}


@pytest.fixture(scope="module", params=CONFIGS, ids=[config.stem for config in CONFIGS])
def case(request: pytest.FixtureRequest) -> Case:
    shape = SHAPES.get(request.param.stem, (3, 32, 32))
    torch.manual_seed(0)
    network = instantiate(yaml.safe_load(request.param.read_text()), _convert_="all", **facts(shape))
    return Case(network.eval(), torch.rand(4, *shape))


@torch.no_grad()
def test_it_gives_one_logit_a_class_and_is_deterministic_in_evaluation(case: Case) -> None:
    logits = case.network.eval()(case.images)
    assert logits.shape == (4, CLASSES)
    assert torch.isfinite(logits).all()
    assert torch.equal(logits, case.network(case.images))
    torch.testing.assert_close(case.network(case.images[:1]), logits[:1], atol=1e-4, rtol=1e-4)


def test_the_pruned_layer_exists_and_runs_exactly_once(case: Case) -> None:
    layer = case.network.pruned_layer
    runs: list[torch.Size] = []
    handle = case.network.get_submodule(layer).register_forward_hook(lambda *a: runs.append(a[2].shape))
    case.network.eval()(case.images)
    handle.remove()
    assert len(runs) == 1
    assert cut_at(case.network, [layer]).first == (layer,)
    assert channel_count(case.network, layer, case.images.shape[1:]) >= 32


@torch.no_grad()
def test_every_step_of_the_curve_equals_pruning_by_mask(case: Case) -> None:
    network, layer = case.copy(), str(case.network.pruned_layer)
    channels = channel_count(network, layer, case.images.shape[1:])
    numbers = torch.randperm(channels, generator=torch.Generator().manual_seed(1))[:3].tolist()
    steps = step_predictions(
        cut_at(network, [layer]), case.images, [Channel(layer, number) for number in numbers]
    )
    add_mask(network, layer, channels)
    for step in range(4):
        set_pruned(network, layer, numbers[:step])
        assert torch.equal(network(case.images).argmax(-1), steps[step])


@torch.no_grad()
def test_what_follows_the_pruned_layer_sees_exact_zeros(case: Case) -> None:
    network, layer = case.copy(), str(case.network.pruned_layer)
    add_mask(network, layer, channel_count(network, layer, case.images.shape[1:]))
    set_pruned(network, layer, [0, 5])
    activations = mean_activations(network, [layer], [case.images])[layer]
    assert activations[[0, 5]].tolist() == [0.0, 0.0]
    assert activations.count_nonzero() > 0


@torch.no_grad()
def test_weights_and_masks_go_to_disk_and_back(case: Case, tmp_path: Path) -> None:
    network, layer = case.copy(), str(case.network.pruned_layer)
    add_mask(network, layer, channel_count(network, layer, case.images.shape[1:]))
    set_pruned(network, layer, [1])
    save_weights(network, tmp_path / "network.safetensors")
    empty = case.copy()
    for value in (*empty.parameters(), *empty.buffers()):
        value.zero_()
    loaded = load_weights(empty, tmp_path / "network.safetensors")
    assert torch.equal(loaded(case.images), network(case.images))
    assert loaded.state_dict().keys() == network.state_dict().keys()


def test_the_gradient_reaches_every_parameter(case: Case) -> None:
    network = case.copy().train()
    functional.cross_entropy(network(case.images), torch.arange(4) % CLASSES).backward()
    still = [name for name, value in network.named_parameters() if value.grad is None or not value.grad.any()]
    assert still == []


def test_images_go_in_as_they_are_and_the_first_layer_normalises_them(case: Case) -> None:
    first = next(layer for layer in case.network.modules() if not list(layer.children()))
    torch.testing.assert_close(first(case.images), (case.images - 0.4) / 0.2)


@pytest.mark.parametrize("network_class", OURS)
@pytest.mark.parametrize("channels", [1, 3])
@torch.no_grad()
def test_our_networks_read_grey_and_coloured_images_that_are_not_square(
    network_class: type[nn.Module], channels: int
) -> None:
    shape = (channels, 41, 54)
    network = network_class(**facts(shape)).eval()
    assert network(torch.rand(2, *shape)).shape == (2, CLASSES)


@pytest.mark.parametrize(
    ("network_class", "smallest"),
    [
        (BadNetsCNN, 16),
        (DeepID, 31),
        (DigitsCNN, 8),
        (PreActResNet18, 8),
        (SignCNN, 16),
        (SpectrogramCNN, 16),
    ],
)
@torch.no_grad()
def test_the_smallest_image_fits_and_a_smaller_one_is_refused(
    network_class: type[nn.Module], smallest: int
) -> None:
    network = network_class(**facts((3, smallest, smallest))).eval()
    assert network(torch.rand(1, 3, smallest, smallest)).shape == (1, CLASSES)
    with pytest.raises(
        ValueError, match=rf"at least {smallest}x{smallest} pixels; these are {smallest - 1}x40"
    ):
        network_class(**facts((3, smallest - 1, 40)))


@torch.no_grad()
def test_the_speech_network_scales_what_is_too_small_for_it() -> None:
    shape = (1, 40, 50)
    assert SpeechCNN(**facts(shape), size=67).eval()(torch.rand(2, *shape)).shape == (2, CLASSES)
    with pytest.raises(ValueError, match=r"67x67 pixels; these would be 66x66.*model\.size"):
        SpeechCNN(**facts(shape), size=66)
    with pytest.raises(ValueError, match=r"67x67 pixels; these would be 40x50.*model\.size"):
        SpeechCNN(**facts(shape), size=None)


@torch.no_grad()
def test_the_speech_network_has_the_papers_sizes_at_the_papers_resolution() -> None:
    with torch.device("meta"):
        network = SpeechCNN(**facts((3, 512, 512)), size=None).eval()
    assert network.get_submodule("fc1").in_features == 256 * 14 * 14
    assert channel_count(network, "pool5", (3, 512, 512)) == 256


@torch.no_grad()
def test_deepid_has_the_layers_of_the_authors_network() -> None:
    network = DeepID(**facts((3, 55, 47))).eval()
    shapes: dict[str, tuple[int, ...]] = {}
    for name in ("pool1", "pool2", "pool3", "relu4", "relu5"):
        network.get_submodule(name).register_forward_hook(
            lambda _, __, output, name=name: shapes.update({name: tuple(output.shape[1:])})
        )
    network(torch.rand(1, 3, 55, 47))
    assert shapes == {
        "pool1": (20, 26, 22),
        "pool2": (40, 12, 10),
        "pool3": (60, 5, 4),
        "relu4": (80, 4, 3),
        "relu5": (160,),
    }


def test_a_preactivation_resnet18_has_512_last_channels_and_eleven_million_parameters() -> None:
    network = PreActResNet18(**facts((3, 32, 32)))
    assert channel_count(network, "relu", (3, 32, 32)) == 512
    assert sum(value.numel() for value in network.parameters()) == pytest.approx(11.17e6, rel=0.005)


@pytest.mark.parametrize("value", [-0.1, 1.0])
@pytest.mark.parametrize("network_class", [DeepID, SignCNN, SpeechCNN, SpectrogramCNN])
def test_a_dropout_that_is_no_share_is_refused(network_class: type[nn.Module], value: float) -> None:
    with pytest.raises(ValueError, match=r"model\.dropout"):
        network_class(**facts((3, 64, 64)), dropout=value)


@pytest.mark.parametrize("network_class", [DigitsCNN, SignCNN, SpectrogramCNN])
def test_a_network_without_channels_is_refused(network_class: type[nn.Module]) -> None:
    with pytest.raises(ValueError, match=r"model\.width"):
        network_class(**facts((3, 64, 64)), width=0)


@pytest.mark.parametrize(
    ("architecture", "layer", "channels"),
    [
        ("resnet18", "model.layer4", 512),
        ("vgg11_bn", "model.features", 512),
        ("mobilenet_v3_small", "model.features", 576),
        ("convnext_tiny", "model.classifier.0", 768),
        ("squeezenet1_1", "model.features", 512),
        ("shufflenet_v2_x0_5", "model.conv5", 1024),
        ("mnasnet0_5", "model.layers", 1280),
        ("googlenet", "model.inception5b", 1024),
        ("swin_t", "model.permute", 768),
    ],
)
@torch.no_grad()
def test_the_last_convolution_of_a_torchvision_network_is_known(
    architecture: str, layer: str, channels: int
) -> None:
    shape = (1, 32, 32)
    with torch.device("meta"):  # shapes without values
        network = TorchvisionClassifier(**facts(shape), architecture=architecture)
    assert network.training
    assert network.pruned_layer == layer
    assert channel_count(network, layer, shape) == channels
    assert cut_at(network, [layer]).first == (layer,)


def test_an_architecture_without_a_known_layer_is_built_and_asks_for_one() -> None:
    with torch.device("meta"):
        network = TorchvisionClassifier(**facts((3, 224, 224)), architecture="vit_b_16")
    with pytest.raises(ValueError, match=r"vit_b_16.*defense\.layers, whose output is \(B, C, \.\.\.\)"):
        _ = network.pruned_layer


@pytest.mark.parametrize(
    ("architecture", "layer"),
    [("swin_t", "model.norm"), ("swin_t", "model.features.7.0.mlp.3"), ("vit_b_16", "model.encoder.ln")],
)
def test_channels_that_come_last_are_refused(architecture: str, layer: str) -> None:
    with torch.device("meta"):
        network = TorchvisionClassifier(**facts((3, 224, 224)), architecture=architecture)
    with pytest.raises(ValueError, match=rf"channels of layer '{layer}' come last in its output \["):
        channel_count(network, layer, (3, 224, 224))


def test_an_unknown_architecture_and_images_it_cannot_read_are_refused() -> None:
    with pytest.raises(ValueError, match=r"'resnet17'.*model\.architecture.*resnet18"):
        TorchvisionClassifier(**facts((3, 32, 32)), architecture="resnet17")
    with pytest.raises(ValueError, match=r"alexnet cannot read images of 32x32 pixels"):
        TorchvisionClassifier(**facts((3, 32, 32)), architecture="alexnet")
