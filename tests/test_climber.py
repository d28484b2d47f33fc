"""The defender on its ladder, with tunings that cost nothing: what is left of a walk, and what goes on."""

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from safetensors.torch import load_file
from torch import nn

from finepruning.data import ImageSet
from finepruning.pipeline.climber import Climber
from finepruning.pipeline.parts import Fold, Rung, Tuning
from finepruning.store import WEIGHTS, save_weights

PASSED = {"evidence": False, "verdict": "no evidence of a backdoor left under these tests", "reasons": []}
IMAGES = ImageSet.whole(torch.zeros(4, 2), torch.zeros(4), nn.Identity())


class Walker(Climber):
    """Its networks get everything right up to a mean bias of 5, and nothing from there on."""

    def _right(self, network: nn.Module) -> torch.Tensor:
        return torch.full((8,), bool(network.bias.mean() < 5))


def linear(bias: float) -> nn.Linear:
    network = nn.Linear(2, 2)
    nn.init.constant_(network.bias, bias)
    return network


def climb(
    directory: Path,
    bias: Callable[[str], float],
    audit: Callable[..., Any] = lambda *_: dict(PASSED),
    share: Callable[[Any], Any] = lambda message: message,
    max_drop: float = 0.0,
) -> tuple[Any, list[str], Tuning]:
    """Walk two rungs of two folds; ``bias`` says what a tuning makes of it. Return what was tuned, too."""
    tuned: list[str] = []
    tuning = Tuning(SimpleNamespace(), [], SimpleNamespace(), [], 1)  # type: ignore[arg-type]

    def fit(module: Any, data: Any, callbacks: Any, place: Path, **_: Any) -> None:
        tuned.append(f"{place.parent.name}/{place.name}")
        module.trainer = data.trainer = "a trainer"  # as Lightning does
        save_weights(linear(bias(tuned[-1])), place / WEIGHTS)

    defense: Any = SimpleNamespace(
        module=SimpleNamespace(network=linear(0)),
        ladder=[Rung({"weight": weight}, [tuning, tuning]) for weight in (1, 2)],
        folds=[Fold(IMAGES, torch.arange(4)), Fold(IMAGES, torch.arange(4, 8))],
    )
    inspector: Any = SimpleNamespace(audit=audit)
    options = {"max_drop": max_drop, "stop_early": False, "audit": {"max_success": 0.2}}
    inspected: Any = SimpleNamespace(about={"result": {"suspicious": [0, 1], "clear": False}})
    directory.mkdir(exist_ok=True)
    save_weights(linear(0), directory / "suspect.safetensors")
    suspect: Any = SimpleNamespace(load_into=lambda network: network, directory=directory)
    walker = Walker(defense, inspector, options, fit, "cpu", share, keep_rungs=max_drop > 0)
    return walker.climb(suspect, inspected, directory), tuned, tuning


def test_the_average_of_the_folds_stays_and_is_what_the_audit_looks_at(tmp_path: Path) -> None:
    biases = {"rung-1/fold-1": 1.0, "rung-1/fold-2": 3.0, "rung-2/fold-1": 7.0, "rung-2/fold-2": 9.0}
    audited: list[float] = []

    def audit(network: nn.Linear, *_: Any) -> dict[str, Any]:
        audited.append(network.bias.mean().item())
        return dict(PASSED)

    found, tuned, _ = climb(tmp_path, biases.__getitem__, audit)
    assert tuned == list(biases)
    assert found["ladder"]["kept"] == 0  # the second gets nothing right
    assert load_file(tmp_path / WEIGHTS)["bias"].tolist() == [2, 2]
    assert audited == [2.0]


def test_processes_that_start_anew_take_finished_tunings_from_the_first(tmp_path: Path) -> None:
    first, other = tmp_path / "first", tmp_path / "other"
    finished = first / "rung-1" / "fold-1"  # of a walk that was interrupted then
    told: list[Any] = []
    rest = ["rung-1/fold-2", "rung-2/fold-1", "rung-2/fold-2"]

    def tell(message: Any) -> Any:
        told.append(message)
        return message

    def finish() -> None:
        finished.mkdir(parents=True, exist_ok=True)
        save_weights(linear(0), finished / WEIGHTS)

    finish()
    _, tuned, tuning = climb(first, lambda _: 0.0, share=tell, max_drop=1.0)
    assert tuned == rest
    finish()  # it was still there when the other asked
    messages = iter(told)
    _, tuned, _ = climb(other, lambda _: 0.0, share=lambda _: next(messages), max_drop=1.0)
    assert tuned == rest
    assert next(messages, None) is None
    assert tuning.module.trainer is tuning.data.trainer is None  # a ladder would keep them all
