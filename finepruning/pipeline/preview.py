"""Show an attack: ``python -m finepruning.pipeline.preview attack=sunglasses dataset=yaleb``."""

from pathlib import Path

import hydra
from omegaconf import DictConfig

from finepruning import launcher


@hydra.main(version_base="1.3", config_path="../../conf", config_name="config")
def main(config: DictConfig) -> None:
    """Write what a configuration's attack does to its training images, and print where."""
    from finepruning.attacks import Attack
    from finepruning.attacks.preview import write_preview
    from finepruning.data import ImageSet, pack
    from finepruning.pipeline import begin_store
    from finepruning.pipeline.build import build_attack
    from finepruning.pipeline.refusals import refusals
    from finepruning.pipeline.targets import build

    with refusals():
        attack = build_attack(config)
        if not isinstance(attack, Attack):
            raise ValueError("attack=none and attack=suspect poison nothing to show. Choose another attack.")
        begin_store(config)
        packed = pack(build(config.dataset), Path(config.store_dir) / "data")
        images = ImageSet.whole(packed.train, packed.train_labels, packed.signal)
        attack.check(images, len(packed.classes))
        place = Path(config.runs_dir) / f"preview-{config.name}"
        for path in write_preview(images, attack, place):
            print(path)


if __name__ == "__main__":
    launcher.register()
    main()
