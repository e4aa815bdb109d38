"""Prunes one network during training, whatever trains it."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from types import MappingProxyType
from typing import Any

from torch import nn
from torch.optim import Optimizer

from lit_prune.common.names import count_parameters
from lit_prune.common.ranks import any_rank, sent_by_rank_zero, warn_once
from lit_prune.criteria import Evidence
from lit_prune.errors import ArgumentTypeError, HalfPrunedError, LitPruneError
from lit_prune.graph import Call
from lit_prune.graph.recording import Pairs, parted
from lit_prune.plan import PruningPlan
from lit_prune.policy.history import Dense, Record
from lit_prune.policy.measure import Measure
from lit_prune.policy.policy import PruningEvent, PruningPolicy
from lit_prune.policy.steps import carry_out
from lit_prune.repair import Repair, Repaired, repaired
from lit_prune.surgery.prepare import prepare
from lit_prune.training.calibration_pass import measure_on
from lit_prune.training.entrance import entrance
from lit_prune.training.entry import Entry
from lit_prune.training.entry_watch import EntryWatch
from lit_prune.training.gradients import Gradients
from lit_prune.training.host import Host
from lit_prune.training.inputs import calls_from_state, calls_to_state
from lit_prune.training.monitor import Monitor
from lit_prune.training.recovery import Recovery, Rewarming
from lit_prune.training.rollback import Trial
from lit_prune.training.seeing import Sight, warn_of_idle


class Pruner:
    """Prunes one network while it trains, as often as it is told to.

    Args:
        policy: How channels are chosen.
        recovery: What follows an event.
        amount: The ratio that is gone after the last event, in (0, 1); ``None`` lets the selection decide.
        repair: How what is left is made to answer as the whole did; ``None`` leaves it as it is.

    Attributes:
        record: What was pruned so far.
        sight: What is known of the network.
        late: Steps that have used what the first did not, since the network was seen.
        monitor: The metric by which an event is judged.
        before_cut: Told of the run and of the names of the modules that a step enters, before each event cuts anything.

    Raises:
        ArgumentError: If the amount is out of range, or missing and needed.
    """

    def __init__(
        self, policy: PruningPolicy, recovery: Recovery, amount: float | None, repair: Repair | None = None
    ) -> None:
        self.policy = policy
        self.repair = repair
        if not isinstance(recovery, Recovery):
            raise ArgumentTypeError(
                f"recovery must be a Recovery, such as Recovery(rewarm_steps=100), but got {recovery!r}."
            )
        self.recovery = recovery
        self.amount = policy.checked_amount(amount)
        self.record = Record()
        self.sight = Sight()
        self.late: list[Call] = []
        self._trial: Trial | None = None
        self._gradients = Gradients(policy.criterion.needs_gradients)
        self.watch = EntryWatch()
        self.monitor = Monitor(recovery.monitor)
        self.before_cut: list[Callable[[Host, list[str]], None]] = []
        self._rewarming: Rewarming | None = None
        # Of a run that is resumed: the calls of its network, and how far the learning rate had risen.
        self._inputs: list[dict[str, Any]] | None = None
        self._rewarmed: list[int] | None = None

    @property
    def sees(self) -> bool:
        """Whether the network's inputs are known, and so its channels."""
        return self.sight.graph is not None

    @property
    def is_ready(self) -> bool:
        """Whether all is known that an event goes by, but for calibration data."""
        return self.sees and self._gradients.are_enough

    def see(
        self,
        network: nn.Module,
        calls: Sequence[Call],
        steps: Sequence[Call] = (),
        averages: Pairs = MappingProxyType({}),
        entries: Sequence[Entry] = (),
    ) -> None:
        """Trace the network as it is; the first time, check that it can be pruned as the policy says.

        Args:
            network: As for :meth:`Sight.of`.
            calls: As for :meth:`Sight.of`.
            steps: As for :meth:`Sight.of`.
            averages: As for :meth:`Sight.of`.
            entries: As for :meth:`Sight.of`.

        Raises:
            PruningError: As for :meth:`Sight.of`.
            ArgumentError: If nothing can be pruned in this way.
        """
        self._take_up(network, Sight.of(network, calls, steps, averages, entries))

    def look_again(self, network: nn.Module, averages: Pairs) -> None:
        """Trace the network anew in the way that it was seen, as these averages are known now."""
        self._take_up(network, self.sight.again(network, averages))

    def see_again(self, network: nn.Module, averages: Pairs = MappingProxyType({})) -> bool:
        """See the network by the calls of a resumed run, to prune when it would have; False if there is none."""
        self.sight, self.late = Sight(), []
        if self._inputs is not None:
            device = next(network.parameters()).device
            self.see(network, *parted(calls_from_state(self._inputs, device)), averages, self.watch.resumed)
        return self.sees

    def _see_late(self, network: nn.Module, averages: Pairs) -> None:
        """See the network again by the steps that have used more of it, or entered it otherwise, on whatever rank."""
        late, self.late = self.late, []
        self._take_up(network, self.sight.with_steps(network, late, averages).with_entries(self.watch.taken()))

    def _take_up(self, network: nn.Module, sight: Sight) -> None:
        if self.record.dense is None and sight.graph is not None:
            self.policy.check(network, sight.graph)
            self.record.dense = Dense.of(network, sight.graph)
        self.sight = sight
        self._gradients.follow(network, sight.graph)
        if self.repair is not None or self.policy.calibration is not None:
            self.watch.note_values(network, (call.module for call in sight.forwards))

    def note_gradients(
        self, network: nn.Module, optimizer: Optimizer, scale: Callable[[], float] = lambda: 1.0
    ) -> None:
        """Before an optimizer steps: look at the gradients, if the criterion goes by them.

        Args:
            network: The live network.
            optimizer: Which one.
            scale: Tells by what the gradients were multiplied.
        """
        self._gradients.follow(network, self.sight.graph)
        self._gradients.note(optimizer, scale)

    def ratio(self, part: float) -> float | None:
        """The ratio to be gone after an event, of what the selection counts; ``None`` where the selection decides.

        Args:
            part: The part of the amount that is to be gone by then.
        """
        return None if self.amount is None else self.amount * (1.0 if self.policy.layers_per_event else part)

    def costs(self, network: nn.Module) -> dict[str, float]:
        """What the network costs now."""
        graph = self.sight.graph
        if graph is None:
            return {}
        return {
            "params": float(count_parameters(network)),
            "macs": float(graph.macs),
            "channels": float(sum(group.size for group in graph.groups)),
        }

    def prune(self, host: Host, part: float, due: Sequence[int]) -> dict[str, Any]:
        """One event: whole, or an error and nothing changed.

        Args:
            host: The run.
            part: The part of the amount that is to be gone afterwards.
            due: The points of the schedule that this event settles.

        Returns:
            The event, as plain data.

        Raises:
            LitPruneError: If it can't be carried out; the network is as it was.
            HalfPrunedError: If it broke off once the first tensor was cut, on this rank or another.
        """
        started = time.perf_counter()
        network, ratio = host.network, self.ratio(part)
        within = host.averages_within()
        self._see_late(network, within)
        changes = self._gradients.values()
        measure = self._measure_on(host)
        decision = self.policy.decide(network, self.sight.calls, ratio, self.record, measure, within, changes)
        findings = sent_by_rank_zero(dict(self.policy.selection.findings))
        warn_of_idle(network, decision)
        carry_out("check", lambda: host.check(decision.plan))
        params, averages = count_parameters(network), host.averages()
        fits = sent_by_rank_zero(carry_out("repair", lambda: self._repaired(host, decision.plan, within)))
        carry_out("watch", lambda: self._tell(host))
        groups = [group.name for group in decision.groups]
        trial = carry_out("keep", lambda: self._begin_trial(host, decision.plan, groups, averages))
        commit = carry_out("prepare", lambda: prepare(network, decision.plan, host.optimizers, [*averages.values()]))

        def record() -> dict[str, Any]:
            event = decision.summary(
                self.record.dense or Dense.of(network, decision.before),
                epoch=host.epoch,
                step=host.step,
                **self._aim(ratio),
                params=[params, count_parameters(network)],
                seconds=time.perf_counter() - started,
                repair=fits.summary(),
                **({"findings": findings} if findings else {}),
            )
            self._add_to_record(decision, trial, event, due)
            return event

        def cut() -> None:
            commit()
            fits.apply_(network, [*averages.values()], within)

        with _from_the_first_cut(host, "pruned"):
            carry_out("cut", cut)
            carry_out("unwrap", host.unwrap)
            carry_out("wrap", host.wrap)
            event = carry_out("record", record)
            carry_out("recover", lambda: self._recover(host))
        return event

    def evidence(self, host: Host) -> Evidence:
        """What an event would go by now; nothing is changed.

        Raises:
            LitPruneError: If nothing could be pruned.
        """
        within = host.averages_within()
        changes = self._gradients.values()
        found, _ = self.policy.evidence(
            host.network, self.sight.calls, self.record, self._measure_on(host), within, changes
        )
        return found

    def _measure_on(self, host: Host) -> Measure:
        return measure_on(host, self.sight, self.watch.usual)

    def _aim(self, ratio: float | None) -> dict[str, Any]:
        """How far an event was to go, as the record has it: a ratio, or a part of the way to a limit, and of what."""
        selection = self.policy.selection
        if selection.has_limit:
            return {"ratio": None, "part": ratio}
        unit = getattr(selection, "counted", "")
        return {"ratio": ratio, "unit": unit} if unit else {"ratio": ratio}

    def _repaired(self, host: Host, plan: PruningPlan, averages: Pairs) -> Repaired:
        """What is to be changed in what a plan leaves; nothing where there is no data to go by."""
        if self.repair is None or not plan:
            return Repaired()
        repair, calibration = self.repair, self.repair.calibration
        try:
            enters = entrance(host.network, self.sight)
            return repaired(
                host.network,
                plan,
                lambda: host.batches(calibration, True, enters.read),
                repair.batches,
                repair,
                enters.forward,
                host.precision,
                None if enters.replays else self.watch.usual,
                averages,
            )
        except Exception as error:
            # The user's own forward may raise anything, and the cut can do without.
            about = "" if isinstance(error, LitPruneError) else f"{type(error).__name__} on a calibration batch: "
            warn_once(f"What is left after the pruning is not repaired. {about}{error}")
            return Repaired()

    def _tell(self, host: Host) -> None:
        entered = list(dict.fromkeys(call.module for call in self.sight.forwards))
        for told in self.before_cut:
            told(host, entered)

    def _add_to_record(
        self, decision: PruningEvent, trial: Trial | None, event: dict[str, Any], due: Sequence[int]
    ) -> None:
        self.sight, self._trial = replace(self.sight, graph=decision.after), trial
        self._gradients.forget()
        self.record.plan = self.record.plan.then(decision.plan)
        self.record.pruned.extend(group.name for group in decision.groups)
        self.record.events.append(event)
        self.record.done.extend(due)

    def _recover(self, host: Host) -> None:
        """After an event: scores start again, the learning rate rises again."""
        if self.recovery.reset_scores:
            host.forget_scores()
        self._rewarm(host)

    def rewarm_again(self, host: Host) -> None:
        """Continue the learning rate's rise that the end of a resumed run cut short."""
        if self._rewarmed is not None:
            self._rewarm(host, self._rewarmed)

    def end_trial(self, host: Host) -> bool:
        """Take the last event back if the network has not recovered from it by now.

        Returns:
            Whether that event was one too many, so that no other shall follow.

        Raises:
            HalfPrunedError: If that broke off once the first tensor was put back.
        """
        trial, self._trial = self._trial, None
        if trial is None or not self.recovery.takes_back:
            return False
        score = self.monitor.read(host)
        ends = any_rank(self.recovery.is_beyond_floor(score))
        most = self.recovery.max_drop
        if not (any_rank(most is not None and trial.has_failed(score, self.recovery.mode, most)) or ends):
            return False
        network, averages, event = host.network, host.averages(), self.record.events[-1]
        within = host.averages_within()

        def record() -> None:
            self.sight = self.sight.again(network, within)
            self._gradients.forget()
            self.record.plan = PruningPlan.from_state_dict(trial.plan)
            self.record.barred.extend(trial.groups)
            event["taken_back"] = True

        with _from_the_first_cut(host, "taken back"):
            carry_out("cut", lambda: trial.roll_back_(network, host.optimizers, averages))
            carry_out("unwrap", host.unwrap)
            carry_out("wrap", host.wrap)
            carry_out("record", record)
        limit = f"floor={self.recovery.floor:g}" if ends else f"max_drop={most:g}"
        rest = "No other follows." if ends else f"Its {len(trial.groups)} groups are left alone from now on."
        warn_once(
            f"The pruning at epoch {event['epoch']} was taken back: {self.recovery.monitor} went from "
            f"{_shown(trial.score)} to {_shown(score)}, and {limit}. {rest}"
        )
        return ends

    def state_dict(self) -> dict[str, Any]:
        """The record, and what it takes to go on from here, as plain data."""
        return {
            **self.record.state_dict(),
            "inputs": calls_to_state([*self.sight.known, *self.late]) if self.sight.known else self._inputs,
            "trial": None if self._trial is None else self._trial.state_dict(),
            "score": self.monitor.value,
            "changes": self._gradients.state_dict(),
            **self.watch.state_dict(self.sight.entries),
            "rewarmed": None if self._rewarming is None else self._rewarming.taken,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take up what :meth:`state_dict` wrote."""
        self.record = Record.from_state_dict(state)
        self._inputs = state.get("inputs")
        self._trial = None if state.get("trial") is None else Trial(**state["trial"])
        self.monitor.value = state.get("score")
        self._gradients.load_state_dict(state.get("changes"))
        self.watch.load_state_dict(state)
        self._rewarmed = state.get("rewarmed")

    def forget(self) -> None:
        """Start again with another network: forget the record."""
        self.record = Record()
        self._trial = self.monitor.value = self._inputs = None
        self.watch.close()
        self.watch = EntryWatch()
        self._gradients.forget()

    def close(self) -> None:
        """Detach from the run; the record stays."""
        self.monitor.validated = False
        self.watch.close()
        self._inputs = self._rewarmed = None
        self._gradients.forget()
        if self._rewarming is not None:
            self._rewarming.close()
            self._rewarming = None

    def _rewarm(self, host: Host, taken: list[int] | None = None) -> None:
        if self._rewarming is not None:
            self._rewarming.close()
        if self.recovery.rewarm_steps:
            self._rewarming = Rewarming(host.optimizers, self.recovery.rewarm_steps, taken)

    def _begin_trial(
        self, host: Host, plan: PruningPlan, groups: list[str], averages: Mapping[str, nn.Module]
    ) -> Trial | None:
        if not self.recovery.takes_back or not plan:
            return None
        self.monitor.check(host)
        plan_before = self.record.plan.state_dict()
        return Trial.begin(self.monitor.value, groups, plan_before, host.network, host.optimizers, averages)


@contextmanager
def _from_the_first_cut(host: Host, what: str) -> Iterator[None]:
    """Within, the network is not whole: a failure ends the run, and says where to resume."""
    try:
        yield
    except Exception as error:
        checkpoint = host.checkpoint()
        resume = (
            f"Resume from {checkpoint}" if checkpoint else "No checkpoint has been written yet: start the run again"
        )
        raise HalfPrunedError(
            f"The network broke while it was being {what} at epoch {host.epoch}, and training can't go on with it. "
            f"{resume}. {error}"
        ) from error


def _shown(score: float | None) -> str:
    return "unknown" if score is None else f"{score:g}"
