"""Attack, defend, score: ``python run.py -m attack=badnet defense=none,prune,finetune,fineprune``."""

import hydra
from omegaconf import DictConfig

from finepruning import launcher, pipeline


@hydra.main(version_base="1.3", config_path="conf", config_name="config")
def main(config: DictConfig) -> None:
    """Run one configuration."""
    pipeline.run(config)


if __name__ == "__main__":
    launcher.register()
    main()
