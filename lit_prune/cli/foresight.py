"""Looking ahead: the events of a `fit` carried out at once, while nothing is trained."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor, nn

from lit_prune.callback import ChannelPruning
from lit_prune.common.names import tensors_of
from lit_prune.cost.profile import LatencyTable
from lit_prune.errors import ArgumentError, PruningError
from lit_prune.report.foreseen import Foreseen, foreseen
from lit_prune.select import Budgets, LatencyBudget
from lit_prune.training.lightning import LightningHost
from lit_prune.training.monitor import Monitor

# By the gradients of so many batches an event goes that is carried out before its time.
_STEPS = 16


class AllIsSeen(Exception):
    """Ends a fit that was begun to look ahead."""


class Foresight(Callback):
    """Lets each event of a ChannelPruning happen as soon as it can, while no step changes a weight.

    Args:
        table: For the latency after each event; by default that of the selection, if it has one.
        save: Where a checkpoint goes of what is left after the last event.

    Raises:
        AllIsSeen: Within the fit, after the last event.
    """

    def __init__(self, table: LatencyTable | None = None, save: Path | None = None) -> None:
        self._table = table
        self._save = save
        self._has_seen = False
        self.pruning: ChannelPruning
        # Since the last event.
        self._steps = 0
        self._ms: list[float] = []
        # Values of all tensors before the first step since the last event.
        self._tensors: dict[str, Tensor] = {}

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Find the ChannelPruning, and have its events wait.

        Raises:
            ArgumentError: If there is none.
        """
        found = [each for each in trainer.callbacks if isinstance(each, ChannelPruning)]  # type: ignore[attr-defined]
        if not found:
            raise ArgumentError(
                "Nothing would be pruned: no ChannelPruning is among the callbacks. Add one to `trainer.callbacks` of "
                "the configuration, or by --trainer.callbacks+=lit_prune.ChannelPruning."
            )
        self.pruning = found[0]
        self.pruning.verbose = False
        self.pruning.agenda.held = not self.pruning.before_wrap
        pruner = self.pruning.pruner
        if self._table is None:
            selection = pruner.policy.selection
            among = selection.budgets if isinstance(selection, Budgets) else [selection]
            self._table = next((each.table for each in among if isinstance(each, LatencyBudget)), None)
        # No event is to be judged, and taken back.
        pruner.recovery = replace(pruner.recovery, max_drop=None, floor=None, monitor=None)
        pruner.monitor = Monitor(None)
        pruner.before_cut.append(lambda host, _: self._time(host.network))

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Let a run that is over begin once more."""
        if trainer.ckpt_path is not None:
            _without_end(trainer)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Let the fit be as long as it takes, and note what steps may change although they learn nothing."""
        _without_end(trainer)
        for each in trainer.strategy.lr_scheduler_configs:
            # It is stepped by the Trainer no more; a module that steps on its own still finds it.
            each.interval = "never"
        self._note(pl_module)

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Carry out what can be."""
        self.look_ahead(trainer)

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Any) -> None:
        """Have the step change nothing."""
        self._steps += 1
        for group in optimizer.param_groups:
            group["lr"] = group["lr"] * 0

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Carry out what is to come by as much as an epoch has shown."""
        self.look_ahead(trainer, waits=False)

    def look_ahead(self, trainer: Trainer, waits: bool = True) -> None:
        """Carry out the events that can be.

        Args:
            trainer: The Trainer.
            waits: As for :meth:`is_ready`.

        Raises:
            AllIsSeen: After the last.
        """
        agenda, unit = self.pruning.agenda, self.pruning.schedule.unit
        host = LightningHost(trainer, self.pruning.averages)
        while ahead := agenda.ahead:
            if not self.is_ready(waits):
                return
            self.restore(host.network)
            event = agenda.prune_ahead(host)
            self._note(host.network)
            self._steps = 0
            if event is not None:
                event[unit.removesuffix("s")] = ahead[0]
        self._has_seen = True
        self._time(host.network)
        if self._save is not None:
            trainer.save_checkpoint(self._save)
        raise AllIsSeen

    def is_ready(self, waits: bool) -> bool:
        """Whether an event has enough to go by; if it ``waits``, so much that chance decides little.

        Args:
            waits: Whether there are more batches to come in this epoch.
        """
        pruner = self.pruning.pruner
        few = waits and pruner.policy.criterion.needs_gradients and self._steps < _STEPS
        return pruner.is_ready and not few

    def _note(self, network: nn.Module) -> None:
        self._tensors = {name: tensor.detach().clone() for name, tensor in tensors_of(network)}

    def restore(self, network: nn.Module) -> None:
        """Put back what the steps have changed: statistics of norms, and averages that a step runs."""
        with torch.no_grad():
            for name, tensor in tensors_of(network):
                if name in self._tensors:
                    tensor.copy_(self._tensors[name])

    def _time(self, network: nn.Module) -> None:
        """Note what the table says of the network as it is now."""
        if self._table is not None:
            self._ms.append(self._table.ms_of(network))

    @property
    def foreseen(self) -> Foreseen:
        """What was seen, as plain data.

        Raises:
            PruningError: If the run has ended before.
        """
        record, unit = self.pruning.record, self.pruning.schedule.unit.removesuffix("s")
        dense = record.dense
        if dense is None or not self._has_seen:
            raise PruningError("The run ended before its events were seen: it has no training batch.")
        return foreseen(dense.widths, dense.params, dense.macs, record.events, unit, self._ms)


def _without_end(trainer: Trainer) -> None:
    trainer.fit_loop.max_epochs = -1
    trainer.fit_loop.epoch_loop.max_steps = -1
