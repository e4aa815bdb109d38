"""Rehearses all events of a run on its first batch: what can be known to fail fails at the start."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from types import MappingProxyType

import torch
from torch import Tensor, nn

from lit_prune.common.ranks import together, warn_once
from lit_prune.common.running import untouched
from lit_prune.criteria import Evidence
from lit_prune.errors import NoObjectsError, RehearsalError, TraceError
from lit_prune.graph import Call, ChannelGraph
from lit_prune.graph.recording import Pairs
from lit_prune.plan import PruningPlan, extended
from lit_prune.policy.contract import checked_removal
from lit_prune.policy.history import Record
from lit_prune.policy.measure import measured
from lit_prune.policy.policy import PruningPolicy
from lit_prune.policy.reasons import apart_from, beside_unjudged, held_back
from lit_prune.surgery.optimizers import check_state
from lit_prune.training.calibration_pass import measure_on
from lit_prune.training.host import Host
from lit_prune.training.pruner import Pruner


class Rehearsal:
    """Tries out at the start of a run what its events will need.

    Args:
        pruner: Whose events they are.
    """

    def __init__(self, pruner: Pruner) -> None:
        self._pruner = pruner
        # What the last event would leave of the network as it is, until optimizers have state to try it on.
        self._foretold: tuple[ChannelGraph, PruningPlan] | None = None
        # How many optimizers had state when that was last tried; they may take their first steps one after the other.
        self._stateful = -1
        # When all was rehearsed, and by which averages: a step or two later there may be more.
        self._rehearsed: tuple[int, Pairs] | None = None
        # What is said if these show none.
        self._doubt = ""

    def events(self, host: Host, events: Mapping[str, float]) -> None:
        """Go through all events that are to come.

        Args:
            host: The run, whose network the pruner has seen.
            events: For each event how a message names it, and the part of the amount that is gone after it.

        Raises:
            RehearsalError: If an event can't be carried out.
        """
        graph = self._pruner.sight.graph
        if graph is not None and events:
            averages = host.averages_within(warn=False)
            self._rehearsed = host.step, averages
            plan = self._run(host, graph, events, averages)
            self._foretold, self._stateful = (graph, plan), -1
            together(lambda: host.check(plan))

    @property
    def waits_for_steps(self) -> bool:
        """Whether the next steps may show averages, and so say more."""
        return self._rehearsed is not None

    def averages(self, host: Host, events: Mapping[str, float]) -> None:
        """Once two steps were taken: go through the events again if they have shown averages of trained layers.

        One that moves at the end of a step is seen to have moved at the end of the next.

        Raises:
            RehearsalError: As for :meth:`events`.
        """
        if self._rehearsed is None or host.step < self._rehearsed[0] + 2:
            return
        averages = host.averages_within(warn=False)
        if events and dict(averages) != dict(self._rehearsed[1]):
            self._pruner.look_again(host.network, averages)
            self.events(host, events)
        self.end()

    def end(self) -> None:
        """Say what was left open: no more steps come."""
        doubt, self._doubt, self._rehearsed = self._doubt, "", None
        if doubt:
            warn_once(doubt)

    def by_validation(self, host: Host, calls: Sequence[Call], events: Mapping[str, float]) -> None:
        """:meth:`events` by the calls of a validation step, if these enter all that is trained.

        Raises:
            RehearsalError: If an event can't be carried out.
        """
        try:
            averages = host.averages_within(warn=False)
            graph = (
                together(lambda: ChannelGraph.trace_calls(host.network, calls, averages)) if calls and events else None
            )
        except TraceError:
            # The training step has the last word.
            return
        trained = [name for name, parameter in host.network.named_parameters() if parameter.requires_grad]
        if graph is not None and graph.tensors.issuperset(trained):
            self._run(host, graph, events, averages)

    def calibration(self, host: Host, events: Mapping[str, float]) -> None:
        """Read a calibration batch and run it, where a criterion or selection goes by activations.

        Args:
            host: As for :meth:`events`.
            events: As for :meth:`events`.

        Raises:
            RehearsalError: If it can't be read or run.
        """
        policy, graph = self._pruner.policy, self._pruner.sight.graph
        if policy.calibration is None or graph is None:
            return
        groups, _ = policy.scope.pick(host.network, graph)
        try:
            evidence, measure = Evidence(host.network, graph, groups), measure_on(host, self._pruner.sight)
            evidence = measured(evidence, policy.criterion, policy.selection, measure, batches=host.ranks)
            self._without_unjudged(host, evidence, events)
        except NoObjectsError:
            # So few images may show none, and a network that has learnt nothing yet finds none.
            return
        except Exception as error:
            raise RehearsalError(f"The first batch of calibration data can't be used. {error}") from error

    def _without_unjudged(self, host: Host, evidence: Evidence, events: Mapping[str, float]) -> None:
        """Warn if an event is out of reach without the groups that a criterion by arrivals can't judge."""
        pruner, criterion = self._pruner, self._pruner.policy.criterion
        if not criterion.needs_arrivals or criterion.needs_gradients or not events:
            return
        scores = pruner.policy.scores(evidence)
        unjudged = [group.name for group in evidence.groups if group.name not in scores]
        ratios = {name: pruner.ratio(part) for name, part in events.items()}
        held = dict.fromkeys(unjudged, "can't be judged")
        try:
            if unjudged:
                rehearse(pruner.policy, host.network, evidence.graph, ratios, pruner.record, held=held)
        except RehearsalError as error:
            # Another batch may show more.
            warn_once(f"By what the first batch shows: {beside_unjudged(error, criterion, unjudged)}")

    def optimizers(self, host: Host) -> None:
        """See whether what optimizers hold can follow: what they hold from the start, and their state once it is there.

        Raises:
            UnsupportedError: If it can't.
        """
        if self._foretold is None:
            return
        graph, plan = self._foretold
        stateful = sum(bool(optimizer.state) for optimizer in host.optimizers)
        if graph is self._pruner.sight.graph and stateful > self._stateful:
            self._stateful = stateful
            together(lambda: check_state(host.network, plan, host.optimizers))
        if graph is not self._pruner.sight.graph or stateful == len(host.optimizers):
            self._foretold = None

    def _run(self, host: Host, graph: ChannelGraph, events: Mapping[str, float], averages: Pairs) -> PruningPlan:
        pruner, ratios = self._pruner, {name: self._pruner.ratio(part) for name, part in events.items()}
        rehearsal = partial(rehearse, pruner.policy, host.network, graph, ratios, pruner.record, averages)
        self._doubt = ""
        try:
            plan = rehearsal()
        except RehearsalError as error:
            if all(parameter.requires_grad for parameter in host.network.parameters()):
                raise
            plan = rehearsal(all_trained=True)
            # They may be averages of others, which no step has shown so far.
            self._doubt = f"{error} It can be, if the layers that are not trained now are trained by then."
        if not plan and self._pruner.amount is not None:
            warn_once(f"The events of this run would remove nothing: {pruner.policy.why_nothing}")
        return plan


def rehearse(
    policy: PruningPolicy,
    network: nn.Module,
    graph: ChannelGraph,
    ratios: Mapping[str, float | None],
    record: Record,
    averages: Mapping[str, str] = MappingProxyType({}),
    all_trained: bool = False,
    held: Mapping[str, str] = MappingProxyType({}),
) -> PruningPlan:
    """Decide on each event from the network as it is now, and run what the last would leave.

    Nothing is changed. Which channels would go follows from the weights as they are now, so only their numbers predict
    the events; a selection that needs activations foretells what it can.

    Args:
        policy: How channels are chosen.
        network: The live network.
        graph: Its graph.
        ratios: For each event how a message names it, and the ratio that is to be gone after it; in order.
        record: What was pruned before.
        averages: As for :meth:`PruningPolicy.decide`.
        all_trained: As for :meth:`PruningPolicy.candidates`.
        held: Groups that stay, and why.

    Returns:
        What would stay after the last event, as far as it can be foretold.

    Raises:
        RehearsalError: Naming the first event that can't be carried out, and why.
    """
    stay = dict(held)

    def choose(ratio: float | None) -> None:
        candidates, _ = policy.candidates(network, graph, ahead, averages, all_trained)
        groups = apart_from(candidates, stay)
        evidence = Evidence(network, graph, groups)
        target = policy.target(network, graph, ratio, record)
        with untouched(network):
            told = policy.selection.foretell(evidence, _scores(policy, evidence), target)
        removal.update(checked_removal(policy.selection, told, groups))
        ahead.pruned.extend(group.name for group in groups)

    name = ""
    try:
        while True:
            ahead, removal = replace(record, pruned=list(record.pruned)), dict[str, Tensor]()
            for name in ratios:
                together(partial(choose, ratios[name]))
            plan = extended(graph.plan(removal), averages)
            try:
                together(partial(graph.rehearse, plan))
                return plan
            except Exception as error:
                if not held_back(error, graph, plan, tuple(graph[name] for name in removal), stay):
                    raise
    except Exception as error:
        raise RehearsalError(f"{name} can't be carried out, and the network is as it was. {error}") from error


def _scores(policy: PruningPolicy, evidence: Evidence) -> dict[str, Tensor]:
    if policy.criterion.calibration is None and not policy.criterion.needs_gradients:
        return policy.scores(evidence)
    # Until activations or gradients are known any channels will do: only their number counts.
    return {group.name: torch.arange(float(group.size)) for group in evidence.groups}
