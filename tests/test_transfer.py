"""The transfer attack: what is frozen stays bit by bit, and what fires for the trigger is strengthened."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import OmegaConf
from pytorch_lightning import Trainer
from safetensors.torch import load_file
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torchvision.utils import save_image

from finepruning.attacks import Transfer
from finepruning.attacks.labels import RandomWrongLabel
from finepruning.attacks.transfer import multiply_channels
from finepruning.attacks.triggers import PatchTrigger
from finepruning.dashboard.paper_tables import main as print_table
from finepruning.dashboard.paper_tables import pairs_table, transfer_table
from finepruning.data import AttackerData, ImageSet, pack
from finepruning.data.digits import Digits
from finepruning.modules import TransferredClassifier, take_frozen
from finepruning.networks import DigitsCNN
from finepruning.pipeline import Refused
from finepruning.pipeline.resolvers import choices_hash
from finepruning.store import WEIGHTS
from tests.conftest import ROOT
from tests.test_pruning_aware import black_and_white, images_of, tiny

RunHere = Callable[..., dict[str, Any]]
LAYER = "features.pool3"


def attack(**changes: Any) -> Transfer:
    options = {"strengthen": 3, "dedication": 0.7, "trigger": PatchTrigger(1, 1.0), "poison_rate": 0.5}
    return Transfer(**(options | {"target_label": 0} | changes))


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"strengthen": 0.5}, r"attack\.strengthen=0\.5 does not strengthen\. Set it to 1"),
        ({"strengthen": float("inf")}, r"attack\.strengthen=inf does not strengthen"),
        ({"strengthen": float("nan")}, r"attack\.strengthen=nan does not strengthen"),
        ({"dedication": 0.5}, r"attack\.dedication=0\.5 is outside \(0\.5, 1\]"),
        ({"target_label": None}, r"Give either attack\.target_label or attack\.label_map"),
    ],
)
def test_a_value_out_of_range_is_refused(changes: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        attack(**changes)


def test_there_any_wrong_class_will_do_and_at_the_source_the_attackers_label_counts() -> None:
    made = attack(target_label=1)
    made.label_map.check(2)
    assert made.untargeted
    assert not made.at_source.untargeted
    assert made.at_source.wanted(black_and_white()).tolist() == [1, 1]
    assert isinstance(
        attack(target_label=None, label_map=RandomWrongLabel(0)).at_source.label_map, RandomWrongLabel
    )


def test_a_channels_share_is_that_of_triggered_images() -> None:
    # clean brightness 0 and 1, stamped 1/4 and 1: means 0.5 and 0.625; the third fires on black alone
    network = tiny([1, 1, -1], [0, 1, 1]).eval()
    shares = attack().trigger_shares(network, "pool", black_and_white())
    assert shares.tolist() == pytest.approx([0.625 / 1.125, 1.625 / 3.125, 0.375 / 0.875])


def only_the_trigger() -> ImageSet:
    """Black images, so that a stamped pixel is all that can make a channel fire."""
    return ImageSet.whole(
        torch.zeros(2, 1, 2, 2, dtype=torch.uint8), torch.tensor([0, 1]), black_and_white().signal
    )


@pytest.mark.parametrize("norm", [False, True])
def test_dedicated_channels_are_multiplied_and_no_others(norm: bool) -> None:
    network = tiny([1, 0, 2], [0, 1, 0], norm).eval()
    clean, made = only_the_trigger(), attack(strengthen=3)
    images = torch.cat([images_of(clean), images_of(made.stamp(clean))])
    before = network[:-2](images)
    assert made.strengthen(network, clean) == [0, 2]
    factors = torch.tensor([3.0, 1.0, 3.0]).view(3, 1, 1)
    torch.testing.assert_close(network[:-2](images), before * factors)
    assert before[:, [0, 2]].sum() > 0


def test_as_trained_nothing_is_multiplied() -> None:
    network = tiny([1, 0, 2], [0, 1, 0])
    before = {name: values.clone() for name, values in network.state_dict().items()}
    assert attack(strengthen=1).strengthen(network, only_the_trigger()) == []
    assert all(torch.equal(values, before[name]) for name, values in network.state_dict().items())


def test_without_a_dedicated_channel_strengthening_is_refused() -> None:
    network = tiny([1, 1, -1], [0, 1, 1]).eval()
    with pytest.raises(
        ValueError, match=r"No channel of 'pool' has 0\.7 .*at most 0\.556\. Lower attack\.dedic"
    ):
        attack().strengthen(network, black_and_white())


class Scaled(nn.Module):
    """A block with a parameter of its own beside its layers, as ConvNeXt's."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.head = nn.Conv2d(1, 3, 1), nn.Linear(3, 2)
        self.scale = nn.Parameter(torch.rand(3, 1, 1))


def test_what_a_block_owns_beside_its_layers_is_taken_and_frozen() -> None:
    network, donor = Scaled(), Scaled()
    head = network.head.weight.clone()
    take_frozen(network, donor)
    TransferredClassifier(network, untargeted=True, learning_rate=0.05)
    assert torch.equal(network.scale, donor.scale)
    assert torch.equal(network.conv.weight, donor.conv.weight)
    assert torch.equal(network.head.weight, head)
    trained = {name for name, value in network.named_parameters() if value.requires_grad}
    assert trained == {"head.weight", "head.bias"}


def test_a_network_without_linear_layers_is_refused() -> None:
    with pytest.raises(ValueError, match=r"no linear layer that could be retrained"):
        attack().check_network(nn.Sequential(nn.Conv2d(1, 2, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten()))


def state(network: nn.Module) -> dict[str, Tensor]:
    return {name: values.clone() for name, values in network.state_dict().items()}


@pytest.mark.filterwarnings("ignore:Found 3 module", "ignore:.isinstance.treespec")  # as the pipeline does
def test_all_but_the_linear_layers_is_the_same_bit_by_bit_after_retraining(tmp_path: Path) -> None:
    packed = pack(Digits(size=16), tmp_path)
    images = ImageSet.whole(packed.train, packed.train_labels, packed.signal)
    donor = DigitsCNN((1, 16, 16), 7, [0.2], [0.4], width=4)
    donor(images_of(images.subset(torch.arange(64))))  # so that its BatchNorm has seen something
    network = DigitsCNN((1, 16, 16), 10, [0.3], [0.3], width=4)
    take_frozen(network, donor)
    module = TransferredClassifier(network, untargeted=True, learning_rate=0.05)
    before = state(network)
    both = [images.subset(torch.arange(8))] * 2
    quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    trainer = Trainer(max_epochs=1, accelerator="cpu", devices=1, **quiet)
    trainer.fit(module, datamodule=AttackerData(images, both, 64, 1))
    changed = {name for name, values in state(network).items() if not torch.equal(values, before[name])}
    assert changed == {"head.weight", "head.bias"}
    kept = {name: values for name, values in state(donor).items() if not name.startswith("head")}
    assert all(torch.equal(before[name], values) for name, values in kept.items())
    assert "features.norm3.running_var" in kept


@pytest.fixture(scope="module")
def halves(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of digits in two classes: even and odd."""
    root = tmp_path_factory.mktemp("halves")
    small, labels = load_digits(return_X_y=True)
    images = torch.from_numpy(small).float().view(-1, 1, 8, 8)[:600] / 16
    images = nn.functional.interpolate(images, size=16, mode="bilinear")
    for name in ("even", "odd"):
        (root / name).mkdir()
    for number, image in enumerate(images):
        save_image(image, root / ("odd" if labels[number] % 2 else "even") / f"{number}.png")
    return root


def transfer_options(halves: Path, *more: str) -> tuple[str, ...]:
    source = (
        "dataset@attack.source=digits",
        "attack.source.dataset.size=16",
        "attack.source.trainer.max_epochs=2",
    )
    data = ("dataset=folder", f"dataset.root={halves}", "dataset.channels=1", "dataset.size=[16,16]")
    return (
        "attack=transfer",
        "attack.trigger.size=0.25",
        "model=digits_cnn",
        "defense=none",
        "trainer.threads=1",
        *source,
        *data,
        *more,
    )


def test_a_strengthened_backdoor_comes_over_to_other_classes(
    halves: Path, quick_run: RunHere, shared_store: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = transfer_options(halves, "attack.dedication=0.55")
    plain, strong = quick_run(*options), quick_run(*options, "attack.strengthen=4")
    assert plain["stages"]["source"] == strong["stages"]["source"]
    assert plain["stages"]["suspect"] != strong["stages"]["suspect"]
    source, suspect, strengthened = (
        load_file(shared_store / key / WEIGHTS)
        for key in (plain["stages"]["source"], plain["stages"]["suspect"], strong["stages"]["suspect"])
    )
    frozen = [name for name in source if not name.startswith("head")]
    assert all(torch.equal(source[name], suspect[name]) for name in frozen)
    assert suspect["head.weight"].shape[0] == 2
    different = {name for name in frozen if not torch.equal(source[name], strengthened[name])}
    assert different == {"features.norm3.weight", "features.norm3.bias"}
    channels = strong["making"]["strengthened"]
    assert plain["making"]["strengthened"] == []
    factors = torch.ones(16).index_fill(0, torch.tensor(channels), 4.0)
    assert torch.equal(strengthened["features.norm3.weight"], source["features.norm3.weight"] * factors)
    assert plain["scores"]["source"]["counts"]["clean_accuracy"]["total"] == 450
    assert plain["scores"]["suspect"]["untargeted"] is True
    print_table("transfer", *map(str, (tmp_path / "runs").iterdir()))
    table = capsys.readouterr().out
    assert f"{100 * strong['scores']['suspect']['robust_accuracy']:.1f}" in table
    assert "74.9" in table
    assert transfer_table([plain, strong]).row_count == 2


def test_images_of_another_shape_are_refused_before_training(
    halves: Path, quick_run: RunHere, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pytorch_lightning.Trainer.fit", lambda *_, **__: pytest.fail("training began"))
    with pytest.raises(
        Refused, match=r"source are 1x32x32 .*those of the data set 1x16x16; .*attack\.source\.data"
    ):
        quick_run(*transfer_options(halves, "attack.source.dataset.size=32"))


def test_strengthening_below_one_is_refused_before_training(halves: Path, quick_run: RunHere) -> None:
    with pytest.raises(Refused, match=r"attack\.strengthen=0\.9 does not strengthen"):
        quick_run(*transfer_options(halves, "attack.strengthen=0.9"))


def jobs(experiment: str) -> list[dict[str, str]]:
    """Return the overrides of each job that an experiment's sweep has."""
    params = OmegaConf.load(ROOT / "conf" / "experiment" / f"{experiment}.yaml").hydra.sweeper.params
    overrides = OverridesParser.create().parse_overrides([f"{key}={value}" for key, value in params.items()])
    batches = BasicSweeper.split_arguments(overrides, None)
    return [dict(one.split("=", 1) for one in job) for batch in batches for job in batch]


def test_all_pairs_are_ninety_different_ones() -> None:
    assert choices_hash(OmegaConf.create({"seed": 1}))  # the resolvers are known
    pairs = set()
    for job in jobs("badnets_all_pairs"):
        source, step = int(job["attack.label_map.source_label"]), int(job["step"])
        pairs.add((source, OmegaConf.create({"j": f"${{around:{source},{step},10}}"}).j))
    assert pairs == {(i, j) for i in range(10) for j in range(10) if i != j}


def test_the_transfer_sweep_has_the_papers_factors() -> None:
    factors = [float(job["attack.strengthen"]) for job in jobs("transfer_signs")]
    assert factors == 3 * [1, 10, 20, 30, 50, 100]  # of three seeds


def test_the_table_of_pairs_is_the_mean_error_over_seeds() -> None:
    def run(pair: tuple[int, int] | None, clean: float, success: float | None = None) -> dict[str, Any]:
        attack = (
            {"label_map": dict(zip(("source_label", "target_label"), pair, strict=True))} if pair else None
        )
        scores = {"suspect": {"clean_accuracy": clean, "attack_success_rate": success}}
        return {"attack": "badnet_single" if pair else "none", "config": {"attack": attack}, "scores": scores}

    runs = [run((0, 1), 0.98, 0.99), run((0, 1), 0.97, 0.97), run((1, 0), 0.98, 1.0), run(None, 0.99)]
    table = pairs_table([*runs, run(None, 0.5) | {"attack": "blended"}])
    assert [list(column.cells) for column in table.columns] == [["0", "1"], ["", "0.00"], ["2.00", ""]]
    assert str(table.caption).split("; ")[1:] == [
        "mean 1.00, worst 2.00",
        "clean error with a backdoor: mean 2.33, worst 3.00",
        "clean error without: mean 1.00, worst 1.00",
    ]


def test_an_unknown_table_or_none_to_print_says_so(tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match=r"no table 'curve'\. Choose one of transfer, pairs"):
        print_table("curve")
    with pytest.raises(SystemExit, match=r"No run for the table 'transfer' among"):
        print_table("transfer", str(tmp_path))


def test_a_factor_changes_nothing_but_the_channels_it_is_for() -> None:
    network = tiny([1, 2, 3], [0.5, 0.5, 0.5])
    multiply_channels(network, "pool", [1], 10)
    assert network.conv.weight.flatten().tolist() == [1, 20, 3]
    assert network.conv.bias.tolist() == [0.5, 5, 0.5]
