"""The events of one run: rehearsed at its start, carried out when due, and judged at its end."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal, get_args

from lit_prune.common.arguments import check_choice
from lit_prune.common.ranks import any_rank, warn_once
from lit_prune.errors import HalfPrunedError, PruningError, UnsupportedError
from lit_prune.graph import Call
from lit_prune.policy.contract import checked_events
from lit_prune.policy.reasons import listed
from lit_prune.schedule import AtEpochs, Schedule
from lit_prune.training.host import Host
from lit_prune.training.pruner import Pruner
from lit_prune.training.rehearsal import Rehearsal

OnError = Literal["raise", "continue"]


class Agenda:
    """What is to be done when, for any host.

    Args:
        pruner: Carries events out.
        epochs: As for :class:`lit_prune.ChannelPruning`.
        on_error: As for :class:`lit_prune.ChannelPruning`.

    Attributes:
        schedule: When events come.
        events: Epoch or step to the part of the amount that is gone after it, once :meth:`set_length` was called.
        held: Whether events wait for :meth:`prune_ahead`, also when they are due.

    Raises:
        ArgumentError: If an argument is out of range.
    """

    def __init__(self, pruner: Pruner, epochs: Schedule | list[int] | int, on_error: OnError = "raise") -> None:
        check_choice("on_error", on_error, get_args(OnError))
        self.pruner = pruner
        self.schedule = self.schedule_of(epochs)
        self.on_error = on_error
        self.events: dict[int, float] = {}
        self.held = False
        # Whether an event is due that waits for a batch, or for a step.
        self.is_waiting = False
        self._rehearsal = Rehearsal(pruner)

    @staticmethod
    def schedule_of(epochs: Schedule | list[int] | int) -> Schedule:
        """The schedule that an argument names."""
        return epochs if isinstance(epochs, Schedule) else AtEpochs(epochs)

    def set_length(self, length: int | None) -> None:
        """Take the events of the schedule for a run of this length, counted in its unit.

        Raises:
            ArgumentError: If an event would never come, or the schedule breaks its promise.
        """
        self.events = checked_events(self.schedule, length)

    @property
    def ahead(self) -> list[int]:
        """The epochs or steps of the events that are to come."""
        return [point for point in self.events if point not in self.pruner.record.done]

    @property
    def waits_for_data(self) -> bool:
        """Whether events go by more than weights, so that they can be rehearsed only where there is data."""
        return self.pruner.policy.calibration is not None or self.pruner.policy.criterion.needs_gradients

    def rehearse(self, host: Host) -> None:
        """Rehearse all events to come, as far as they can be known.

        Raises:
            RehearsalError: If one can't be carried out, and ``on_error`` is ``"raise"``.
        """
        self._warn_of_unused_amount()
        self._attempt(lambda: self._rehearsal.calibration(host, self._ahead()))
        self.rehearse_events(host)

    def rehearse_events(self, host: Host) -> None:
        """:meth:`rehearse` once more where a step has shown more of the network; of the data nothing is new.

        Raises:
            RehearsalError: As for :meth:`rehearse`.
        """
        self._attempt(lambda: self._rehearsal.events(host, self._ahead()))
        self.rehearse_optimizers(host)

    def rehearse_on(self, host: Host, calls: Sequence[Call]) -> None:
        """:meth:`rehearse` by the calls of a validation step, as far as they show what is trained."""
        self._attempt(lambda: self._rehearsal.by_validation(host, calls, self._ahead()))

    def rehearse_optimizers(self, host: Host) -> None:
        """Once optimizers have state: see whether it can follow."""
        self._attempt(lambda: self._rehearsal.optimizers(host))

    def rehearse_averages(self, host: Host) -> None:
        """Once steps have shown averages inside of the network: see whether they can follow."""
        if self._rehearsal.waits_for_steps:
            self._attempt(lambda: self._rehearsal.averages(host, self._ahead()))

    def check_monitor(self, host: Host) -> None:
        """Once metrics are logged: see whether the monitored one is among them."""
        self._attempt(lambda: self.pruner.monitor.check(host))

    def prune_if_due(self, host: Host) -> dict[str, Any] | None:
        """Carry out what is due; what a resumed run has missed is made up for at once.

        Returns:
            The event, as plain data; ``None`` where none was carried out.

        Raises:
            PruningError: If it can't be carried out, and ``on_error`` is ``"raise"``; the network is as it was.
            HalfPrunedError: If it broke off; training can't go on.
        """
        now, done = host.step if self.schedule.unit == "steps" else host.epoch, self.pruner.record.done
        due = [point for point in self.events if point <= now and point not in done]
        self.is_waiting = bool(due) and not self.held and not self.pruner.is_ready
        if not due or self.held or self.is_waiting:
            return None
        recovery = self.pruner.recovery
        if recovery.floor is not None and self._had_an_event(host):
            return None
        if self.pruner.end_trial(host):
            done.extend(self.ahead)
            return None
        # What the gradients told went with the event that was taken back.
        self.is_waiting = not self.pruner.is_ready
        if self.is_waiting:
            return None
        if recovery.floor is not None:
            due = due[:1]
            if any_rank(recovery.is_beyond_floor(self.pruner.monitor.read(host))):
                return None
        return self._carry_out(host, due)

    def prune_ahead(self, host: Host) -> dict[str, Any] | None:
        """Carry out the next event that is to come, whenever it is due: to see what a run would do.

        Returns:
            As :meth:`prune_if_due`; ``None`` also where not all is known yet that it goes by.

        Raises:
            PruningError: As for :meth:`prune_if_due`.
            HalfPrunedError: As for :meth:`prune_if_due`.
        """
        return self._carry_out(host, self.ahead[:1]) if self.ahead and self.pruner.is_ready else None

    def _carry_out(self, host: Host, due: list[int]) -> dict[str, Any] | None:
        when = f"{self.schedule.unit.removesuffix('s')} {due[-1]}"
        try:
            event = self.pruner.prune(host, self.events[due[-1]], due)
        except HalfPrunedError:
            raise
        except Exception as error:
            message = f"Pruning at {when} failed, and the network is as it was. {error}"
            if self.on_error == "raise":
                raise PruningError(message) from error
            self.pruner.record.done.extend(due)
            warn_once(message)
            return None
        if event["channels"] and event["params"][0] == event["params"][1]:
            left = f" Left as they are: {listed(event['skipped'])}." if event["skipped"] else ""
            warn_once(f"The pruning at {when} removed nothing: {self.pruner.policy.why_nothing}{left}")
        return event

    def _had_an_event(self, host: Host) -> bool:
        """Whether one was carried out at this very point: a run that is resumed within an epoch has no second one."""
        last = self.pruner.record.events[-1] if self.pruner.record.events else {}
        return last.get("step") == host.step or (self.schedule.unit == "epochs" and last.get("epoch") == host.epoch)

    def end(self, host: Host, cut_short: bool = False) -> None:
        """Judge the last event, and warn of events that never came, unless the run was ``cut_short`` on purpose."""
        self.check_monitor(host)
        self._rehearsal.end()
        if self.pruner.end_trial(host):
            return
        if self.ahead and not cut_short:
            warn_once(
                f"Training has ended before the pruning at {self.schedule.unit} {self.ahead}: the network has more "
                "channels than was asked for."
            )

    def _warn_of_unused_amount(self) -> None:
        """A run that goes on after its last event does not use another amount."""
        last = self.pruner.record.events[-1].get("ratio") if self.pruner.record.events else None
        if last is not None and self.pruner.amount not in (None, last) and not self._ahead():
            warn_once(
                f"This run goes on after its last event, by which {last:g} was to be gone: amount="
                f"{self.pruner.amount:g} changes nothing. Name a later epoch in `epochs` to prune further."
            )

    def _ahead(self) -> dict[str, float]:
        """The events that are to come, by what messages call them, with the part that is gone after each."""
        unit, ahead = self.schedule.unit.removesuffix("s"), self.ahead
        return {
            f"Event {number} of {len(self.events)} ({unit} {point})": part
            for number, (point, part) in enumerate(self.events.items(), 1)
            if point in ahead
        }

    def _attempt(self, action: Callable[[], None]) -> None:
        try:
            action()
        except (PruningError, UnsupportedError) as error:
            if self.on_error == "raise":
                raise
            warn_once(str(error))
