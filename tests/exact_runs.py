"""Runs that one process and several make alike, and what they leave."""

import csv
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from tests.conftest import run_here

# no BatchNorm and no dropout, so that a batch's share is computed as in the whole batch; double precision,
# since sums in another order round as differently as the processor likes
EXACT = ("model=badnets_cnn", "dataset.size=16", "trainer.max_epochs=2", "trainer.precision=64-true")


def exact_run(place: Path, *overrides: str) -> dict[str, Any]:
    places = (f"runs_dir={place / 'runs'}", f"store_dir={place / 'store'}")
    return run_here(*overrides[:1], *EXACT, "logger=none", *places, *overrides[1:])


def weights(place: Path, record: dict[str, Any], stage: str) -> dict[str, torch.Tensor]:
    return load_file(place / "store" / record["stages"][stage] / "network.safetensors")


def losses(place: Path, record: dict[str, Any], stage: str) -> list[float]:
    with (place / "runs" / record["name"] / stage / "metrics.csv").open() as file:
        rows = list(csv.DictReader(file))
    names = [name for name in rows[0] if name.endswith("/loss")]
    return [float(row[name]) for row in rows for name in names if row[name]]


def assert_equal_networks(ones: dict[str, torch.Tensor], twos: dict[str, torch.Tensor]) -> None:
    assert ones.keys() == twos.keys()
    for name, tensor in ones.items():
        torch.testing.assert_close(twos[name], tensor, rtol=1e-3, atol=1e-5, msg=name)
