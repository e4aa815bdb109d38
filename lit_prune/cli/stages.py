"""What studies are made of: to cut a trained network, train on and measure it, by the arguments of `fit`."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from pkgutil import resolve_name
from typing import Any

from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import (
    Checkpoint,
    DeviceStatsMonitor,
    EarlyStopping,
    LearningRateMonitor,
    ModelSummary,
    ProgressBar,
)

from lit_prune.callback import ChannelPruning
from lit_prune.checkpoint import RECORD_KEY
from lit_prune.cli.ckpt_path import KeptRecord
from lit_prune.cli.foresight import AllIsSeen, Foresight
from lit_prune.cli.given import is_limit
from lit_prune.cli.trainer_commands import run_trainer
from lit_prune.common.reading import read_checkpoint
from lit_prune.cost.profile import LatencyTable
from lit_prune.errors import ArgumentError
from lit_prune.report.foreseen import Foreseen
from lit_prune.select import Budget
from lit_prune.surgery.adoption import adopt_shapes_
from lit_prune.training.distillation import Distillation

# One process: Lightning would start others by the command line of this one.
_ALONE = {
    "logger": False,
    "enable_checkpointing": False,
    "enable_progress_bar": False,
    "enable_model_summary": False,
    "num_sanity_val_steps": 0,
    "accelerator": "auto",
    "strategy": "auto",
    "devices": 1,
    "num_nodes": 1,
    "profiler": None,
}

# They prune once more, write or show something, or end a fit before a point is as well trained as the others.
_APART = (
    ChannelPruning,
    Distillation,
    Checkpoint,
    DeviceStatsMonitor,
    EarlyStopping,
    LearningRateMonitor,
    ModelSummary,
    ProgressBar,
)


# A file that this command has written is read as a whole: in some releases schedulers leave functions in it.
_TRUSTED = ["--weights_only=false"] if "weights_only" in inspect.signature(Trainer.validate).parameters else []


def look_ahead(arguments: Sequence[str], table: LatencyTable | None = None) -> Foreseen:
    """Carry out all events of a fit at once, from where it would begin, and tell what is left after each.

    Raises:
        LitPruneError: As the fit would.
    """
    foresight = Foresight(table)

    def adjust(config: Any) -> None:
        _alone(config, lambda kind: issubclass(kind, ChannelPruning))
        config.trainer["limit_val_batches"] = 0

    with suppress(AllIsSeen):
        run_trainer(["fit", *arguments], adjust, [foresight])
    return foresight.foreseen


def cut(arguments: Sequence[str], amount: str, save: Path, table: LatencyTable | None = None) -> dict[str, Any]:
    """Cut the trained network once, and save what is left.

    Args:
        arguments: Of `fit`; its `ckpt_path` is the trained network.
        amount: A ratio, or a limit of the selection's budget: ``"8 ms"``.
        save: Where the checkpoint goes.
        table: As for :class:`Foresight`.

    Returns:
        The network after the cut, as in :func:`lit_prune.report.foreseen.foreseen`; ``dense`` is the one before.

    Raises:
        LitPruneError: As a fit would.
    """
    foresight = Foresight(table, save)
    look(arguments, foresight, amount)
    seen = foresight.foreseen
    return {**seen["events"][-1], "dense": seen["dense"]}


def check_amount(arguments: Sequence[str], amount: str) -> None:
    """Raise unless an amount is one that a ChannelPruning and its selection may be given; nothing is run.

    Args:
        arguments: As for :func:`cut`.
        amount: As for :func:`cut`.

    Raises:
        LitPruneError: As a fit would when it begins.
    """
    look(arguments, _Begun(), amount)


def look(arguments: Sequence[str], foresight: Callback, amount: str | None = None) -> None:
    """Begin a fit with the trained weights alone, until all is seen.

    Args:
        arguments: Of `fit`.
        foresight: Looks, and raises :class:`AllIsSeen` when it has.
        amount: What its one event asks for; by default what is always in reach, since nothing is to come of it.
    """
    start = _StartingWeights()

    def adjust(config: Any) -> None:
        _alone(config, lambda kind: issubclass(kind, ChannelPruning))
        for each in config.trainer.callbacks:
            each.init_args["epochs"] = 0
            if amount is None:
                each.init_args["selection"] = "uniform"
            _ask_for(each.init_args, amount or "0.5")
        if amount is not None:
            # An epoch may end before gradients are enough, and nobody asks for its validation.
            config.trainer["limit_val_batches"] = 0
        start.take_from(config)

    with suppress(AllIsSeen):
        run_trainer(["fit", *arguments], adjust, [start, foresight])


def train_on(arguments: Sequence[str], epochs: int, save: Path, weights: Path | None = None) -> None:
    """Train a network for some epochs, by an optimizer and a schedule that begin anew, and save it.

    Args:
        arguments: Of `fit`.
        epochs: How many.
        save: Where the checkpoint goes.
        weights: A checkpoint of what is left by a cut; by default the trained network of the arguments.
    """
    start = _StartingWeights(weights)

    def adjust(config: Any) -> None:
        _alone(config, lambda kind: not issubclass(kind, _APART))
        config.trainer["max_epochs"] = epochs
        config.trainer["min_epochs"] = None
        config.trainer["max_steps"] = -1
        start.take_from(config)

    run_trainer(["fit", *arguments], adjust, [start, _Save(save)])


def measure(arguments: Sequence[str], checkpoint: Path | None = None) -> dict[str, float]:
    """The metrics of a validation.

    Args:
        arguments: Of `fit`.
        checkpoint: The network to measure; by default that of the arguments.

    Raises:
        ArgumentError: If nothing is validated.
    """

    def adjust(config: Any) -> None:
        _alone(config, lambda kind: False)
        config["verbose"] = False

    which = [] if checkpoint is None else ["--ckpt_path", str(checkpoint), *_TRUSTED]
    with naming_what_lacks():
        command = run_trainer(["validate", *arguments, *which], adjust)
    return {name: float(value) for name, value in command.trainer.callback_metrics.items()}


@contextmanager
def naming_what_lacks() -> Iterator[None]:
    """While open, what a validation lacks is an error for the user."""
    try:
        yield
    except MisconfigurationException as error:
        raise ArgumentError(f"The network can't be validated: {error}") from error


def _alone(config: Any, stays: Callable[[type], bool]) -> None:
    """Leave of a Trainer's configuration what counts: one process, no file, some of the callbacks."""
    for key, value in _ALONE.items():
        config.trainer[key] = value
    callbacks = config.trainer.get("callbacks") or []
    listed = callbacks if isinstance(callbacks, list) else [callbacks]
    config.trainer["callbacks"] = [each for each in listed if stays(resolve_name(each.class_path))]


def _ask_for(arguments: Any, amount: str) -> None:
    """Have a ChannelPruning's arguments ask for an amount."""
    if not is_limit(amount):
        arguments["amount"] = float(amount)
        return
    arguments["amount"] = None
    selection = arguments.get("selection")
    if not hasattr(selection, "class_path") or not issubclass(resolve_name(selection.class_path), Budget):
        raise ArgumentError(
            f"{amount!r} is no ratio, and as a limit it needs a budget with a class path as the selection, such as "
            f"lit_prune.select.LatencyBudget, but that is {getattr(selection, 'class_path', selection)!r}."
        )
    if selection.get("init_args") is None:
        selection["init_args"] = type(arguments)()
    selection.init_args["at_most"] = amount


class _Begun(Callback):
    """All is seen once everything is made."""

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        raise AllIsSeen


class _StartingWeights(Callback):
    """Begins a fit with the weights of a checkpoint, and with nothing else of it."""

    def __init__(self, path: Path | None = None) -> None:
        self._path: Any = path
        self._weights_only = True
        # Until its weights are loaded.
        self._checkpoint: dict[str, Any] | None = None

    def take_from(self, config: Any) -> None:
        """Have a command's configuration go on from nothing, and take its checkpoint if there is no other."""
        self._path = self._path or config.get("ckpt_path")
        config["ckpt_path"] = None
        # A Trainer that can't be told reads everything.
        self._weights_only = config.get("weights_only", False) is not False

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        if self._path is None:
            return
        self._checkpoint = read_checkpoint(
            self._path, weights_only=self._weights_only, remedy="add --weights_only false"
        )
        # Before other callbacks copy the network; if it is there yet.
        if self._checkpoint["state_dict"].keys() <= pl_module.state_dict().keys():
            self.on_fit_start(trainer, pl_module)

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        checkpoint, self._checkpoint = self._checkpoint, None
        if checkpoint is None:
            return
        record = checkpoint.get("callbacks", {}).get(RECORD_KEY, {})
        keeping = [each for each in trainer.callbacks if isinstance(each, KeptRecord)]  # type: ignore[attr-defined]
        if record.get("events") and not keeping:
            raise ArgumentError(f"{self._path} has been pruned already: begin with the network before that.")
        adopt_shapes_(pl_module, checkpoint["state_dict"])
        pl_module.load_state_dict(checkpoint["state_dict"], strict=pl_module.strict_loading)
        for each in keeping:
            each.load_state_dict(record)


class _Save(Callback):
    """Writes a checkpoint when training ends."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        trainer.save_checkpoint(self._path)
