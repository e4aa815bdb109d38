"""A selection that goes on until the network is fast enough, by the clock."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from lit_prune.common.arguments import check_whole
from lit_prune.cost.latency import fastest_ms
from lit_prune.criteria import Evidence
from lit_prune.errors import ArgumentError, SelectionError
from lit_prune.graph.skeleton import replica
from lit_prune.select.base import Target, Widths
from lit_prune.select.budgets import Budget, removal_of
from lit_prune.select.spread import Cost, Spread
from lit_prune.surgery import shrink_

Runtime = Callable[[nn.Module, Tensor], float]
"""A network in eval mode and example inputs to the milliseconds that one forward takes."""


class LatencyBudget(Budget):
    """As many channels as it takes to make one forward fast enough, measured on this machine, or wherever you say.

    At each step of the search a copy of the network is cut to the widths in question and timed whole: what the clock
    says includes all that a table of layers leaves out. A choice takes some ten to twenty such measurements. The
    network that is not cut takes turns with each, and the fastest of many forwards counts, since other work on the
    machine slows both; it should be a quiet one all the same.

    Args:
        shape: Of the example input, with its batch: ``[1, 3, 320, 320]``.
        spread: As for :class:`Budget`.
        at_most: As for :class:`Budget`: ``"8 ms"``, or a number of milliseconds. Without it the amount says which ratio
            of the whole network's latency goes, which has to be measured before the first event of a run.
        network: Name of the submodule that is timed; by default the whole module.
        runtime: Times a network on an example; by default torch does, eagerly, on the network's device. One of your own
            may export it, and run it elsewhere.

    Attributes:
        measured: The milliseconds of the network that was asked about last.

    Raises:
        ArgumentError: As for :class:`Budget`, or if the shape is none.

    Example:
        >>> budget = LatencyBudget([1, 3, 320, 320], "global", at_most="8 ms")
        >>> budget.at_most
        8.0
    """

    unit = "ms"

    def __init__(
        self,
        shape: Sequence[int],
        spread: Spread | str = "uniform",
        at_most: float | str | None = None,
        network: str = "",
        runtime: Runtime | None = None,
    ) -> None:
        super().__init__(spread, at_most)
        for size in shape:
            check_whole("shape", size)
        if not shape:
            raise ArgumentError("shape is that of an example input, such as [1, 3, 320, 320], but is empty.")
        self.shape, self.network, self.runtime = [*shape], network, runtime
        self.measured: float | None = None
        self._dense: float | None = None

    def dense(self, evidence: Evidence, target: Target) -> float:
        """The latency of the whole network, measured while it is whole.

        Raises:
            SelectionError: If it has been pruned before in another process.
        """
        if all(target.widths.get(group.name, group.size) == group.size for group in evidence.graph.groups):
            self._dense = self.cost(evidence)({})
        if self._dense is None:
            raise SelectionError(
                "LatencyBudget goes by the latency of the whole network, which is pruned already. Give a limit, such "
                "as at_most='8 ms': the last event goes by that alone."
            )
        return self._dense

    def limit(self, evidence: Evidence, target: Target) -> float:
        """What may be left after the event."""
        if self.at_most is not None and target.ratio == 1.0:
            return self.at_most
        return super().limit(evidence, target)

    def cost(self, evidence: Evidence) -> Cost:
        """Milliseconds of a copy that is cut to some widths."""
        known: dict[tuple[tuple[str, int], ...], float] = {}
        try:
            evidence.network.get_submodule(self.network)
        except AttributeError as error:
            raise SelectionError(f"LatencyBudget times the submodule {self.network!r}, but there is none.") from error
        whole = replica(evidence.network)
        parameter = next(iter(whole.parameters()))
        images = torch.rand(self.shape, device=parameter.device, dtype=parameter.dtype)
        # What the network takes that is not cut; all others are measured beside it.
        start = self._timed(whole, None, images)

        def cost(widths: Widths) -> float:
            key = tuple(sorted(widths.items()))
            if key not in known:
                left = shrink_(replica(whole), evidence.graph.plan(removal_of(evidence, widths)))
                known[key] = self._timed(left, whole, images) * (start if self.runtime is None else 1.0)
            self.measured = known[key]
            return known[key]

        return cost

    def _timed(self, left: nn.Module, whole: nn.Module | None, images: Tensor) -> float:
        """Milliseconds of a network; by torch, beside the whole one, what part of its time that is."""
        networks = [each.get_submodule(self.network) for each in (left, whole) if each is not None]
        for network in networks:
            network.eval()
        try:
            with torch.no_grad():
                if self.runtime is not None:
                    return float(self.runtime(networks[0], images))
                found = fastest_ms(networks, images)
        except Exception as error:
            raise SelectionError(
                f"LatencyBudget can't time {type(networks[0]).__name__} on an input of shape {self.shape}: {error}. "
                "Name by `network` a submodule that takes one tensor, or time it by a `runtime` of your own."
            ) from error
        return found[0] if whole is None else found[0] / found[1]
