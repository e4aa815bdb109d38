"""`lit-prune plan`: what a `fit` by the same arguments would leave of the network, without training."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from pkgutil import resolve_name
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from rich.console import Console
from torch import nn

from lit_prune.callback import ChannelPruning
from lit_prune.cost.profile import LatencyTable, widths_of
from lit_prune.errors import ArgumentError, PruningError
from lit_prune.report.foreseen import Foreseen, foreseen, foreseen_tables
from lit_prune.report.tables import save_json
from lit_prune.select import LatencyBudget
from lit_prune.training.lightning import LightningHost
from lit_prune.training.monitor import Monitor
from lit_prune.training.recovery import Recovery

# By the gradients of so many batches an event goes that is carried out before its time.
_STEPS = 16
_ALONE = {
    "logger": False,
    "enable_checkpointing": False,
    "enable_progress_bar": False,
    "enable_model_summary": False,
    "num_sanity_val_steps": 0,
    "limit_val_batches": 0,
    "accelerator": "auto",
    "strategy": "auto",
    "devices": 1,
    "num_nodes": 1,
    "profiler": None,
}


class PlanTrainer(Trainer):
    """A Trainer that can tell beforehand what would be pruned."""

    def plan(
        self,
        model: LightningModule,
        train_dataloaders: Any = None,
        val_dataloaders: Any = None,
        datamodule: Any = None,
        ckpt_path: str | None = None,
        weights_only: bool | None = None,
        table: str | None = None,
        out: str | None = None,
    ) -> None:
        """Carry out all events at once on the network as it is, print what is left after each, and do not train.

        Args:
            model: The LightningModule; it is pruned, but nothing of it is written anywhere.
            train_dataloaders: As for ``fit``; read as far as events go by data.
            val_dataloaders: As for ``fit``.
            datamodule: As for ``fit``.
            ckpt_path: The checkpoint that the run would go on from.
            weights_only: As for ``fit``.
            table: A latency table of `lit-prune profile`, for the latency after each event.
            out: A JSON file for what is printed.

        Raises:
            ArgumentError: If there is no ChannelPruning among the callbacks, or the table is of another network.
            PruningError: If an event can't be carried out.
        """
        foresight = _Foresight(None if table is None else LatencyTable.load(table))
        self.callbacks.insert(0, foresight)  # type: ignore[attr-defined]
        reading = {} if weights_only is None else {"weights_only": weights_only}
        with suppress(_AllIsSeen):
            self.fit(model, train_dataloaders, val_dataloaders, datamodule, ckpt_path, **reading)
        seen = foresight.foreseen
        console = Console()
        for each in foreseen_tables(seen):
            console.print(each)
        if out is not None:
            save_json(seen, out)
            console.print(f"Written: {out}", highlight=False, soft_wrap=True, markup=False)


def config_by_name(arguments: Sequence[str]) -> list[str]:
    """The arguments of `plan`, of which the first may be the configuration file.

    Example:
        >>> config_by_name(["plan", "train.yaml", "--out", "plan.json"])
        ['plan', '--config', 'train.yaml', '--out', 'plan.json']
    """
    command, *rest = arguments
    return [command, *(["--config"] if rest and not rest[0].startswith("-") else []), *rest]


def only_to_plan(config: Any) -> None:
    """Leave of a Trainer's configuration what says which events there are: no other callback, no file, one process.

    Raises:
        ArgumentError: If a class of the callbacks can't be found.
    """
    for key, value in _ALONE.items():
        config[key] = value
    callbacks = config.get("callbacks") or []
    listed = callbacks if isinstance(callbacks, list) else [callbacks]
    config.callbacks = [each for each in listed if issubclass(resolve_name(each.class_path), ChannelPruning)]


class _AllIsSeen(Exception):
    """Ends a fit that was begun to look ahead."""


class _Foresight(Callback):
    """Lets each event of a ChannelPruning happen as soon as it can, while no step changes a weight.

    Args:
        table: For the latency after each event; by default that of the selection, if it has one.
    """

    def __init__(self, table: LatencyTable | None) -> None:
        self._table = table
        self._pruning: ChannelPruning
        # Since the last event.
        self._steps = 0
        self._ms: list[float] = []

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        found = [each for each in trainer.callbacks if isinstance(each, ChannelPruning)]  # type: ignore[attr-defined]
        if not found:
            raise ArgumentError(
                "There is nothing to plan: no ChannelPruning is among the callbacks. Add one to `trainer.callbacks` of "
                "the configuration, or by --trainer.callbacks+=lit_prune.ChannelPruning."
            )
        self._pruning = found[0]
        self._pruning.verbose = False
        pruner = self._pruning.pruner
        if self._table is None and isinstance(pruner.policy.selection, LatencyBudget):
            self._table = pruner.policy.selection.table
        # No metric is measured by which an event could be judged.
        pruner.recovery, pruner.monitor = Recovery(), Monitor(None)
        pruner.before_cut.append(lambda host, _: self._time(host.network))

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        trainer.fit_loop.max_epochs = -1
        trainer.fit_loop.epoch_loop.max_steps = -1
        trainer.strategy.lr_scheduler_configs = []

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        self._look_ahead(trainer)

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Any) -> None:
        self._steps += 1
        for group in optimizer.param_groups:
            group["lr"] = group["lr"] * 0

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._look_ahead(trainer, waits=False)

    def _look_ahead(self, trainer: Trainer, waits: bool = True) -> None:
        """Carry out what can be, and end the fit after the last event."""
        agenda, unit = self._pruning.agenda, self._pruning.schedule.unit
        pruner, host = agenda.pruner, LightningHost(trainer, self._pruning.averages)
        while ahead := agenda.ahead:
            few = waits and pruner.policy.criterion.needs_gradients and self._steps < _STEPS
            if few or not pruner.is_ready:
                return
            event = agenda.prune_ahead(host)
            self._steps = 0
            if event is not None:
                event[unit.removesuffix("s")] = ahead[0]
        self._time(host.network)
        raise _AllIsSeen

    def _time(self, network: nn.Module) -> None:
        """Note what the table says of the network as it is now."""
        if self._table is not None:
            prefix = self._table.prefix_in(network)
            self._ms.append(
                self._table.ms({name: widths_of(network.get_submodule(prefix + name)) for name in self._table.layers})
            )

    @property
    def foreseen(self) -> Foreseen:
        """What was seen, as plain data."""
        record, unit = self._pruning.record, self._pruning.schedule.unit.removesuffix("s")
        dense = record.dense
        if dense is None:
            raise PruningError("The run ended before its network was seen: it has no training batch.")
        return foreseen(dense.widths, dense.params, dense.macs, record.events, unit, self._ms)
