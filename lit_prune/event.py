"""One pruning, decided and tried out before anything is touched."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from torch import nn

from lit_prune.activations import Calibration, Moments
from lit_prune.averages import extended
from lit_prune.criteria import Criterion, Evidence
from lit_prune.graph import Call, ChannelGraph, ChannelGroup
from lit_prune.plan import PruningPlan
from lit_prune.ranks import check_same, from_rank_zero, together
from lit_prune.record import Dense, Record
from lit_prune.scope import Scope, largest_independent
from lit_prune.select import MacsBudget, Selection, Target

Measure = Callable[[list[str], Calibration], Mapping[str, Moments]]


@dataclass(frozen=True)
class PruningEvent:
    """What one event does, tried out on a copy without weights.

    Attributes:
        plan: What stays.
        before: Graph of the network as it is.
        after: Graph of what will be left.
        groups: The groups that took part.
        skipped: Group name to the reason why it did not.
    """

    plan: PruningPlan
    before: ChannelGraph
    after: ChannelGraph
    groups: tuple[ChannelGroup, ...]
    skipped: Mapping[str, str]

    def record(self, **known: Any) -> dict[str, Any]:
        """The event as plain data, beside what else is ``known`` of it."""
        return {
            **known,
            "channels": {group.name: [group.size, group.width_under(self.plan)] for group in self.groups},
            "macs": [self.before.macs, self.after.macs],
            "skipped": dict(self.skipped),
        }


@dataclass(frozen=True)
class PruningPolicy:
    """How channels are chosen: all that a decision needs beside the network.

    Attributes:
        scope: Which groups may lose channels.
        criterion: What a channel is worth.
        selection: Which go.
        round_to: Kept widths are multiples of it; ``None``: of 8, and narrower layers stay whole.
        min_channels: The least that a group keeps.
        layers_per_event: The number of groups that take part, the widest first; ``None`` is all.
    """

    scope: Scope
    criterion: Criterion
    selection: Selection
    round_to: int | None = None
    min_channels: int = 1
    layers_per_event: int | None = None

    def __post_init__(self) -> None:
        for name in ("round_to", "min_channels", "layers_per_event"):
            count = getattr(self, name)
            if count is not None and count < 1:
                raise ValueError(f"{name} must be at least 1, but got {count}.")
        if self.layers_per_event is not None and isinstance(self.selection, MacsBudget):
            raise ValueError("layers_per_event prunes each layer to the full amount, so it can't meet a MACs budget.")

    @property
    def calibration(self) -> Calibration | None:
        """How much data a decision looks at; ``None`` where it goes by weights alone."""
        return self.criterion.calibration or self.selection.calibration

    def check(self, network: nn.Module, graph: ChannelGraph) -> None:
        """Raise unless something of this network can be pruned in this way.

        Raises:
            ValueError: If no group takes part, or one is narrower than ``round_to``.
        """
        groups, _ = self.scope.pick(network, graph)
        narrow = min(groups, key=lambda group: group.size)
        if self.round_to is not None and narrow.size < self.round_to:
            raise ValueError(
                f"round_to={self.round_to} is larger than layer {narrow.name}, which has {narrow.size} channels. Lower "
                "it, or leave narrow layers out by `exclude`; without round_to they stay as they are."
            )

    def decide(
        self,
        network: nn.Module,
        calls: Sequence[Call],
        share: float | None,
        record: Record,
        measure: Measure = lambda layers, calibration: {},
        averages: Mapping[str, str] = MappingProxyType({}),
    ) -> PruningEvent:
        """Choose the channels of one event; on several ranks, those that rank 0 chooses.

        Args:
            network: The live network; it is not changed.
            calls: How it is entered.
            share: The share that is to be gone afterwards, of the dense network; ``None`` lets the selection decide.
            record: What was pruned before, and what it may not be.
            measure: Statistics of the activations of some layers, for a criterion or selection that asks for them.
            averages: Prefix of an average inside of the network to that of what it is an average of.

        Raises:
            TraceError: If the network can't be run, before or after.
            ValueError: If nothing can be pruned, or the share is out of reach.
            RuntimeError: If another rank failed, or ranks disagree.
        """
        graph, groups, skipped = together(lambda: self._candidates(network, calls, record, averages))
        moments: Mapping[str, Moments] = {}
        if groups and self.calibration is not None:
            layers = dict.fromkeys(layer for group in groups for layer in group.layers)
            moments = measure(list(layers), self.calibration)
        evidence = Evidence(network, graph, groups, moments)
        dense = record.dense or Dense.of(network, graph)
        target = Target(share, dense.widths, dense.macs, self.round_to, self.min_channels)
        plan = from_rank_zero(together(lambda: extended(self._choose(evidence, target, skipped), averages)))
        after = together(lambda: graph.rehearse(plan))
        check_same(plan.digest)
        return PruningEvent(plan, graph, after, groups, skipped)

    def _candidates(
        self, network: nn.Module, calls: Sequence[Call], record: Record, averages: Mapping[str, str]
    ) -> tuple[ChannelGraph, tuple[ChannelGroup, ...], dict[str, str]]:
        """The network as it is, the groups that take part now, and why others do not."""
        graph = ChannelGraph.trace_calls(network, calls)
        groups, skipped = self.scope.pick(network, graph)
        skipped |= dict.fromkeys(record.barred, "was taken back before")
        skipped |= _untrained(network, groups, averages)
        # Pieces of one split stay equally wide: all of them or none.
        groups = tuple(group for group in groups if not skipped.keys() & {group.name, *group.balanced})
        if self.layers_per_event is not None:
            waiting = [group for group in groups if group.name not in record.pruned]
            groups = largest_independent(waiting, self.layers_per_event)
        return graph, groups, skipped

    def _choose(self, evidence: Evidence, target: Target, skipped: dict[str, str]) -> PruningPlan:
        scores = self.criterion(evidence)
        for group in evidence.groups:
            if group.name not in scores:
                skipped[group.name] = f"{type(self.criterion).__name__} can't judge it"
        if not scores and evidence.groups:
            raise ValueError(f"{type(self.criterion).__name__} can judge none of the {len(evidence.groups)} groups.")
        return evidence.graph.plan(self.selection(evidence, scores, target))


def _untrained(network: nn.Module, groups: Sequence[ChannelGroup], averages: Mapping[str, str]) -> dict[str, str]:
    """Groups that are not learning now: nothing would make up for what they lose."""
    trained = {name for name, parameter in network.named_parameters() if parameter.requires_grad}
    reasons = {}
    for group in groups:
        if not any(name in trained for name, _ in group.slots):
            reasons[group.name] = "is not trained (requires_grad=False)"
        for prefix, source in averages.items():
            if all(name.startswith(prefix) for name, _ in group.slots):
                reasons[group.name] = f"is an average of {source[:-1]}, and shrinks with it"
    return reasons
