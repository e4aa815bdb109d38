"""One run of the demo, with or without prunings."""

from __future__ import annotations

import logging
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer, seed_everything
from lightning.pytorch.callbacks import RichProgressBar
from rich.console import Console

from lit_prune.callback import ChannelPruning
from lit_prune.common.names import count_parameters
from lit_prune.cost.counts import Cost
from lit_prune.data import DigitScenes, DigitScenesDataModule
from lit_prune.demo.settings import Recipe
from lit_prune.report.tables import human
from lit_prune.select import MacsBudget, Weighted
from lit_prune.yolo import LitYOLO


@dataclass(frozen=True)
class Run:
    """A trained detector, and what was seen on the way.

    Attributes:
        detector: The network after its last epoch.
        epochs: One dict per epoch: ``epoch``, ``map``, ``map_50``, ``macs``, ``params``.
        events: What was pruned, one dict per event.
        seconds: How long it took.
    """

    detector: LitYOLO
    epochs: list[dict[str, float]]
    events: list[dict[str, Any]] = field(default_factory=list)
    seconds: float = 0.0


def train(
    recipe: Recipe,
    *,
    prune: bool,
    snapshot: Path | None = None,
    start: Path | None = None,
    console: Console | None = None,
) -> Run:
    """Train one detector by the recipe, with or without its prunings.

    Args:
        recipe: How.
        prune: Whether to prune; if not, the network stays dense.
        snapshot: Where to save a checkpoint after the last epoch before the first pruning.
        start: Such a checkpoint to go on from, bit for bit as the run that saved it would have without its
            prunings; by default the run starts from random weights.
        console: Where to show progress; ``None`` is silent.
    """
    started = time.perf_counter()
    seed_everything(recipe.seed, verbose=False)
    detector = LitYOLO(
        recipe.model,
        num_classes=DigitScenes.num_classes,
        lr=recipe.lr,
        warmup_epochs=recipe.warmup * recipe.epochs,
        final_lr=0.001,
    )
    detector.to(memory_format=torch.channels_last)  # a fifth faster on CPUs
    data = DigitScenesDataModule(
        scenes=recipe.scenes, image_size=recipe.image_size, batch_size=recipe.batch_size, seed=recipe.seed
    )
    watch = _Watch(console, snapshot, recipe.prune_at[0] - 1)
    pruning = ChannelPruning(
        recipe.amount,
        list(recipe.prune_at),
        selection=MacsBudget(spread=Weighted(recipe.factors)),
        round_to=recipe.round_to,
        verbose=console is not None,
    )
    callbacks: list[Callback] = [watch, *([pruning] if prune else [])]
    if console is not None:
        callbacks.append(RichProgressBar(leave=False))
    with _quiet_lightning():
        trainer = Trainer(
            max_epochs=recipe.epochs,
            devices=1,
            logger=False,
            enable_checkpointing=False,
            enable_model_summary=False,
            enable_progress_bar=console is not None,
            num_sanity_val_steps=0,
            callbacks=callbacks,
        )
        trainer.fit(detector, data, ckpt_path=start)
    return Run(detector, watch.epochs, pruning.events, time.perf_counter() - started)


class _Watch(Callback):
    """Keeps the figures of every epoch, prints a line of them, and saves a checkpoint after one.

    The checkpoint holds the state of the random numbers: who goes on from it sees the scenes in the same order.
    """

    def __init__(self, console: Console | None, snapshot: Path | None, epoch: int) -> None:
        self.epochs: list[dict[str, float]] = []
        self._console = console
        self._snapshot = snapshot
        self._epoch = epoch
        self._cost = Cost(0, 0)

    def state_dict(self) -> dict[str, Any]:
        return {"random": torch.get_rng_state()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        # Not in `on_train_start`: by then the loader has drawn its order.
        torch.set_rng_state(state_dict["random"].cpu())

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self._snapshot is not None and trainer.current_epoch == self._epoch:
            trainer.save_checkpoint(self._snapshot)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        params = count_parameters(pl_module)
        if not self.epochs or self.epochs[-1]["params"] != params:
            size = trainer.datamodule.image_size  # type: ignore[attr-defined]
            image = torch.zeros(1, 3, size, size, device=pl_module.device)
            self._cost = Cost.of(pl_module.model, image)  # type: ignore[arg-type]
        cost = self._cost
        seen = {name: float(trainer.callback_metrics[f"val/{name}"]) for name in ("map", "map_50")}
        self.epochs.append({"epoch": trainer.current_epoch, **seen, **cost.to_dict()})
        if self._console is None:
            return
        progress: Any = getattr(trainer.progress_bar_callback, "progress", None)
        (getattr(progress, "console", None) or self._console).print(
            f"epoch {trainer.current_epoch + 1:>2} of {trainer.max_epochs}   mAP50-95 {seen['map']:.3f}   "
            f"mAP50 {seen['map_50']:.3f}   {human(cost.macs)} MACs   {human(cost.params)} parameters",
            highlight=False,
        )


@contextmanager
def _quiet_lightning() -> Iterator[None]:
    """Keep Lightning's notes about devices from between the lines of the demo."""
    logger = logging.getLogger("lightning.pytorch")
    level = logger.level
    logger.setLevel(logging.WARNING)
    try:
        with warnings.catch_warnings():
            # The dense run goes on from a checkpoint of the pruned one, without its callback: that is the point.
            warnings.filterwarnings("ignore", message=".*callbacks used to create the checkpoint.*")
            warnings.filterwarnings("ignore", message=".*LeafSpec.*")
            yield
    finally:
        logger.setLevel(level)
