"""Training of any classifier in this project."""

import math
from collections.abc import Sequence
from typing import Any, ClassVar, Literal

import torch
from pytorch_lightning import LightningModule
from torch import Tensor, nn
from torch.nn import functional

from finepruning.data.loaders import BatchRows
from finepruning.metrics import CleanAccuracy

Batch = tuple[Tensor, Tensor]


class DivergedError(RuntimeError):
    """The training loss is no longer a number."""


class Classifier(LightningModule):
    """Cross-entropy training of a network, with a learning rate that changes at every step.

    Args:
        network: Images (B, C, H, W) in [0, 1] -> logits (B, K).
        learning_rate: Peak learning rate, above 0; None for a network that is not trained.
        weight_decay: L2 penalty (SGD) or decoupled decay (AdamW), at least 0.
        optimizer: ``"sgd"`` with Nesterov momentum 0.9, or ``"adamw"``.
        schedule: ``"one_cycle"`` (up, then down to zero), ``"cosine"`` (down to zero) or ``"constant"``.
        label_smoothing: In [0, 1).
        gradient_clip: Largest L2 norm of a step's gradient, above 0; None leaves gradients as they are.
        seed: Seed of what is random in training, such as dropout; set anew in each epoch, so that a resumed
            training goes on as if it had not stopped.
        channels_last: Keep convolutions' weights and images channels-last in memory, which is faster on most
            devices.
        compile: Train through ``torch.compile``, which takes a while to prepare. Only training does: what
            watches single layers, such as pruning, sees the plain network, and weights keep their names.

    Raises:
        ValueError: If a value is out of range.
        DivergedError: In training, at the end of an epoch whose loss or weights are not finite.
    """

    phase: ClassVar[str] = "train"
    watched: ClassVar[str] = "validation"

    def __init__(
        self,
        network: nn.Module,
        *,
        learning_rate: float | None = None,
        weight_decay: float = 0.0,
        optimizer: Literal["sgd", "adamw"] = "sgd",
        schedule: Literal["one_cycle", "cosine", "constant"] = "one_cycle",
        label_smoothing: float = 0.0,
        gradient_clip: float | None = None,
        seed: int = 0,
        channels_last: bool = False,
        compile: bool = False,
    ) -> None:
        super().__init__()
        if learning_rate is not None and learning_rate <= 0:
            raise ValueError(
                f"learning_rate={learning_rate} must be above 0. Change training.learning_rate, of a repair "
                "defense.tuning.learning_rate."
            )
        if not weight_decay >= 0:
            raise ValueError(
                f"weight_decay={weight_decay} is below 0. Set training.weight_decay, of a repair "
                "defense.tuning.weight_decay, to 0 or more."
            )
        if not 0 <= label_smoothing < 1:
            raise ValueError(
                f"label_smoothing={label_smoothing} is outside [0, 1). Change training.label_smoothing, of a "
                "repair defense.tuning.label_smoothing."
            )
        if gradient_clip is not None and gradient_clip <= 0:
            raise ValueError(f"gradient_clip={gradient_clip} must be above 0, or null for none.")
        if optimizer not in ("sgd", "adamw"):
            raise ValueError(f"optimizer={optimizer!r} is unknown; choose sgd or adamw.")
        if schedule not in ("one_cycle", "cosine", "constant"):
            raise ValueError(f"schedule={schedule!r} is unknown; choose one_cycle, cosine or constant.")
        self.save_hyperparameters(ignore=["network"], logger=False)  # the run logs its whole configuration
        self.network = network.to(memory_format=torch.channels_last) if channels_last else network
        self.clean_accuracy = CleanAccuracy()
        self.findings: dict[str, Any] = {}  # what a training found beside weights, as plain values
        self._epoch_loss = torch.zeros(())
        self._weight = 1.0  # of this process's share of a batch
        self._train_logits = torch.compile(self.forward) if compile else self.forward

    def forward(self, images: Tensor) -> Tensor:
        """Return logits (B, K) for images (B, C, H, W) in [0, 1]."""
        logits: Tensor = self.network(images)
        return logits

    def on_train_epoch_start(self) -> None:
        """Seed the epoch by its number."""
        torch.manual_seed(self.hparams["seed"] * 1_000_003 + self.current_epoch * 1009 + self.global_rank)
        self._epoch_loss = torch.zeros((), device=self.device)
        rows = getattr(self.trainer.train_dataloader, "sampler", None)
        self._weight = rows.weight if isinstance(rows, BatchRows) else 1.0

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Return the loss of a batch of (images, labels)."""
        images, labels = batch
        return self.noted(self.cross_entropy(self._train_logits(images), labels))

    def cross_entropy(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Return the mean cross-entropy of logits (B, K), weighted by this process's share of the batch."""
        smoothing = self.hparams["label_smoothing"]
        return self._weight * functional.cross_entropy(logits, labels, label_smoothing=smoothing)

    def noted(self, loss: Tensor) -> Tensor:
        """Return a batch's loss, once it counts in the mean that the epoch logs."""
        self._epoch_loss += loss.detach()
        return loss

    def over_processes(self, tensors: Sequence[Tensor]) -> list[Tensor]:
        """Return the mean of each tensor over all processes; gradients that decide a step must be equal."""
        if self.trainer.world_size == 1:
            return list(tensors)
        flat = torch.cat([tensor.flatten() for tensor in tensors])
        mean: Any = self.trainer.strategy.reduce(flat, reduce_op="mean")
        parts = mean.split([tensor.numel() for tensor in tensors])
        return [part.view_as(tensor) for part, tensor in zip(parts, tensors, strict=True)]

    def on_train_epoch_end(self) -> None:
        """Log the epoch's mean loss; stop before a checkpoint is written where training has diverged."""
        loss = self._epoch_loss / self.trainer.num_training_batches
        loss = self.trainer.strategy.reduce(loss, reduce_op="mean")  # so that all processes stop, or none
        lost = [name for name, weight in self.network.named_parameters() if not weight.isfinite().all()]
        if lost or not torch.isfinite(loss):
            what = f"loss became {loss.item()}"
            if torch.isfinite(loss):  # the last step went astray
                what = f"weight {lost[0]} became no number"
            raise DivergedError(
                f"The {what} in epoch {self.current_epoch + 1} ({self.phase}). The checkpoint of the epoch "
                "before is kept. Lower the learning rate."
            )
        self.log(f"{self.phase}/loss", loss)

    def validation_step(self, batch: Batch, batch_idx: int, dataloader_idx: int = 0) -> None:
        """Count the correctly classified images."""
        images, labels = batch
        self.clean_accuracy.update(self(images), labels)

    def on_validation_epoch_end(self) -> None:
        """Log the share of correctly classified images."""
        self.log(f"{self.watched}/clean_accuracy", self.clean_accuracy.compute())
        self.clean_accuracy.reset()

    def configure_optimizers(self) -> Any:
        """Return the optimizer and its schedule, stepped after every batch."""
        rate, decay = self.hparams["learning_rate"], self.hparams["weight_decay"]
        if rate is None:
            return None
        parameters = [parameter for parameter in self.parameters() if parameter.requires_grad]
        optimizer: torch.optim.Optimizer
        if self.hparams["optimizer"] == "adamw":
            optimizer = torch.optim.AdamW(parameters, rate, weight_decay=decay)
        else:
            optimizer = torch.optim.SGD(parameters, rate, momentum=0.9, nesterov=True, weight_decay=decay)
        steps = max(1, int(self.trainer.estimated_stepping_batches))
        schedule = torch.optim.lr_scheduler.LambdaLR(
            optimizer, lambda step: self.rate_scale(min(1.0, step / steps))
        )
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def configure_gradient_clipping(
        self,
        optimizer: torch.optim.Optimizer,
        gradient_clip_val: float | None = None,
        gradient_clip_algorithm: str | None = None,
    ) -> None:
        """Shorten a gradient that is too long; where the module names no length, the trainer's counts."""
        own = self.hparams["gradient_clip"]
        if own is None:
            self.clip_gradients(optimizer, gradient_clip_val, gradient_clip_algorithm)
        else:
            self.trainer.precision_plugin.clip_gradients(optimizer, own)  # whatever the trainer has

    def rate_scale(self, done: float) -> float:
        """Return the learning rate's share of its peak when this share of the training is done."""
        return _SCHEDULES[self.hparams["schedule"]](done)


def _cosine(done: float) -> float:
    return 0.5 * (1 + math.cos(math.pi * done))


def _one_cycle(done: float, warm_up: float = 0.25) -> float:
    """Rise from a 25th to 1 in the first quarter, then fall to 0."""
    if done < warm_up:
        return 0.04 + 0.96 * done / warm_up
    return _cosine((done - warm_up) / (1 - warm_up))


_SCHEDULES = {"one_cycle": _one_cycle, "cosine": _cosine, "constant": lambda done: 1.0}
