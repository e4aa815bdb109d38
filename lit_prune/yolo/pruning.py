"""UltralyticsPruning: channel pruning as callbacks of Ultralytics' own trainer."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from rich.console import Console
from torch import Tensor

from lit_prune.common.choices import resolve
from lit_prune.criteria import CRITERIA, Criterion
from lit_prune.errors import ArgumentError, ArgumentTypeError, PruningError
from lit_prune.graph import Call
from lit_prune.policy.history import Record
from lit_prune.policy.policy import PruningPolicy
from lit_prune.policy.scope import Scope
from lit_prune.repair import Repair, as_repair
from lit_prune.report.tables import event_table
from lit_prune.schedule import Schedule
from lit_prune.select import SELECTIONS, Selection
from lit_prune.surgery.optimizers import check_optimizer
from lit_prune.training.agenda import Agenda, OnError
from lit_prune.training.inputs import step_of
from lit_prune.training.pruner import Pruner
from lit_prune.training.recovery import Recovery
from lit_prune.yolo.package import STATE
from lit_prune.yolo.trainer_host import UltralyticsHost

YoloT = TypeVar("YoloT")


class UltralyticsPruning:
    """Removes channels at scheduled epochs of a run of Ultralytics' own trainer, and lets it go on with what is left.

    The network, its moving average and the optimizer's state become smaller together, before the epoch begins. Scores
    start again with each event, so that `best.pt` is the best of the pruned network. `last.pt` and `best.pt` are pruned
    and open in plain Ultralytics.

    Nothing of Ultralytics is patched: all is done through its callbacks. They work on one device; on several, train
    `LitYOLO` under Lightning's `strategy="ddp"`. A file that is pruned already keeps its widths, and ratios are counted
    against them. To resume an interrupted run, attach a new object with the same arguments and give `resume=True`.

    Args:
        amount: The ratio that is gone after the last event, in (0, 1), as for `ChannelPruning`.
        epochs: At the start of which epochs to prune, counted from 0: one, several, or a `Schedule` of epochs.
        blocks: Which layers: integers are `model.model[i]`, strings are patterns of layer names. `None` is all.
        criterion: How important a channel is: `"magnitude"`, `"batchnorm"`, `"geometric_median"`, `"random"`,
            `"taylor"`, `"fisher"`, or a `Criterion` that needs no activations.
        selection: Which channels go: `"uniform"`, `"global"`, `"macs"` or a `Selection` that needs no activations.
        exclude: Patterns of layers that must stay as they are.
        round_to: Kept widths are multiples of it; layers that have no more channels stay as they are.
        min_channels: The fewest channels that a layer keeps.
        layers_per_event: How many layers to prune at each event, as for `ChannelPruning`.
        recovery: What follows an event, as for `ChannelPruning`; `monitor` names one of Ultralytics' metrics
            (`"metrics/mAP50-95(B)"`) or `"fitness"`. A run that is resumed takes nothing back of what came before.
        repair: Whether what is left after a cut is made to answer as the whole did, as for `ChannelPruning`; by
            training images without augmentation.
        on_error: `"raise"`, or `"continue"` with the network as it was when an event fails.

    Raises:
        ArgumentError: If an argument is out of range, or needs activations.

    Example:
        >>> pruning = UltralyticsPruning(amount=0.4, epochs=[2, 4])
        >>> pruning.record.done
        []

        ```
        yolo = pruning.attach(YOLO("yolov8s.pt"))
        yolo.train(data="data.yaml", epochs=20)
        ```
    """

    def __init__(
        self,
        amount: float | None,
        epochs: Schedule | list[int] | int,
        *,
        blocks: list[int | str] | None = None,
        criterion: Criterion | str = "magnitude",
        selection: Selection | str = "uniform",
        exclude: list[str] | None = None,
        round_to: int = 8,
        min_channels: int = 1,
        layers_per_event: int | None = None,
        recovery: Recovery | None = None,
        repair: Repair | bool = False,
        on_error: OnError = "raise",
    ) -> None:
        policy = PruningPolicy(
            scope=Scope(blocks, exclude or []),
            criterion=resolve("criterion", criterion, Criterion, CRITERIA),
            selection=resolve("selection", selection, Selection, SELECTIONS),
            round_to=round_to,
            min_channels=min_channels,
            layers_per_event=layers_per_event,
        )
        if policy.looks_at_objects:
            raise ArgumentError(
                "Under Ultralytics' trainer calibration batches have no objects; for a criterion or selection that "
                "looks at classes, train LitYOLO with ChannelPruning on a YOLODataModule."
            )
        self.pruner = Pruner(policy, recovery or Recovery(), amount, as_repair(repair))
        self.agenda = Agenda(self.pruner, epochs, on_error)
        self._ended = False
        self._step: Call | None = None
        self._hook: Any = None
        self._gradients_hook: Any = None
        if self.agenda.schedule.unit != "epochs":
            raise ArgumentError("Ultralytics' trainer is pruned at the start of epochs: give a schedule of epochs.")

    @property
    def record(self) -> Record:
        """What was pruned so far."""
        return self.pruner.record

    @property
    def callbacks(self) -> dict[str, Callable[[Any], None]]:
        """Ultralytics' name of an event to what is done there, for `model.add_callback` or `trainer.add_callback`."""
        return {
            "on_pretrain_routine_start": self.keep_widths,
            "on_pretrain_routine_end": self.check,
            "on_train_epoch_start": self.prune_if_due,
            "on_train_batch_end": self.check_step,
            "on_fit_epoch_end": self.note_score,
            "on_train_end": self.end,
        }

    def attach(self, yolo: YoloT) -> YoloT:
        """Add the callbacks to an `ultralytics.YOLO`, which is returned.

        Raises:
            ArgumentTypeError: If it is something else, such as the name of a file.
        """
        if not hasattr(yolo, "add_callback"):
            raise ArgumentTypeError(
                f"attach takes a model of Ultralytics: write attach(YOLO(...)), not attach({yolo!r})."
            )
        for event, callback in self.callbacks.items():
            yolo.add_callback(event, callback)
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
        self.agenda.set_length(trainer.epochs)
        check_optimizer(trainer.optimizer)
        self.pruner.forget()
        self._ended = False
        host, state = UltralyticsHost(trainer), getattr(trainer.model, STATE, None)
        if trainer.resume and state is not None:
            self.pruner.load_state_dict(state)
        if not self.pruner.see_again(trainer.model):
            self.pruner.see(trainer.model, host.calls())
        self._step = None
        self._gradients_hook = trainer.optimizer.register_step_pre_hook(
            lambda optimizer, *_: self.pruner.note_gradients(trainer.model, optimizer)
        )
        if not self.pruner.sight.knows_a_step:
            self._hook = trainer.model.register_forward_pre_hook(self._keep_step)
        # In place of the record of an earlier run, which the network may carry.
        self._write(trainer)
        self.agenda.rehearse(host)
        self.pruner.rewarm_again(host)

    def prune_if_due(self, trainer: Any) -> None:
        """At the start of an epoch: prune where an event is due, whole or not at all.

        Raises:
            PruningError: If the event can't be carried out; the network is as it was.
            HalfPrunedError: If it broke off; training can't go on.
        """
        host = UltralyticsHost(trainer)
        if trainer.epoch > trainer.start_epoch:
            self.agenda.check_monitor(host)
        event = self.agenda.prune_if_due(host)
        self._write(trainer)
        if event is not None:
            Console().print(event_table(event))

    def check_step(self, trainer: Any) -> None:
        """After a step: see what it does beside the forward, and whether the optimizer's state can follow."""
        host = UltralyticsHost(trainer)
        step, self._step = self._step, None
        if step is not None:
            self.pruner.see(trainer.model, host.calls(), [step])
            self.agenda.rehearse_events(host)
        self.agenda.rehearse_optimizers(host)
        self.agenda.rehearse_averages(host)

    def _keep_step(self, network: Any, args: tuple[Any, ...]) -> None:
        """The first batch, without the names of its files; the network computes its own loss of it."""
        if args and isinstance(args[0], dict):
            tensors = {name: value for name, value in args[0].items() if isinstance(value, Tensor)}
            self._step = step_of(network, tensors, None, "forward")
            self._forget_hook()

    def _forget_hook(self) -> None:
        if self._hook is not None:
            self._hook.remove()
            self._hook = None

    def note_score(self, trainer: Any) -> None:
        """After a validation: note the monitored metric, and judge the last event where the run ends."""
        host = UltralyticsHost(trainer)
        self.pruner.monitor.read(host, validated=True)
        if self._ended or not (trainer.stop or trainer.epoch + 1 >= trainer.epochs):
            return
        self._ended = True
        self.agenda.end(host)
        if self.record.events and self.record.events[-1].get("taken_back"):
            # The files of this epoch hold the network that was taken back.
            self._write(trainer)
            trainer.best_fitness = trainer.fitness
            trainer.save_model()

    def end(self, trainer: Any) -> None:
        """At the end of the run: detach from it."""
        self._forget_hook()
        if self._gradients_hook is not None:
            self._gradients_hook.remove()
            self._gradients_hook = None
        self.pruner.close()

    def _write(self, trainer: Any) -> None:
        # Without the network before the last event, which a file for predictions should not carry.
        state = {**self.pruner.state_dict(), "trial": None}
        for network in (trainer.model, trainer.ema.ema):
            setattr(network, STATE, state)


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
