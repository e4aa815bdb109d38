"""A network under pruning: what is known of it, its events, and what hangs on it; whatever trains it is its host."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from torch import nn

from lit_prune.activations import Calibration, Moments
from lit_prune.common.arguments import check_ratio
from lit_prune.common.choices import nearest
from lit_prune.common.names import count_parameters
from lit_prune.common.ranks import any_rank, together, warn_once
from lit_prune.errors import ArgumentError, ArgumentTypeError, HalfPrunedError, PruningError, TraceError
from lit_prune.graph import Call, ChannelGraph
from lit_prune.plan import PruningPlan
from lit_prune.policy.history import Dense, Record
from lit_prune.policy.policy import PruningEvent, PruningPolicy
from lit_prune.policy.steps import carry_out
from lit_prune.select import Selection
from lit_prune.surgery.prune import prepare
from lit_prune.training.calibration_pass import calibrate
from lit_prune.training.host import Host
from lit_prune.training.inputs import calls_from_state, calls_to_state
from lit_prune.training.recovery import Recovery, Rewarming
from lit_prune.training.rollback import Trial


class Pruner:
    """Prunes one network while it trains, as often as it is told to.

    Args:
        policy: How channels are chosen.
        recovery: What follows an event.
        amount: The ratio that is gone after the last event, in (0, 1); ``None`` lets the selection decide.

    Attributes:
        record: What was pruned so far.
        graph: The channels of the network as it is; ``None`` until it was seen.
        calls: How the network is entered.

    Raises:
        ArgumentError: If the amount is out of range, or missing and needed.
    """

    def __init__(self, policy: PruningPolicy, recovery: Recovery, amount: float | None) -> None:
        self.policy = policy
        if not isinstance(recovery, Recovery):
            raise ArgumentTypeError(
                f"recovery must be a Recovery, such as Recovery(rewarm_steps=100), but got {recovery!r}."
            )
        self.recovery = recovery
        self.amount = _checked_amount(amount, policy.selection)
        self.record = Record()
        self.calls: Sequence[Call] = ()
        self.graph: ChannelGraph | None = None
        self._trial: Trial | None = None
        self._noted: float | None = None
        self._validated = False
        self._rewarming: Rewarming | None = None
        # Of a run that is resumed: the calls of its network, and how far the learning rate had risen.
        self._inputs: list[dict[str, Any]] | None = None
        self._rewarmed: list[int] | None = None

    @property
    def sees(self) -> bool:
        """Whether the network's inputs are known, and so its channels."""
        return self.graph is not None

    def see(self, network: nn.Module, calls: Sequence[Call]) -> None:
        """Trace the network as it is; the first time, check that it can be pruned as the policy says.

        Raises:
            PruningError: If there is no call, or the network can't be run on one.
            ArgumentError: If nothing can be pruned in this way.
        """
        if not calls:
            raise PruningError(
                f"No layer of {type(network).__name__} was called in the first batch, so its channels can't be traced. "
                "Set `example_input_array` on the LightningModule."
            )
        try:
            graph = together(lambda: ChannelGraph.trace_calls(network, calls))
        except TraceError as error:
            raise PruningError(
                f"The network can't be run on {[call.module or 'its example inputs' for call in calls]}: {error}. Give "
                "the LightningModule an `example_input_array` that its forward takes."
            ) from error
        if self.record.dense is None:
            self.policy.check(network, graph)
            self.record.dense = Dense.of(network, graph)
        self.graph, self.calls, self._inputs = graph, calls, calls_to_state(calls)

    def see_again(self, network: nn.Module) -> bool:
        """See the network by the calls of a resumed run, to prune when it would have; False if there is none."""
        self.graph = None
        if self._inputs is not None:
            device = next(network.parameters()).device
            self.see(network, calls_from_state(self._inputs, device))
        return self.sees

    def ratio(self, part: float) -> float | None:
        """What is to be gone after an event, of what the selection counts; ``None`` where that decides.

        Args:
            part: The part of the amount that is to be gone by then.
        """
        return None if self.amount is None else self.amount * (1.0 if self.policy.layers_per_event else part)

    def costs(self, network: nn.Module) -> dict[str, float]:
        """What the network costs now."""
        if self.graph is None:
            return {}
        return {
            "params": float(count_parameters(network)),
            "macs": float(self.graph.macs),
            "channels": float(sum(group.size for group in self.graph.groups)),
        }

    def prune(self, host: Host, part: float, due: Sequence[int]) -> dict[str, Any]:
        """One event: whole, or an error and nothing changed.

        Args:
            host: The run.
            part: The part of the amount that is to be gone afterwards.
            due: The points of the schedule that this event settles.

        Returns:
            The event's record.

        Raises:
            LitPruneError: If it can't be carried out; the network is as it was.
            HalfPrunedError: If it broke off once the first tensor was cut, on this rank or another.
        """
        started = time.perf_counter()
        network, ratio = host.network, self.ratio(part)

        def measure(layers: list[str], calibration: Calibration) -> Mapping[str, Moments]:
            return calibrate(host, layers, calibration, self.calls)

        decision = self.policy.decide(network, self.calls, ratio, self.record, measure, host.averages_within())
        carry_out("check", lambda: host.check(decision.plan))
        params, averages = count_parameters(network), host.averages()
        groups = [group.name for group in decision.groups]
        trial = carry_out("keep", lambda: self._begin_trial(host, decision.plan, groups, averages))
        commit = carry_out("prepare", lambda: prepare(network, decision.plan, host.optimizers, [*averages.values()]))

        def record() -> dict[str, Any]:
            event = decision.record(
                epoch=host.epoch,
                step=host.step,
                ratio=ratio,
                params=[params, count_parameters(network)],
                seconds=time.perf_counter() - started,
            )
            self._take_up(decision, trial, event, due)
            return event

        with _from_the_first_cut(host, "pruned"):
            carry_out("cut", commit)
            carry_out("unwrap", host.unwrap)
            carry_out("wrap", host.wrap)
            event = carry_out("record", record)
            carry_out("recover", lambda: self._recover(host))
        return event

    def _take_up(self, decision: PruningEvent, trial: Trial | None, event: dict[str, Any], due: Sequence[int]) -> None:
        self.graph, self._trial = decision.after, trial
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
        """Go on with the rise that a resumed run was in the middle of."""
        if self._rewarmed is not None:
            self._rewarm(host, self._rewarmed)

    def note_score(self, host: Host, validated: bool = False) -> None:
        """Remember the monitored metric: a resumed run has none until its first validation.

        Args:
            host: The run.
            validated: Whether a validation has just ended.
        """
        self._validated |= validated
        if self.recovery.monitor is None:
            # To ask for the metrics is to compute them all.
            return
        value = host.metrics().get(self.recovery.monitor)
        if value is not None:
            self._noted = float(value)

    def end_trial(self, host: Host) -> None:
        """Take the last event back, if the network has not got over it by now.

        Raises:
            HalfPrunedError: If that broke off once the first tensor was put back.
        """
        trial, self._trial = self._trial, None
        if trial is None or self.recovery.max_drop is None:
            return
        score = self._score(host)
        if not any_rank(trial.has_failed(score, self.recovery.mode, self.recovery.max_drop)):
            return
        network, averages, event = host.network, host.averages(), self.record.events[-1]

        def record() -> None:
            self.graph = ChannelGraph.trace_calls(network, self.calls)
            self.record.plan = PruningPlan.from_state_dict(trial.plan)
            self.record.barred.extend(trial.groups)
            event["taken_back"] = True

        with _from_the_first_cut(host, "taken back"):
            carry_out("cut", lambda: trial.roll_back_(network, host.optimizers, averages))
            carry_out("unwrap", host.unwrap)
            carry_out("wrap", host.wrap)
            carry_out("record", record)
        warn_once(
            f"The pruning at epoch {event['epoch']} was taken back: {self.recovery.monitor} went from {trial.score:g} "
            f"to {score:g}, and max_drop={self.recovery.max_drop:g}. Its {len(trial.groups)} groups are left "
            "alone from now on."
        )

    def state_dict(self) -> dict[str, Any]:
        """The record, and what it takes to go on from here, as plain data."""
        return {
            **self.record.state_dict(),
            "inputs": self._inputs,
            "trial": None if self._trial is None else self._trial.state_dict(),
            "score": self._noted,
            "rewarmed": None if self._rewarming is None else self._rewarming.taken,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take up what :meth:`state_dict` wrote."""
        self.record = Record.from_state_dict(state)
        self._inputs = state.get("inputs")
        self._trial = None if state.get("trial") is None else Trial(**state["trial"])
        self._noted = state.get("score")
        self._rewarmed = state.get("rewarmed")

    def forget(self) -> None:
        """Start again, with another network."""
        self.record = Record()
        self._trial = self._noted = None

    def close(self) -> None:
        """Leave the run alone; the record stays."""
        self._validated = False
        self._inputs = self._rewarmed = None
        if self._rewarming is not None:
            self._rewarming.close()
            self._rewarming = None

    def check_monitor(self, host: Host) -> None:
        """Raise where metrics are logged, those of a validation too if there is one, but not the monitored one.

        Raises:
            PruningError: The message has the nearest names.
        """
        if self.recovery.monitor is None or self._score(host) is not None:
            return
        logged = [name for name in host.metrics() if not name.startswith("pruning/")]
        if logged and (self._validated or not host.validates):
            raise PruningError(
                f"monitor={self.recovery.monitor!r} is not logged. {nearest(self.recovery.monitor, logged)}"
            )

    def _rewarm(self, host: Host, taken: list[int] | None = None) -> None:
        if self._rewarming is not None:
            self._rewarming.close()
        if self.recovery.rewarm_steps:
            self._rewarming = Rewarming(host.optimizers, self.recovery.rewarm_steps, taken)

    def _begin_trial(
        self, host: Host, plan: PruningPlan, groups: list[str], averages: Mapping[str, nn.Module]
    ) -> Trial | None:
        if self.recovery.max_drop is None or not plan:
            return None
        self.check_monitor(host)
        return Trial.begin(self._noted, groups, self.record.plan.state_dict(), host.network, host.optimizers, averages)

    def _score(self, host: Host) -> float | None:
        self.note_score(host)
        return self._noted


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


def _checked_amount(amount: float | None, selection: Selection) -> float | None:
    if amount is None:
        if selection.needs_amount:
            raise ArgumentError(
                f"amount=None needs a selection that finds it out itself ('clusters'), but {type(selection).__name__} "
                "does not. Give a ratio in (0, 1)."
            )
        return None
    check_ratio("amount", amount)
    return float(amount)
