"""How Ultralytics' own trainer trains: its optimizer, warm-up, accumulation and frozen layers."""

import math
from collections.abc import Sequence
from copy import copy
from types import SimpleNamespace
from typing import Any

from lightning.pytorch import Trainer
from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

from lit_prune.errors import ArgumentError


class Recipe:
    """What Ultralytics' trainer does between the loss and the next batch, by its settings.

    Args:
        settings: As `read_hyperparameters` returns them.

    Raises:
        ArgumentError: If a setting asks for what only Ultralytics' own trainer does.
    """

    def __init__(self, settings: Any) -> None:
        wrong = [name for name in ("cls_pw", "distill_model") if getattr(settings, name, None)]
        wrong += ["quantize"] if getattr(settings, "quantize", None) == 8 else []
        if wrong:
            raise ArgumentError(
                f"LitYOLO does not train with the hyperparameters {', '.join(wrong)}. Leave them out, or train with "
                "Ultralytics' own trainer and UltralyticsPruning."
            )
        self.settings = settings
        self._warmup_bias_lr = settings.warmup_bias_lr
        self._last_step = -1

    def freeze_(self, network: nn.Module) -> None:
        """Freeze the layers that `freeze` names, and let all others learn.

        Raises:
            ArgumentError: If nothing is left to learn.
        """
        for name, parameter in network.named_parameters():
            parameter.requires_grad = not self._is_frozen(name)
        if not any(parameter.requires_grad for parameter in network.parameters()):
            raise ArgumentError(f"freeze={self.settings.freeze!r} leaves no layer that learns; freeze fewer layers.")

    def train_(self, network: nn.Module) -> None:
        """Set the network to training, but the batch norms of frozen layers to what they know."""
        network.train()
        for name, module in network.named_modules():
            if isinstance(module, nn.BatchNorm2d) and self._is_frozen(name):
                module.eval()

    def configure(self, trainer: Trainer, network: Any) -> tuple[Optimizer, LambdaLR]:
        """Build the optimizer as Ultralytics does, `auto` included, and the scheduler that steps once per epoch.

        Raises:
            ArgumentError: If the Trainer has no `max_epochs`, accumulates by itself, or the batch size is unknown.
        """
        from ultralytics.engine.trainer import BaseTrainer
        from ultralytics.utils.torch_utils import one_cycle

        from lit_prune.yolo.networks import count_classes
        from lit_prune.yolo.package import quiet_ultralytics

        # Lightning does this later; until then the number of batches is infinite.
        trainer.fit_loop.setup_data()
        epochs = _epochs(trainer)
        batch, images = _sizes(trainer)
        settings = copy(self.settings)
        nominal = max(round(settings.nbs / batch), 1)
        decay = settings.weight_decay * batch * nominal / settings.nbs
        # It is a method, but all that it reads of its trainer is here.
        stand_in = SimpleNamespace(args=settings, data={"nc": count_classes(network)})
        with quiet_ultralytics():
            optimizer = BaseTrainer.build_optimizer(
                stand_in,
                model=network,
                name=settings.optimizer,
                lr=settings.lr0,
                momentum=settings.momentum,
                decay=decay,
                iterations=math.ceil(images / max(batch, settings.nbs)) * epochs,
            )
        self._warmup_bias_lr = settings.warmup_bias_lr  # `auto` changes it
        final = settings.lrf
        if settings.cos_lr:
            factor = one_cycle(1, final, epochs)
        else:

            def factor(epoch: int) -> float:
                return float(max(1 - epoch / epochs, 0) * (1.0 - final) + final)

        return optimizer, LambdaLR(optimizer, factor)

    def before_batch(self, trainer: Trainer, batch_idx: int) -> None:
        """Warm up learning rates, momentum and accumulation, and decide whether this batch ends with a step.

        Gradients add up until a nominal batch (`nbs`) is full, and are cleared where the next one begins. The last
        batch of an epoch always ends with a step: Lightning keeps no gradients over the end of an epoch.
        """
        batches = int(trainer.num_training_batches)
        done = batches * trainer.current_epoch + batch_idx
        if batch_idx == 0:
            self._last_step = done - 1
        if done == self._last_step + 1:
            # Lightning would clear them where `accumulate_grad_batches` divides the batch's number, but that changes.
            for optimizer in trainer.optimizers:
                optimizer.zero_grad()
        epochs = _epochs(trainer)
        nominal = min(max(round(self.settings.nbs / _sizes(trainer)[0]), 1), batches * epochs)
        warmup = round(min(self.settings.warmup_epochs, max(epochs - 1, 0)) * batches)
        if warmup > 0 and done <= warmup:
            progress = done / warmup
            nominal = max(1, round(_between(1, nominal, progress)))
            for scheduler in trainer.lr_scheduler_configs:
                factors: Any = scheduler.scheduler
                for group, factor in zip(factors.optimizer.param_groups, factors.lr_lambdas, strict=True):
                    start = self._warmup_bias_lr if group.get("param_group") == "bias" else 0.0
                    end = group["initial_lr"] * factor(trainer.current_epoch)
                    group["lr"] = _between(start, end, progress)
                    if "momentum" in group:
                        group["momentum"] = _between(self.settings.warmup_momentum, self.settings.momentum, progress)
        due = done - self._last_step >= nominal
        if due:
            self._last_step = done
        # Lightning steps after batches that this divides.
        trainer.accumulate_grad_batches = 1 if due else batches + 1

    def _is_frozen(self, name: str) -> bool:
        freeze = self.settings.freeze
        layers: Sequence[Any] = freeze if isinstance(freeze, list) else range(freeze or 0)
        return any(part in name for part in (*(f"model.{layer}." for layer in layers), ".dfl"))


def check_trainer(trainer: Trainer) -> None:
    """Raise an ArgumentError for a Trainer whose own accumulation would be on top of the nominal batch."""
    if trainer.accumulate_grad_batches != 1:
        raise ArgumentError(
            f"With hyperparameters of Ultralytics, gradients add up to a nominal batch of `nbs` images, but the "
            f"Trainer has accumulate_grad_batches={trainer.accumulate_grad_batches}. Leave that out, and set `nbs`."
        )


def _between(start: float, end: float, progress: float) -> float:
    return start + (end - start) * progress


def _epochs(trainer: Trainer) -> int:
    if not trainer.max_epochs or trainer.max_epochs < 1 or math.isinf(trainer.num_training_batches):
        raise ArgumentError(
            "Ultralytics' learning rate falls over the epochs of the run: give the Trainer max_epochs, and data whose "
            "length is known."
        )
    return trainer.max_epochs


def _sizes(trainer: Trainer) -> tuple[int, int]:
    """Images in a batch, over all devices, and in an epoch."""
    loader: Any = trainer.train_dataloader
    size = getattr(loader, "batch_size", None)
    if not size:
        raise ArgumentError(
            f"Training with hyperparameters of Ultralytics needs a DataLoader with a batch_size, but got "
            f"{type(loader).__name__} of batch_size={size}."
        )
    return size * trainer.world_size, len(loader.dataset)
