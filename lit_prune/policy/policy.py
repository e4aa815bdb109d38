"""One pruning, decided and tried out before anything is touched."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from types import MappingProxyType
from typing import Any

from torch import Tensor, nn

from lit_prune.activations import Calibration
from lit_prune.common.arguments import check_ratio, check_whole
from lit_prune.common.ranks import check_same, from_rank_zero
from lit_prune.criteria import Criterion, Evidence, checked_scores
from lit_prune.errors import ArgumentError, SelectionError
from lit_prune.graph import Call, ChannelGraph, ChannelGroup
from lit_prune.plan import PruningPlan, extended
from lit_prune.policy.contract import checked_removal
from lit_prune.policy.history import Dense, Record
from lit_prune.policy.measure import NOTHING, Measure, by_class, measured
from lit_prune.policy.reasons import apart_from, averaged, beside_unjudged, held_back, listed, untrained
from lit_prune.policy.scope import Scope, largest_independent
from lit_prune.policy.steps import carry_out
from lit_prune.select import Budget, Budgets, Selection, Target
from lit_prune.select.isomorphic import kinds_of


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

    def summary(self, dense: Dense, **known: Any) -> dict[str, Any]:
        """The event as plain data, besides what else is ``known`` of it; ``dense`` is the network before the first."""
        channels = {group.name: [group.size, group.width_under(self.plan)] for group in self.groups}
        whole = sum(dense.widths.get(name, size) for name, (size, _) in channels.items())
        left = sum(kept for _, kept in channels.values())
        return {
            **known,
            "channels": channels,
            "macs": [self.before.macs, self.after.macs],
            "gone": {"channels": 1 - left / whole if whole else 0.0, "macs": 1 - self.after.macs / max(1, dense.macs)},
            "skipped": dict(self.skipped),
        }


@dataclass(frozen=True)
class PruningPolicy:
    """How channels are chosen: all that a decision needs besides the network.

    Attributes:
        scope: Which groups may lose channels.
        criterion: What a channel is worth.
        selection: Which go.
        round_to: Kept widths are multiples of it; layers that have no more channels stay whole.
        min_channels: The fewest channels that a group keeps.
        layers_per_event: The number of groups that take part, the widest first; ``None`` is all.
    """

    scope: Scope
    criterion: Criterion
    selection: Selection
    round_to: int = 8
    min_channels: int = 1
    layers_per_event: int | None = None

    def __post_init__(self) -> None:
        check_whole("round_to", self.round_to)
        check_whole("min_channels", self.min_channels)
        if self.layers_per_event is not None:
            check_whole("layers_per_event", self.layers_per_event)
        if self.layers_per_event is not None and isinstance(self.selection, (Budget, Budgets)):
            raise ArgumentError("layers_per_event prunes each layer to the full amount, so it can't meet a budget.")

    @property
    def calibration(self) -> Calibration | None:
        """How much data a decision looks at; ``None`` where it goes by weights alone."""
        return self.criterion.calibration or self.selection.calibration

    @property
    def looks_at_objects(self) -> bool:
        """Whether a decision goes by class-wise statistics, for which calibration batches need objects."""
        return by_class(self.criterion, self.selection) is not None

    @property
    def why_nothing(self) -> str:
        """Why an event may remove nothing, and what to do, for messages."""
        if self.selection.has_limit:
            return "the network is within the limit already, as far as its widths can be rounded."
        return (
            f"with this amount, round_to={self.round_to} and min_channels={self.min_channels} every layer keeps the "
            "channels that it has. Raise `amount`, or lower the others."
        )

    def checked_amount(self, amount: float | None) -> float | None:
        """The ratio that the selection is to be told after the last event; 1 where it says itself how far it goes.

        Raises:
            ArgumentError: If the amount is out of range, missing, or given where nothing asks for it.
        """
        kind = type(self.selection).__name__
        if self.selection.has_limit:
            if amount is not None:
                raise ArgumentError(
                    f"{kind} says by itself how far it goes, and amount={amount!r} says it as well: leave one of "
                    "the two out (amount=None)."
                )
            return 1.0
        if amount is None:
            if self.selection.needs_amount:
                raise ArgumentError(
                    "amount=None needs a selection that decides it by itself ('clusters', or a budget with at_most), "
                    f"but got {kind}. Give a ratio in (0, 1)."
                )
            return None
        check_ratio("amount", amount)
        return float(amount)

    def check(self, network: nn.Module, graph: ChannelGraph) -> None:
        """Raise unless something of this network can be pruned in this way.

        Raises:
            ArgumentError: If no group takes part, or all are too narrow for ``round_to``.
        """
        groups, _ = self.scope.pick(network, graph)
        if len(self._narrow(groups, Record())) == len(groups):
            widest = max(groups, key=lambda group: group.size)
            raise ArgumentError(
                f"Nothing could be pruned: kept widths are multiples of round_to={self.round_to}, and the widest layer "
                f"that takes part, {widest.name}, has {widest.size} channels. Lower `round_to`."
            )

    def decide(
        self,
        network: nn.Module,
        calls: Sequence[Call],
        ratio: float | None,
        record: Record,
        measure: Measure = NOTHING,
        averages: Mapping[str, str] = MappingProxyType({}),
        changes: Mapping[str, Tensor] = MappingProxyType({}),
    ) -> PruningEvent:
        """Choose the channels of one event; on several ranks, those that rank 0 chooses.

        Args:
            network: The live network; it is not changed.
            calls: How it is entered.
            ratio: The ratio that is to be gone afterwards, of the dense network; ``None`` lets the selection decide.
            record: What was pruned before.
            measure: Looks at activations, for a criterion or selection that asks for them.
            averages: Prefix of an average inside of the network to that of what it is an average of.
            changes: Of the loss without each channel, for a criterion that asks for them.

        Raises:
            TraceError: If the network can't be run, before or after.
            ArgumentError: If nothing can be pruned, or the ratio is out of reach.
            RuntimeError: If another rank failed, or ranks disagree.
        """
        evidence, skipped = self.evidence(network, calls, record, measure, averages, changes)
        graph, groups = evidence.graph, evidence.groups
        target = self.target(network, graph, ratio, record)
        while True:
            chosen = carry_out("choose", partial(self._choose, replace(evidence, groups=groups), target, skipped))
            plan = from_rank_zero(extended(chosen, averages))
            try:
                after = carry_out("rehearse", partial(graph.rehearse, plan))
                break
            except Exception as error:
                left = held_back(error, graph, plan, groups, skipped)
                if not left:
                    raise
                groups = left
        check_same(plan.digest)
        return PruningEvent(plan, graph, after, groups, skipped)

    def evidence(
        self,
        network: nn.Module,
        calls: Sequence[Call],
        record: Record,
        measure: Measure = NOTHING,
        averages: Mapping[str, str] = MappingProxyType({}),
        changes: Mapping[str, Tensor] = MappingProxyType({}),
    ) -> tuple[Evidence, dict[str, str]]:
        """What an event would go by now, and why groups do not take part.

        Args:
            network: As for :meth:`decide`.
            calls: As for :meth:`decide`.
            record: As for :meth:`decide`.
            measure: As for :meth:`decide`.
            averages: As for :meth:`decide`.
            changes: As for :meth:`decide`.

        Raises:
            TraceError: If the network can't be run.
            ArgumentError: If nothing can be pruned.
        """

        def look() -> tuple[ChannelGraph, tuple[ChannelGroup, ...], dict[str, str]]:
            graph = ChannelGraph.trace_calls(network, calls, averages)
            return graph, *self.candidates(network, graph, record, averages)

        graph, groups, skipped = carry_out("look", look)
        evidence = Evidence(network, graph, groups, changes=changes)
        if groups and self.calibration is not None:
            evidence = carry_out("measure", partial(measured, evidence, self.criterion, self.selection, measure))
        return evidence, skipped

    def candidates(
        self,
        network: nn.Module,
        graph: ChannelGraph,
        record: Record,
        averages: Mapping[str, str] = MappingProxyType({}),
        all_trained: bool = False,
    ) -> tuple[tuple[ChannelGroup, ...], dict[str, str]]:
        """The groups that take part in an event now, and why others do not.

        Args:
            network: The live network.
            graph: Its graph.
            record: What was pruned before.
            averages: As for :meth:`decide`.
            all_trained: Take layers that are not trained now as trained: they may be by then.

        Raises:
            ArgumentError: If there is none, and none was taken back before; the message has the reasons.
        """
        groups, skipped = self.scope.pick(network, graph)
        skipped |= dict.fromkeys(record.barred, "was taken back before")
        if not all_trained:
            skipped |= untrained(network, groups)
        skipped |= averaged(groups, averages)
        groups = apart_from(groups, skipped)
        if self.layers_per_event is not None:
            waiting = [group for group in groups if group.name not in record.pruned]
            groups = largest_independent(waiting, self.layers_per_event)
        elif not groups and not record.barred:
            raise ArgumentError(f"No layer that may be pruned can lose a channel now: {listed(skipped)}.")
        # Groups that are too narrow stay, but count where a selection counts all channels.
        return groups, skipped | self._narrow(groups, record)

    def target(self, network: nn.Module, graph: ChannelGraph, ratio: float | None, record: Record) -> Target:
        """How far an event goes, counted against the dense network: the record's, or this one before any event."""
        dense = record.dense or Dense.of(network, graph)
        return Target(
            ratio,
            dense.widths,
            dense.macs,
            self.round_to,
            self.min_channels,
            self.criterion.comparable,
            dense.params,
            record.events[-1].get("findings", {}) if record.events else {},
            is_layer_adaptive=self.criterion.is_layer_adaptive,
            kinds=kinds_of(network, graph),
        )

    def _narrow(self, groups: Sequence[ChannelGroup], record: Record) -> dict[str, str]:
        """Groups that were too narrow to lose a channel from the beginning, and why."""
        widths = record.dense.widths if record.dense is not None else {}
        reason = f"has no more channels than round_to={self.round_to}"
        return {
            group.name: reason for group in groups if widths.get(group.name, group.size) <= group.step(self.round_to)
        }

    def scores(self, evidence: Evidence) -> dict[str, Tensor]:
        """The criterion's scores of the groups that take part.

        Raises:
            ArgumentTypeError: If it answers in another form than it must.
            ArgumentError: If a score has another shape or is not finite, or it can judge none of the groups.
        """
        scores = checked_scores(self.criterion, evidence)
        if not scores and evidence.groups:
            names = [*(group.name for group in evidence.groups[:3]), *["..."] * (len(evidence.groups) > 3)]
            needs = f": it needs {self.criterion.needs}" if self.criterion.needs else ""
            raise ArgumentError(
                f"{type(self.criterion).__name__} can judge none of the {len(evidence.groups)} groups "
                f"({', '.join(names)}){needs}. Take another criterion, such as 'magnitude'."
            )
        return scores

    def _choose(self, evidence: Evidence, target: Target, skipped: dict[str, str]) -> PruningPlan:
        scores = self.scores(evidence)
        kind = type(self.criterion).__name__
        unjudged = [group.name for group in evidence.groups if group.name not in scores]
        skipped |= dict.fromkeys(unjudged, f"{kind} can't judge it")
        try:
            removed = self.selection(evidence, scores, target)
        except SelectionError as error:
            raise beside_unjudged(error, self.criterion, unjudged) from error
        removal = checked_removal(self.selection, removed, evidence.groups)
        for name in removal:
            # A selection need not round, and then no layer is too narrow.
            skipped.pop(name, None)
        return evidence.graph.plan(removal)
