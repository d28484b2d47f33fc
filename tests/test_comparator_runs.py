"""Defenses of others as runs: alone, as rungs of a ladder, and over two processes."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file

from finepruning.pipeline import Refused
from tests.conftest import composed
from tests.exact_runs import assert_equal_networks, exact_run, losses, weights

RunHere = Callable[..., dict[str, Any]]
SHORT = {  # options that make each a matter of a second
    "ft_sam": ("defense.tuning.max_epochs=1",),
    "anp": ("defense.tuning.max_epochs=2", "defense.tuning.min_steps=0", "defense.tuning.max_drop=1"),
    "clp": ("defense.u=0.5",),
    "i_bau": ("defense.tuning.max_epochs=1",),
    "nad": ("defense.tuning.max_epochs=2", "defense.tuning.teacher_epochs=1"),
    "fst": ("defense.tuning.max_epochs=1",),
    "d3": ("defense.tuning.max_epochs=1",),
    "sau": ("defense.tuning.max_epochs=1",),
}


UNLEARN = (
    *("defense.inspection.search.steps=20", "defense.inspection.search.images=2"),
    *("defense.tuning.max_epochs=2", "defense.tuning.min_steps=0"),
)


@pytest.mark.parametrize("defense", SHORT)
def test_each_leaves_a_changed_network_and_trains_no_other_suspect(
    defense: str, quick_run: RunHere, shared_store: Path
) -> None:
    suspect = quick_run("defense=none")["stages"]["suspect"]
    record = quick_run(f"defense={defense}", *SHORT[defense])
    assert record["stages"]["suspect"] == suspect
    before, after = (
        load_file(shared_store / stage / "network.safetensors")
        for stage in (suspect, record["stages"]["defended"])
    )
    changed = [name for name in after if name not in before or not (after[name] == before[name]).all()]
    masks = {name.removesuffix(".channel_mask") for name in changed if name.endswith(".channel_mask")}
    assert changed
    assert (len(masks) == len(changed)) == (defense in ("anp", "clp"))  # which change nothing else
    pruned = {layer: int((after[f"{layer}.channel_mask"] == 0).sum()) for layer in masks}
    assert {layer: len(gone) for layer, gone in record["pruned"].items()} == {
        layer: count for layer, count in pruned.items() if count
    }
    assert bool(record["pruned"]) == (defense in ("anp", "clp"))
    assert record["findings"] == ({"threshold": 0.95} if defense == "anp" else {})


def test_the_ladder_holds_each_of_them_with_its_own_options(quick_run: RunHere) -> None:
    tuners = composed("defense=auto").defense.tuners
    assert set(tuners) == {"finetune", *SHORT}
    rungs = "[{tuner: clp}, {tuner: ft_sam, max_epochs: 1, prune: 0.05}, {tuner: d3, max_epochs: 1}]"
    search = ("defense.inspection.search.steps=20", "defense.inspection.search.images=2")
    options = ("defense.max_drop=1", "defense.tuners.clp.u=0.5", f"defense.ladder={rungs}")
    record = quick_run("defense=auto", *search, *options)
    walked = record["ladder"]["rungs"]
    assert [rung["options"]["tuner"] for rung in walked] == ["clp", "ft_sam", "d3"]
    assert record["ladder"]["kept"] == 2
    assert len({(rung["lost"], rung["gained"]) for rung in walked}) > 1
    assert not record["pruned"]  # what the first two rungs pruned is open again


def test_a_channel_limit_below_0_is_refused(quick_run: RunHere) -> None:
    with pytest.raises(
        Refused, match=r"u=-1 is below 0\. Set defense\.u to 0 or more; the paper's value is 3"
    ):
        quick_run("defense=clp", "defense.u=-1")


@pytest.mark.slow
@pytest.mark.parametrize("defense", ["ft_sam", "anp", "i_bau", "nad", "d3", "sau", "unlearn"])
def test_two_processes_leave_the_network_of_one(defense: str, tmp_path: Path) -> None:
    options = (f"defense={defense}", *SHORT.get(defense, UNLEARN), "defense.tuning.batch_size=33")
    one = exact_run(tmp_path, "trainer=cpu", *options)
    two = exact_run(tmp_path, "trainer=ddp_cpu", *options)
    assert (one["processes"], two["processes"]) == (1, 2)
    assert losses(tmp_path, two, "defended") == pytest.approx(losses(tmp_path, one, "defended"), rel=1e-3)
    assert_equal_networks(weights(tmp_path, one, "defended"), weights(tmp_path, two, "defended"))
    assert one["findings"] == two["findings"]
