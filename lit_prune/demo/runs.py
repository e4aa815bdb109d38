"""The runs of the demo: a dense training, cuts of what came out, and its fine-tuning while it is pruned."""

from __future__ import annotations

import copy
import logging
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer, seed_everything
from lightning.pytorch.callbacks import RichProgressBar
from rich.console import Console
from torch import Tensor, nn

from lit_prune.callback import ChannelPruning
from lit_prune.common.names import count_parameters
from lit_prune.cost.counts import Cost
from lit_prune.data import DigitScenes, DigitScenesDataModule
from lit_prune.demo.settings import Recipe
from lit_prune.policy.once import plan_pruning
from lit_prune.repair import Repair, prune_
from lit_prune.report.tables import human
from lit_prune.schedule import AtSteps
from lit_prune.select import MacsBudget
from lit_prune.yolo import LitYOLO

# Batches whose gradients tell, by `criterion="taylor"`, what the loss would lose.
_LOSSES = 16
_WAYS = (("magnitude", "uniform"), ("taylor", "global"))


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


@dataclass(frozen=True)
class Cut:
    """What is left right after one cut, with nothing trained.

    Attributes:
        criterion: How channels were scored.
        spread: How the removal was shared out among layers.
        repaired: Whether what is left was repaired.
        map: Its mAP50-95.
        macs: Its multiply-adds.
    """

    criterion: str
    spread: str
    repaired: bool
    map: float
    macs: int

    def to_dict(self) -> dict[str, Any]:
        """Plain data, for a report."""
        return asdict(self)


def train(recipe: Recipe, console: Console | None = None) -> Run:
    """Train a dense detector from random weights to the end of its schedule.

    Args:
        recipe: How.
        console: Where to show progress; ``None`` is silent.
    """
    seed_everything(recipe.seed, verbose=False)
    detector = LitYOLO(
        recipe.model,
        num_classes=DigitScenes.num_classes,
        lr=recipe.lr,
        warmup_epochs=recipe.warmup * recipe.epochs,
        final_lr=0.001,
    )
    detector.to(memory_format=torch.channels_last)  # a fifth faster on CPUs
    return _fit(detector, recipe, recipe.epochs, [], console)


def fine_tune(recipe: Recipe, dense: Run, console: Console | None = None, *, prune: bool = True) -> Run:
    """Go on with a copy of a dense network, which loses channels, by what the loss loses, and is repaired.

    Args:
        recipe: How.
        dense: Its training; epochs are counted on from its last.
        console: Where to show progress.
        prune: Whether it loses channels; if not, it is only trained as long.
    """
    seed_everything(recipe.seed, verbose=False)
    detector = copy.deepcopy(dense.detector).train()
    detector.lr, detector.warmup_epochs = recipe.lr / 2, recipe.fine_tuning / 20
    pruning = ChannelPruning(
        recipe.amount,
        AtSteps(recipe.events),
        criterion="taylor",
        selection=MacsBudget("global"),
        repair=True,
        round_to=recipe.round_to,
        verbose=console is not None,
    )
    callbacks: list[Callback] = [pruning] if prune else []
    run = _fit(detector, recipe, recipe.fine_tuning, callbacks, console, shown_from=len(dense.epochs))
    return Run(run.detector, run.epochs, pruning.events, run.seconds)


def cuts(recipe: Recipe, dense: Run) -> list[Cut]:
    """What is left of a dense network right after one cut, by two criteria, sliced alone and repaired.

    Args:
        recipe: How much to cut.
        dense: Its training.
    """
    data, image = _data(recipe), torch.zeros(1, 3, recipe.image_size, recipe.image_size)
    data.setup("fit")
    found = []
    for criterion, spread in _WAYS:
        network = copy.deepcopy(dense.detector).eval()
        plan = plan_pruning(
            network.model,
            image,
            amount=recipe.cut,
            criterion=criterion,
            selection=MacsBudget(spread),
            round_to=recipe.round_to,
            losses=_losses(network, data) if criterion == "taylor" else None,
        )
        for repaired in (False, True):
            left = copy.deepcopy(network)
            prune_(left.model, plan, data=_images(data, Repair()) if repaired else None)
            macs = Cost.of(left.model.eval(), image).macs
            found.append(Cut(criterion, spread, repaired, _score(left, data), macs))
    return found


def _losses(detector: LitYOLO, data: DigitScenesDataModule) -> Iterator[Tensor]:
    for batch in _batches(data, _LOSSES):
        parts, _ = detector.model.loss(batch, detector.task.enter(detector.model, batch))
        yield parts.sum()


def _images(data: DigitScenesDataModule, repair: Repair) -> list[Tensor]:
    wanted = repair.batches * repair.batch_size
    batches = _batches(data, -(-wanted // data.batch_size))
    return [*torch.split(torch.cat([batch["img"] for batch in batches])[:wanted], repair.batch_size)]


def _batches(data: DigitScenesDataModule, number: int) -> list[dict[str, Any]]:
    # A draw of its own, so that every cut sees the same scenes.
    torch.manual_seed(data.seed)
    return [batch for batch, _ in zip(data.train_dataloader(), range(number), strict=False)]


def _score(detector: LitYOLO, data: DigitScenesDataModule) -> float:
    with _quiet_lightning():
        (scores,) = _trainer(None).validate(detector, data, verbose=False)
    return float(scores["val/map"])


def _data(recipe: Recipe) -> DigitScenesDataModule:
    return DigitScenesDataModule(
        scenes=recipe.scenes, image_size=recipe.image_size, batch_size=recipe.batch_size, seed=recipe.seed
    )


def _fit(
    detector: LitYOLO,
    recipe: Recipe,
    epochs: int,
    callbacks: list[Callback],
    console: Console | None,
    shown_from: int = 0,
) -> Run:
    started = time.perf_counter()
    watch = _Watch(console, shown_from)
    bars = [] if console is None else [RichProgressBar(leave=False)]
    with _quiet_lightning():
        _trainer(console, max_epochs=epochs, callbacks=[watch, *callbacks, *bars]).fit(detector, _data(recipe))
    return Run(detector, watch.epochs, seconds=time.perf_counter() - started)


def _trainer(console: Console | None, **options: Any) -> Trainer:
    return Trainer(
        devices=1,
        logger=False,
        enable_checkpointing=False,
        enable_model_summary=False,
        enable_progress_bar=console is not None,
        num_sanity_val_steps=0,
        **options,
    )


class _Watch(Callback):
    """Keeps the figures of every epoch, and prints a line of them."""

    def __init__(self, console: Console | None, shown_from: int) -> None:
        self.epochs: list[dict[str, float]] = []
        self._console = console
        self._shown_from = shown_from
        self._cost = Cost(0, 0)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        params = count_parameters(pl_module)
        if not self.epochs or self.epochs[-1]["params"] != params:
            size = trainer.datamodule.image_size  # type: ignore[attr-defined]
            image = torch.zeros(1, 3, size, size, device=pl_module.device)
            network: nn.Module = pl_module.model  # type: ignore[assignment]
            self._cost = Cost.of(network, image)
        cost, epoch = self._cost, trainer.current_epoch + self._shown_from
        seen = {name: float(trainer.callback_metrics[f"val/{name}"]) for name in ("map", "map_50")}
        self.epochs.append({"epoch": epoch, **seen, **cost.to_dict()})
        if self._console is None:
            return
        progress: Any = getattr(trainer.progress_bar_callback, "progress", None)
        (getattr(progress, "console", None) or self._console).print(
            f"epoch {epoch + 1:>2} of {(trainer.max_epochs or 0) + self._shown_from}   mAP50-95 {seen['map']:.3f}   "
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
            warnings.filterwarnings("ignore", message=".*LeafSpec.*")
            yield
    finally:
        logger.setLevel(level)
