"""Training that is compiled or in low precision leaves the same network, in the same form."""

from typing import Any

import pytest
import torch
from pytorch_lightning import Trainer

from finepruning.data import AttackerData, ImageSet
from finepruning.data.images import Pixels
from finepruning.modules import CleanClassifier, FinePrunedClassifier
from finepruning.networks import DigitsCNN
from finepruning.pruning import mean_activations, set_pruned

CLASSES = 7
FACTS: dict[str, Any] = {"image_shape": (1, 16, 16), "num_classes": CLASSES, "mean": [0.4], "std": [0.2]}


def fit_digits(module: CleanClassifier | FinePrunedClassifier, **options: Any) -> None:
    raw = torch.randint(256, (64, 1, 16, 16), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    images = ImageSet.whole(raw, torch.arange(64) % CLASSES, Pixels())
    trainer = Trainer(
        max_epochs=2,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        use_distributed_sampler=False,
        **options,
    )
    trainer.fit(module, datamodule=AttackerData(images, [images], 32, 0))


def trained(compile_it: bool) -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    network = DigitsCNN(**FACTS, width=4)
    fit_digits(CleanClassifier(network, learning_rate=0.05, compile=compile_it))
    return dict(network.state_dict())


@pytest.fixture
def interpreted(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """torch.compile without its code generation; the list holds what was compiled."""
    compiled: list[Any] = []
    real = torch.compile

    def compile_eagerly(function: Any) -> Any:
        compiled.append(function)
        return real(function, backend="eager")

    monkeypatch.setattr(torch, "compile", compile_eagerly)
    return compiled


@pytest.mark.filterwarnings("ignore")
def test_compiled_training_keeps_the_weights_names_and_values(interpreted: list[Any]) -> None:
    plain, compiled = trained(False), trained(True)
    assert len(interpreted) == 1
    torch.testing.assert_close(compiled, plain)  # a dictionary: names, too


@pytest.mark.filterwarnings("ignore")
def test_pruned_channels_stay_pruned_and_can_be_ranked_when_training_is_compiled(
    interpreted: list[Any],
) -> None:
    torch.manual_seed(0)
    network = DigitsCNN(**FACTS, width=4)
    layers = [network.pruned_layer]
    module = FinePrunedClassifier(network, layers, (1, 16, 16), learning_rate=0.05, compile=True)
    set_pruned(network, layers[0], [2, 3])
    fit_digits(module)
    activations = mean_activations(network, layers, [torch.rand(8, 1, 16, 16)])[layers[0]]
    assert len(interpreted) == 1
    assert activations[[2, 3]].tolist() == [0.0, 0.0]


@pytest.mark.filterwarnings("ignore")
def test_training_in_bfloat16_leaves_a_float32_network() -> None:
    torch.manual_seed(0)
    network = DigitsCNN(**FACTS, width=4)
    fit_digits(CleanClassifier(network, learning_rate=0.05, channels_last=True), precision="bf16-mixed")
    floats = [value for value in network.state_dict().values() if value.is_floating_point()]
    assert {value.dtype for value in floats} == {torch.float32}
    assert network.eval()(torch.rand(2, 1, 16, 16)).dtype == torch.float32


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_really_compiled_training_gives_the_same_losses() -> None:
    plain, compiled = trained(False), trained(True)
    torch.testing.assert_close(compiled, plain, atol=1e-4, rtol=1e-3)
