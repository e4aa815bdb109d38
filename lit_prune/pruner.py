"""A network under pruning: what is known of it, its events, and what a Trainer holds beside it."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_warn
from torch import nn

from lit_prune.activations.trainer_data import calibrate
from lit_prune.arguments import check_number
from lit_prune.averages import Averages
from lit_prune.cost import count_parameters
from lit_prune.event import PruningPolicy
from lit_prune.graph import Call, ChannelGraph, TraceError
from lit_prune.inputs import calls_from_state, calls_to_state
from lit_prune.plan import PruningPlan
from lit_prune.ranks import any_rank, together
from lit_prune.record import Dense, Record
from lit_prune.recovery import Recovery, Rewarming, reset_scores
from lit_prune.registry import nearest
from lit_prune.rollback import Trial
from lit_prune.select import Selection
from lit_prune.trainer import check_comm_hooks, forget_shapes, prepare


class PruningError(RuntimeError):
    """A pruning could not be carried out; the network is as it was."""


class HalfPrunedError(RuntimeError):
    """A pruning broke off while the network was being cut, on this rank or another: training can't go on with it."""


class Pruner:
    """Prunes one network inside of a Trainer, as often as it is told to.

    Args:
        policy: How channels are chosen.
        recovery: What follows an event.
        amount: The share that is gone after the last event, in (0, 1); ``None`` lets the selection decide.

    Attributes:
        record: What was pruned so far.
        averages: What follows the network.
        graph: The channels of the network as it is; ``None`` until it was seen.
        calls: How the network is entered.

    Raises:
        ValueError: If the amount is out of range, or missing and needed.
    """

    def __init__(self, policy: PruningPolicy, recovery: Recovery, amount: float | None) -> None:
        self.policy = policy
        self.recovery = recovery
        self.amount = _checked_amount(amount, policy.selection)
        self.record = Record()
        self.averages = Averages()
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

    def see(self, network: LightningModule, calls: Sequence[Call]) -> None:
        """Trace the network as it is; the first time, check that it can be pruned as the policy says.

        Raises:
            PruningError: If there is no call, or the network can't be run on one.
            ValueError: If nothing can be pruned in this way.
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

    def see_again(self, network: LightningModule) -> bool:
        """See the network by the calls of a resumed run, to prune when it would have; False if there is none."""
        self.graph = None
        if self._inputs is not None:
            self.see(network, calls_from_state(self._inputs, network.device))
        return self.sees

    def ratio(self, part: float) -> float | None:
        """What is to be gone after an event, of what the selection counts; ``None`` where that decides.

        Args:
            part: The part of the amount that is to be gone by then.
        """
        return None if self.amount is None else self.amount * (1.0 if self.policy.layers_per_event else part)

    def costs(self, network: LightningModule) -> dict[str, float]:
        """What the network costs now."""
        if self.graph is None:
            return {}
        return {
            "params": float(count_parameters(network)),
            "macs": float(self.graph.macs),
            "channels": float(sum(group.size for group in self.graph.groups)),
        }

    def prune(self, trainer: Trainer, network: LightningModule, part: float) -> dict[str, Any]:
        """One event: whole, or an error and nothing changed.

        Args:
            trainer: In ``fit``.
            network: Its module.
            part: The part of the amount that is to be gone afterwards.

        Returns:
            The event's record.
        """
        started = time.perf_counter()
        share = self.ratio(part)
        check_comm_hooks(trainer)
        measure = partial(calibrate, trainer, network, calls=self.calls)
        decision = self.policy.decide(network, self.calls, share, self.record, measure, self.averages.within(trainer))
        params, copies = count_parameters(network), self.averages.beside(trainer)
        groups = [group.name for group in decision.groups]
        trial = together(lambda: self._begin_trial(trainer, network, groups, copies))
        commit = together(lambda: prepare(network, decision.plan, trainer.optimizers, [*copies.values()]))
        try:
            together(commit)
        except Exception as error:
            raise HalfPrunedError(
                f"The network broke while it was being cut. Resume from the last checkpoint. {error}"
            ) from error
        forget_shapes(trainer)

        self.graph, self._trial = decision.after, trial
        self.record.plan = self.record.plan.then(decision.plan)
        self.record.pruned.extend(groups)
        event = decision.record(
            epoch=trainer.current_epoch,
            step=trainer.global_step,
            share=part if share is None else share,
            params=[params, count_parameters(network)],
            seconds=time.perf_counter() - started,
        )
        self.record.events.append(event)
        return event

    def recover(self, trainer: Trainer) -> None:
        """After an event: scores start anew, the learning rate rises again."""
        if self.recovery.reset_scores:
            reset_scores(trainer)
        self._rewarm(trainer)

    def rewarm_again(self, trainer: Trainer) -> None:
        """Go on with the rise that a resumed run was in the middle of."""
        if self._rewarmed is not None:
            self._rewarm(trainer, self._rewarmed)

    def note_score(self, trainer: Trainer, validated: bool = False) -> None:
        """Remember the monitored metric: a resumed run has none until its first validation.

        Args:
            trainer: In ``fit``.
            validated: Whether a validation has just ended.
        """
        self._validated |= validated
        if self.recovery.monitor is None:
            # To ask for the metrics is to compute them all.
            return
        value = trainer.callback_metrics.get(self.recovery.monitor)
        if value is not None:
            self._noted = float(value)

    def end_trial(self, trainer: Trainer, network: LightningModule) -> None:
        """Take the last event back, if the network has not got over it by now."""
        trial, self._trial = self._trial, None
        if trial is None or self.recovery.max_drop is None:
            return
        score = self._score(trainer)
        if not any_rank(trial.has_failed(score, self.recovery.mode, self.recovery.max_drop)):
            return
        trial.roll_back_(network, trainer.optimizers, self.averages.beside(trainer))
        forget_shapes(trainer)
        self.graph = ChannelGraph.trace_calls(network, self.calls)
        self.record.plan = PruningPlan.from_state_dict(trial.plan)
        self.record.barred.extend(trial.groups)
        event = self.record.events[-1]
        event["taken_back"] = True
        rank_zero_warn(
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
            "averages": sorted(self.averages.notice()),
            "rewarmed": None if self._rewarming is None else self._rewarming.taken,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take up what :meth:`state_dict` wrote."""
        self.record = Record.from_state_dict(state)
        self._inputs = state["inputs"]
        self._trial = None if state["trial"] is None else Trial(**state["trial"])
        self._noted = state["score"]
        self.averages = Averages(state.get("averages", ()))
        self._rewarmed = state["rewarmed"]

    def forget(self) -> None:
        """Start anew, with another network."""
        self.record = Record()
        self._trial = self._noted = None

    def close(self) -> None:
        """Leave the Trainer alone; the record stays."""
        self.averages.forget()
        self._validated = False
        self._inputs = self._rewarmed = None
        if self._rewarming is not None:
            self._rewarming.close()
            self._rewarming = None

    def _rewarm(self, trainer: Trainer, taken: list[int] | None = None) -> None:
        if self._rewarming is not None:
            self._rewarming.close()
        if self.recovery.rewarm_steps:
            self._rewarming = Rewarming(trainer.optimizers, self.recovery.rewarm_steps, taken)

    def _begin_trial(
        self, trainer: Trainer, network: LightningModule, groups: list[str], copies: Mapping[str, nn.Module]
    ) -> Trial | None:
        if self.recovery.max_drop is None:
            return None
        self.check_monitor(trainer)
        return Trial.begin(self._noted, groups, self.record.plan.state_dict(), network, trainer.optimizers, copies)

    def check_monitor(self, trainer: Trainer) -> None:
        """Raise where metrics are logged, those of a validation too if there is one, but not the monitored one.

        Raises:
            PruningError: The message has the nearest names.
        """
        logged = [name for name in trainer.callback_metrics if not name.startswith("pruning/")]
        complete = self._validated or not trainer.enable_validation
        if self.recovery.monitor is not None and self._score(trainer) is None and logged and complete:
            raise PruningError(
                f"monitor={self.recovery.monitor!r} is not logged. {nearest(self.recovery.monitor, logged)}"
            )

    def _score(self, trainer: Trainer) -> float | None:
        self.note_score(trainer)
        return self._noted


def _checked_amount(amount: float | None, selection: Selection) -> float | None:
    if amount is None:
        if selection.needs_share:
            raise ValueError(
                f"amount=None needs a selection that finds it out itself ('clusters'), but {type(selection).__name__} "
                "does not. Give a share in (0, 1)."
            )
        return None
    check_number("amount", amount)
    if isinstance(amount, bool) or not 0 < amount < 1:
        raise ValueError(f"amount must be a share in (0, 1), such as 0.5, but got {amount!r}.")
    return float(amount)
