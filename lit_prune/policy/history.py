"""What was pruned so far, as a checkpoint keeps it: plain data, readable without lit_prune."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from torch import nn

from lit_prune.common.names import count_parameters
from lit_prune.graph import ChannelGraph
from lit_prune.plan import PruningPlan


@dataclass(frozen=True)
class Dense:
    """The network before its first pruning: what ratios are counted against.

    Attributes:
        widths: Group name to channels.
        macs: Multiply-adds of one example.
        params: Number of parameters.
    """

    widths: Mapping[str, int]
    macs: int
    params: int

    @classmethod
    def of(cls, network: nn.Module, graph: ChannelGraph) -> Dense:
        """The sizes of a network that is dense now."""
        return cls({group.name: group.size for group in graph.groups}, graph.macs, count_parameters(network))


@dataclass
class Record:
    """The history of a network's prunings.

    Attributes:
        plan: What is left, against the dense network.
        events: One dict per event, see :mod:`lit_prune.report.tables`.
        dense: The network before the first.
        done: Epochs or steps whose event has happened, or failed.
        pruned: Groups that have had their turn.
        barred: Groups whose pruning was taken back; they are left alone.

    Example:
        >>> Record.from_state_dict(Record(done=[3]).state_dict()).done
        [3]
    """

    plan: PruningPlan = field(default_factory=lambda: PruningPlan({}))
    events: list[dict[str, Any]] = field(default_factory=list)
    dense: Dense | None = None
    done: list[int] = field(default_factory=list)
    pruned: list[str] = field(default_factory=list)
    barred: list[str] = field(default_factory=list)

    def state_dict(self) -> dict[str, Any]:
        """Plain data, for ``torch.load(weights_only=True)``."""
        return {
            "plan": self.plan.state_dict(),
            "events": self.events,
            "dense": None if self.dense is None else asdict(self.dense),
            "done": self.done,
            "pruned": self.pruned,
            "barred": self.barred,
        }

    @classmethod
    def from_state_dict(cls, state: Mapping[str, Any]) -> Record:
        """The record that :meth:`state_dict` wrote.

        Raises:
            ArgumentError: If it holds no valid plan.
        """
        return cls(
            plan=PruningPlan.from_state_dict(state["plan"]),
            events=list(state["events"]),
            dense=None if state["dense"] is None else Dense(**state["dense"]),
            done=list(state["done"]),
            pruned=list(state["pruned"]),
            barred=list(state["barred"]),
        )
