"""UltralyticsPruning: channel pruning as callbacks of Ultralytics' own trainer."""

from collections.abc import Callable
from copy import copy
from pathlib import Path
from typing import Any, TypeVar

import torch
from rich.console import Console

from lit_prune.cost import count_parameters
from lit_prune.criteria import CRITERIA, Criterion
from lit_prune.event import PruningPolicy
from lit_prune.graph import Call, ChannelGraph
from lit_prune.pruner import PruningError
from lit_prune.record import Dense, Record
from lit_prune.registry import resolve
from lit_prune.report import event_table
from lit_prune.schedule import AtEpochs, Schedule
from lit_prune.scope import Scope
from lit_prune.select import SELECTIONS, Selection
from lit_prune.trainer import check_optimizer, prune_
from lit_prune.yolo.evaluation import forget_anchors_

STATE = "lit_prune_state"
"""The attribute of a network under which Ultralytics' checkpoints carry the record of what was pruned."""

YoloT = TypeVar("YoloT")


class UltralyticsPruning:
    """Removes channels at scheduled epochs of a run of Ultralytics' own trainer, and lets it go on with what is left.

    The network, its moving average and the optimizer's state become smaller together, before the epoch begins. Scores
    start anew with each event, so that `best.pt` is the best of the pruned network. `last.pt` and `best.pt` are pruned
    and open in plain Ultralytics.

    Nothing of Ultralytics is patched: all is done through three of its callbacks. They work on one device; on several,
    train `LitYOLO` under Lightning's `strategy="ddp"`. A file that is pruned already keeps its widths, and what goes is
    counted against them. To resume an interrupted run, attach a new object with the same arguments and give
    `resume=True`.

    Args:
        amount: The share that is gone after the last event, in (0, 1), as for `ChannelPruning`.
        epochs: At the start of which epochs to prune, counted from 0: one, several, or a `Schedule` of epochs.
        blocks: Which layers: integers are `model.model[i]`, strings are patterns of layer names. `None` is all.
        criterion: How important a channel is, by its weights: `"magnitude"`, `"batchnorm"`, `"random"`, a `Criterion`.
        selection: Which channels go: `"uniform"`, `"global"`, `"macs"` or a `Selection` that needs no activations.
        exclude: Patterns of layers that must stay as they are.
        round_to: Kept widths are multiples of it; by default of 8, and narrower layers stay whole.

    Attributes:
        record: What was pruned so far.

    Raises:
        ValueError: If an argument is out of range, or needs activations.

    Example:
        >>> pruning = UltralyticsPruning(amount=0.4, epochs=[2, 4])
        >>> sorted(pruning.callbacks)
        ['on_pretrain_routine_end', 'on_pretrain_routine_start', 'on_train_epoch_start']

        ```
        yolo = pruning.attach(YOLO("yolov8s.pt"))
        yolo.train(data="data.yaml", epochs=20)
        ```
    """

    def __init__(
        self,
        amount: float,
        epochs: Schedule | list[int] | int,
        blocks: list[int | str] | None = None,
        criterion: Criterion | str = "magnitude",
        selection: Selection | str = "uniform",
        exclude: list[str] | None = None,
        round_to: int | None = None,
    ) -> None:
        if isinstance(amount, bool) or not 0 < amount < 1:
            raise ValueError(f"amount must be a share in (0, 1), such as 0.5, but got {amount!r}.")
        self.amount = float(amount)
        self.schedule = epochs if isinstance(epochs, Schedule) else AtEpochs(epochs)
        if self.schedule.unit != "epochs":
            raise ValueError("Ultralytics' trainer is pruned at the start of epochs: give a schedule of epochs.")
        self.policy = PruningPolicy(
            scope=Scope(blocks, exclude or []),
            criterion=resolve("criterion", criterion, Criterion, CRITERIA),
            selection=resolve("selection", selection, Selection, SELECTIONS),
            round_to=round_to,
        )
        if self.policy.calibration is not None:
            raise ValueError(
                "Under Ultralytics' trainer channels are chosen by weights alone; for a criterion or selection that "
                "looks at activations, train LitYOLO with ChannelPruning on a YOLODataModule."
            )
        self.record = Record()

    @property
    def callbacks(self) -> dict[str, Callable[[Any], None]]:
        """Ultralytics' name of an event to what is done there, for `model.add_callback` or `trainer.add_callback`."""
        return {
            "on_pretrain_routine_start": self.keep_widths,
            "on_pretrain_routine_end": self.check,
            "on_train_epoch_start": self.prune_if_due,
        }

    def attach(self, yolo: YoloT) -> YoloT:
        """Add the callbacks to an `ultralytics.YOLO`, which is returned."""
        for event, callback in self.callbacks.items():
            yolo.add_callback(event, callback)  # type: ignore[attr-defined]
        return yolo

    def keep_widths(self, trainer: Any) -> None:
        """Before the network is built: a pruned one keeps its widths, where Ultralytics would build the dense one."""
        from lit_prune.yolo.trainers import keep_widths_

        keep_widths_(trainer)

    def check(self, trainer: Any) -> None:
        """Before the first epoch: refuse what can't be done, and take up the record of a run that is resumed.

        Raises:
            PruningError: If the trainer has something that can't follow when the network shrinks, or has built a dense
                network from pruned weights.
            ValueError: If nothing can be pruned in this way, or an event lies beyond the run.
        """
        reasons = {
            "several devices": trainer.world_size > 1,
            "compile": bool(trainer.args.compile),
            "distill_model": bool(getattr(trainer.args, "distill_model", None)),
            "quantize": getattr(trainer.args, "quantize", None) == 8,
        }
        wrong = [name for name, holds in reasons.items() if holds]
        if wrong:
            raise PruningError(
                f"UltralyticsPruning can't prune a run with {' and '.join(wrong)}. Leave that out, or train LitYOLO "
                "with ChannelPruning in a Lightning Trainer."
            )
        _check_widths(trainer)
        self.schedule.events(trainer.epochs)
        check_optimizer(trainer.optimizer)
        state = getattr(trainer.model, STATE, None)
        if trainer.resume and state is not None:
            self.record = Record.from_state_dict(state)
            return
        self.record = Record()
        graph = ChannelGraph.trace_calls(trainer.model, self._calls(trainer))
        self.policy.check(trainer.model, graph)
        self.record.dense = Dense.of(trainer.model, graph)
        # In place of the record of an earlier run, which the network may carry.
        self._note(trainer)

    def prune_if_due(self, trainer: Any) -> None:
        """At the start of an epoch: prune where an event is due, whole or not at all.

        Raises:
            PruningError: If the event can't be carried out; the network is as it was.
        """
        events = self.schedule.events(trainer.epochs)
        due = [epoch for epoch in events if epoch <= trainer.epoch and epoch not in self.record.done]
        if not due:
            return
        try:
            event = self._prune(trainer, events[due[-1]])
        except Exception as error:
            raise PruningError(
                f"Pruning at epoch {trainer.epoch} failed, and the network is as it was. {error}"
            ) from error
        self.record.done.extend(due)
        self._note(trainer)
        Console().print(event_table(event))

    def _note(self, trainer: Any) -> None:
        for network in (trainer.model, trainer.ema.ema):
            setattr(network, STATE, self.record.state_dict())

    def _prune(self, trainer: Any, part: float) -> dict[str, Any]:
        network, average = trainer.model, trainer.ema.ema
        share = self.amount * part
        decision = self.policy.decide(network, self._calls(trainer), share, self.record)
        params = count_parameters(network)
        prune_(network, decision.plan, [trainer.optimizer], [average])
        for module in (network, average):
            forget_anchors_(module)
        torch.clear_autocast_cache()
        _renew_average(trainer)
        _forget_scores(trainer)
        self.record.plan = self.record.plan.then(decision.plan)
        self.record.pruned.extend(group.name for group in decision.groups)
        event = decision.record(
            epoch=trainer.epoch,
            step=trainer.ema.updates,
            share=share,
            params=[params, count_parameters(network)],
            seconds=0.0,
        )
        self.record.events.append(event)
        return event

    @staticmethod
    def _calls(trainer: Any) -> list[Call]:
        channels, side = trainer.data.get("channels", 3), trainer.args.imgsz
        device = next(trainer.model.parameters()).device
        return [Call("", (torch.zeros(1, channels, side, side, device=device),), {})]


def _check_widths(trainer: Any) -> None:
    """Raise a PruningError if the network is dense where the weights that it started from are pruned."""
    from lit_prune.yolo.networks import is_pruned
    from lit_prune.yolo.reading import load_weights
    from lit_prune.yolo.trainers import KeepsWidths, keeping

    if isinstance(trainer, KeepsWidths):
        return
    for source in (trainer.args.pretrained, trainer.args.model):
        path = str(source)
        if path.endswith(".pt") and Path(path).exists() and is_pruned(load_weights(path)):
            if is_pruned(trainer.model):
                return
            raise PruningError(
                f"{path} is pruned, but this {type(trainer).__name__} has built the dense network. Train by "
                f"UltralyticsPruning(...).attach(YOLO({path!r})).train(...), or make a {keeping(trainer)} instead."
            )


def _renew_average(trainer: Any) -> None:
    """A new moving average around the old one's network: the old one holds on to the tensors of the old shapes."""
    old = trainer.ema
    renewed = type(old)(trainer.model, updates=old.updates)
    renewed.ema, renewed.decay, renewed.enabled = old.ema, old.decay, old.enabled
    trainer.ema = renewed


def _forget_scores(trainer: Any) -> None:
    """The dense network's scores are no measure of the pruned one, and its `best.pt` must not stay."""
    trainer.best_fitness = trainer.fitness = None
    stopper = copy(trainer.stopper)
    stopper.best_fitness, stopper.best_epoch = 0.0, trainer.epoch
    trainer.stopper = stopper
