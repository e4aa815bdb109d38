"""ChannelPruning: when to prune inside of a Trainer, and what to tell it."""

from __future__ import annotations

from functools import partial
from typing import Any, Literal

from lightning.pytorch import Callback, LightningModule, Trainer

from lit_prune.checkpoint import RECORD_KEY
from lit_prune.common.choices import resolve
from lit_prune.common.deprecated import warn_renamed
from lit_prune.common.initialized import check_network
from lit_prune.criteria import CRITERIA, Criterion
from lit_prune.errors import ArgumentError
from lit_prune.plan import PruningPlan
from lit_prune.policy.contract import checked_events
from lit_prune.policy.history import Record
from lit_prune.policy.policy import PruningPolicy
from lit_prune.policy.scope import Scope
from lit_prune.repair import Repair, as_repair
from lit_prune.report.tables import event_table
from lit_prune.schedule import Schedule
from lit_prune.select import SELECTIONS, Selection
from lit_prune.surgery.adoption import accept_for_now
from lit_prune.surgery.optimizers import check_optimizer
from lit_prune.surgery.shrink import is_cut_to
from lit_prune.training.agenda import Agenda, OnError
from lit_prune.training.averages import Averages, accept_in_copies
from lit_prune.training.checks import check_callbacks, check_launcher, check_strategy
from lit_prune.training.console import print_above_progress, tell_loggers
from lit_prune.training.first_look import FirstLook
from lit_prune.training.inputs import call_of_example
from lit_prune.training.lightning import LightningHost, gradient_scale
from lit_prune.training.loading import LoadGuard, NamedReading
from lit_prune.training.pruner import Pruner
from lit_prune.training.recovery import Recovery
from lit_prune.training.run_length import declared_length, known_length

BEFORE_WRAP: Literal["before_wrap"] = "before_wrap"
"""In place of epochs: once, before the strategy wraps the model."""


class ChannelPruning(Callback):
    """Removes channels from the network at scheduled epochs, and lets the Trainer go on with what is left.

    At the start of each scheduled epoch the network becomes physically smaller: parameters, buffers, optimizer state,
    averaged copies and DDP buckets. An event happens whole or not at all: the shrunk network has run once, on a copy
    without weights, before the live one is touched. Checkpoints carry the record of what was pruned, and a dense
    network takes their shapes when it loads them.

    Every epoch ``pruning/params``, ``pruning/macs`` and ``pruning/channels`` are logged.

    Args:
        amount: The ratio that is gone after the last event, in (0, 1): of each layer's channels (``"uniform"``,
            ``"clusters"``), of all channels (``"global"``) or of the dense network's multiply-adds (``"macs"``).
            ``None`` leaves it to a selection that can decide by itself (``"clusters"``, or a budget such as
            ``SizeBudget(at_most="2 MB")``).
        epochs: At the start of which epochs to prune, counted from 0: one, several, or a :class:`Schedule` (``AtSteps``
            counts optimizer steps). ``"before_wrap"`` prunes once, before the strategy wraps the model, and so works
            under any strategy, FSDP and DeepSpeed included; it needs an ``example_input_array``.
        blocks: Which layers: integers are children of the network's main ``nn.Sequential`` (Ultralytics:
            ``model.model[i]``), strings are :mod:`fnmatch` patterns of layer names. ``None`` is all of them.
        criterion: How important a channel is: ``"magnitude"``, ``"batchnorm"``, ``"geometric_median"``,
            ``"random"``, ``"taylor"`` or ``"fisher"`` (by the gradients of the training) or a :class:`Criterion`.
        selection: Which channels go: ``"uniform"``, ``"global"``, ``"macs"``, ``"clusters"`` or a :class:`Selection`.
        exclude: Patterns of layers that must stay as they are.
        round_to: Kept widths are multiples of it, at which hardware is fastest; layers that have no more channels
            stay as they are. 1 allows every width.
        min_channels: The fewest channels that a layer keeps.
        layers_per_event: How many layers to prune at each event, each to the full amount: the widest first, and none
            that shares a tensor with another of the same event. ``None`` is all.
        recovery: What follows an event: the best scores of other callbacks start again (the default), the learning rate
            rises again.
        repair: Whether what is left after a cut is made to answer as the whole did, without training; a :class:`Repair`
            says how.
        on_error: ``"raise"`` ends the training with the old network when an event fails; ``"continue"`` warns and
            goes on with it.
        verbose: Print a table at each event.
        before_wrap: Deprecated: write ``epochs="before_wrap"``.

    Attributes:
        record: What was pruned so far.

    Raises:
        ValueError: If an argument is out of range or a name unknown; the message has the nearest.
        TypeError: If an argument has the wrong type.

    Example:
        >>> pruning = ChannelPruning(amount=0.5, epochs=[3, 6, 9])
        >>> pruning = ChannelPruning(0.5, [3, 6, 9], selection="macs", exclude=["head.*"])
        >>> ChannelPruning(amount=0.5, epochs=3, criterion="magnitud")
        Traceback (most recent call last):
        lit_prune.errors.ArgumentError: criterion='magnitud' is not known. Did you mean 'magnitude'?
    """

    def __init__(
        self,
        amount: float | None,
        epochs: Schedule | list[int] | int | Literal["before_wrap"],
        *,
        blocks: list[int | str] | None = None,
        criterion: Criterion | str = "magnitude",
        selection: Selection | str = "uniform",
        exclude: list[str] | None = None,
        round_to: int | None = 8,
        min_channels: int = 1,
        layers_per_event: int | None = None,
        recovery: Recovery | None = None,
        repair: Repair | bool = False,
        on_error: OnError = "raise",
        verbose: bool = True,
        before_wrap: bool | None = None,
    ) -> None:
        super().__init__()
        if before_wrap is not None:
            warn_renamed(f"before_wrap={before_wrap}", "epochs='before_wrap'" if before_wrap else "nothing")
            epochs = _before_wrap_only(epochs) if before_wrap else epochs
        policy = PruningPolicy(
            scope=Scope(blocks, exclude or []),
            criterion=resolve("criterion", criterion, Criterion, CRITERIA),
            selection=resolve("selection", selection, Selection, SELECTIONS),
            round_to=_width_step(round_to),
            min_channels=min_channels,
            layers_per_event=layers_per_event,
        )
        self.pruner = Pruner(policy, recovery or Recovery(), amount, as_repair(repair))
        self.agenda = Agenda(self.pruner, 0 if epochs == BEFORE_WRAP else epochs, on_error)
        self.before_wrap = epochs == BEFORE_WRAP
        self.verbose = verbose
        self.averages = Averages()
        self._look = FirstLook(self.pruner)
        self._hooks: list[Any] = []
        self._missed_start = False

    @property
    def schedule(self) -> Schedule:
        """When events come."""
        return self.agenda.schedule

    @property
    def record(self) -> Record:
        """What was pruned so far."""
        return self.pruner.record

    @property
    def plan(self) -> PruningPlan:
        """What was kept so far, against the dense LightningModule."""
        return self.record.plan

    @property
    def events(self) -> list[dict[str, Any]]:
        """One dict per event, as plain data."""
        return self.record.events

    @property
    def state_key(self) -> str:
        """Where a checkpoint has the record; subclasses share it."""
        return RECORD_KEY

    # --- before and after -----------------------------------------------------------------------------------------

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Check the arguments against the Trainer, and let checkpoints of other shapes load."""
        if stage == "fit":
            if not self.before_wrap:
                check_strategy(trainer)
            check_callbacks(trainer)
            check_launcher(trainer, pl_module)
            self.agenda.set_length(declared_length(trainer, self.schedule.unit))
            if self.before_wrap:
                try:
                    self._check_network(pl_module)
                except ArgumentError as error:
                    raise ArgumentError(
                        f"{error} epochs='before_wrap' prunes before the module's `setup` and `configure_model`: what "
                        "they build has to be built in `__init__`."
                    ) from error
                self._prune_before_wrap(trainer, pl_module)
        guard = LoadGuard(trainer, self.plan)
        self._hooks = [guard.register_on(pl_module), NamedReading(trainer, guard.note)]
        self._hooks += [*accept_for_now([pl_module]), *accept_in_copies(trainer)]

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Let averages that were made since :meth:`setup` load, too, in the shapes of the pruned network."""
        self._hooks += accept_in_copies(trainer)

    def state_dict(self) -> dict[str, Any]:
        """The record of what was pruned, and what it takes to go on from here, as plain data."""
        return {**self.pruner.state_dict(), "averages": sorted(self.averages.notice())}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take up the record of a checkpoint."""
        self.pruner.load_state_dict(state_dict)
        self.averages = Averages(state_dict.get("averages", ()))

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Trace the network, if an example of its inputs is known."""
        if self.before_wrap:
            # By now the strategy has wrapped the parameters; the network was traced before that.
            return
        self._check_network(pl_module)
        for optimizer in trainer.optimizers:
            check_optimizer(optimizer)
        self.averages.follow(trainer)
        if (
            not self.pruner.see_again(pl_module, self.averages.within(trainer, warn=False))
            and pl_module.example_input_array is not None
        ):
            self._see_example(trainer, pl_module)
        if self.pruner.sees and not self.agenda.waits_for_data:
            self.agenda.rehearse(self._host(trainer))

    def on_sanity_check_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Watch a validation step where the network's inputs are not known."""
        if not self.before_wrap and not self.pruner.sees:
            self._look.open(pl_module)

    def on_sanity_check_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Rehearse the coming events on the inputs of the validation step."""
        if (calls := self._look.calls()) is not None:
            self.agenda.rehearse_on(self._host(trainer), calls)

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Remove all hooks: after an error :meth:`teardown` is not called."""
        self.teardown(trainer, pl_module, "fit")

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Remove all hooks."""
        self.pruner.close()
        self.averages.forget()
        self._look.close()
        for hook in self._hooks:
            hook.remove()
        self._hooks = []

    # --- while it trains ------------------------------------------------------------------------------------------

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Watch for the first batch where the network's inputs are not known."""
        # How many steps an epoch has is known only now.
        self.agenda.set_length(known_length(trainer, self.schedule.unit))
        self._missed_start = True
        self.averages.watch(trainer)
        if not self.before_wrap and not self.pruner.sight.entries:
            self._look.open(pl_module)
        if self.pruner.sees and self.agenda.waits_for_data:
            if trainer.global_step:
                # Only now a resumed run knows its epoch, which a step may go by.
                self.pruner.look_again(pl_module, self.averages.within(trainer, warn=False))
            self.agenda.rehearse(self._host(trainer))
        self._look.expect_step(not self.before_wrap and not self.pruner.sight.knows_a_step)
        self.pruner.rewarm_again(self._host(trainer))

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Prune where an event is due."""
        self._missed_start = False
        self.averages.watch(trainer)
        self.agenda.check_monitor(self._host(trainer))
        self._prune_if_due(trainer)

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Prune where events are counted in steps, or where a resumed run has come past the start of its epoch."""
        if self._missed_start or self.schedule.unit == "steps":
            self._prune_if_due(trainer)
        self._missed_start = False
        if not self._look.is_open and not batch_idx & (batch_idx - 1):
            # More and more rarely.
            self.pruner.watch.look(pl_module, self.pruner.sight.entries, batch)
        self._look.before_step(pl_module, batch, batch_idx)

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Any) -> None:
        """Trace the network before the first step, so that an event that can't be carried out leaves the weights alone.

        Where steps are the user's own, or there are several optimizers, a step may come before all calls were seen.
        """
        if pl_module.automatic_optimization and len(trainer.optimizers) == 1 and not self._look.saw_nothing:
            self._see_watched(trainer, pl_module)
        self.pruner.note_gradients(pl_module, optimizer, partial(gradient_scale, trainer, optimizer))

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """After the first batch, when the network's inputs are known, carry out the event that waited for them."""
        self.pruner.watch.end_look(pl_module)
        if pl_module.automatic_optimization and not outputs and self._look.saw_nothing:
            self._look.skip_step()
            return
        self._see_watched(trainer, pl_module)
        self._look.after_step(pl_module, batch, batch_idx)
        if self.agenda.is_waiting:
            self._prune_if_due(trainer)
        self.agenda.rehearse_optimizers(self._host(trainer))
        self.agenda.rehearse_averages(self._host(trainer))

    def on_validation_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """See what only a validation uses."""
        self._look.after_step(pl_module, batch, batch_idx, "validation_step")

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Note the monitored metric before a checkpoint is written."""
        self.pruner.monitor.read(self._host(trainer), validated=not trainer.sanity_checking)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Log what the network costs now, and note the monitored metric before a checkpoint is written."""
        # Not at the start of the epoch: the Trainer would go through these values again after every step.
        figures = {f"pruning/{name}": value for name, value in self.pruner.costs(pl_module).items()}
        pl_module.log_dict(figures, on_step=False, on_epoch=True, sync_dist=True, batch_size=1)
        self.pruner.monitor.read(self._host(trainer))

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Judge the last event, and warn of events that never came."""
        self.agenda.end(self._host(trainer), cut_short=bool(trainer.fast_dev_run))  # type: ignore[attr-defined]

    def _host(self, trainer: Trainer) -> LightningHost:
        return LightningHost(trainer, self.averages)

    def _see_watched(self, trainer: Trainer, pl_module: LightningModule) -> None:
        was_seen = self.pruner.sees
        if self._look.show(pl_module, lambda: self.averages.within(trainer, warn=False)):
            # By an example of its inputs the network was seen before, and all was rehearsed then.
            rehearse = self.agenda.rehearse_events if was_seen else self.agenda.rehearse
            rehearse(self._host(trainer))
            self._look.watch_late(pl_module)

    def _check_network(self, pl_module: LightningModule) -> None:
        """Check the arguments against the network, once its own ``setup`` and ``configure_model`` have built it."""
        check_network(type(pl_module).__name__, pl_module)
        self.pruner.policy.scope.check(pl_module)
        if not is_cut_to(pl_module, self.plan):
            # The record of an earlier fit, of another network.
            self.pruner.forget()

    def _prune_before_wrap(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if pl_module.example_input_array is None:
            raise ArgumentError(
                f"epochs='before_wrap' prunes before a batch is seen: give {type(pl_module).__name__} an "
                "`example_input_array`."
            )
        if self.agenda.waits_for_data:
            raise ArgumentError(
                "epochs='before_wrap' prunes before there is data: take a criterion and selection by weights alone."
            )
        self._see_example(trainer, pl_module)
        self._prune_if_due(trainer)

    def _see_example(self, trainer: Trainer, pl_module: LightningModule) -> None:
        example = trainer.precision_plugin.convert_input(pl_module.example_input_array)
        self.pruner.see(pl_module, [call_of_example(example, pl_module.device)])

    def _prune_if_due(self, trainer: Trainer) -> None:
        event = self.agenda.prune_if_due(self._host(trainer))
        if event is not None and trainer.is_global_zero:
            table = event_table(event)
            tell_loggers(trainer, table, event["step"])
            if self.verbose:
                print_above_progress(trainer, table)


def _before_wrap_only(epochs: Any) -> Literal["before_wrap"]:
    if epochs != BEFORE_WRAP and checked_events(Agenda.schedule_of(epochs), None) != {0: 1.0}:
        raise ArgumentError("before_wrap prunes once, before the first epoch: it takes epochs=0.")
    return BEFORE_WRAP


def _width_step(round_to: int | None) -> int:
    if round_to is None:
        warn_renamed("round_to=None", "round_to=8", stacklevel=4)
        return 8
    return round_to
