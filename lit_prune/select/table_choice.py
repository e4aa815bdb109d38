"""Widths by a latency table: the ones that lose least within a limit, or those that take least time."""

from __future__ import annotations

import numpy as np

from lit_prune.cost.profile import LatencyTable
from lit_prune.criteria import Evidence
from lit_prune.select.base import Bundle, Scores, Target, Widths, bundled, flat
from lit_prune.select.knapsack import Choice, cheapest, choose, cost_of
from lit_prune.select.spread import Cost, Global, Spread, fit, out_of_reach
from lit_prune.select.table_costs import Floats, TableCosts, Wholes

# A first-order score says too little of a layer that loses much. Raised to a power, the worthiest channel that a layer
# loses counts most, so that no layer is all but emptied for being dear.
_POWER = 4


class TableChoice:
    """The widths that layers may have, what each costs by a table, and what is lost with it.

    Args:
        table: The table.
        evidence: As for a selection.
        scores: Likewise.
        target: Likewise.

    Raises:
        SelectionError: If the table is of another network.
    """

    def __init__(self, table: LatencyTable, evidence: Evidence, scores: Scores, target: Target) -> None:
        self._bundles = bundled(evidence.groups, scores)
        self._options = [_options(bundle, target) for bundle in self._bundles]
        pairs = zip(self._bundles, self._options, strict=True)
        self._losses = [_losses(bundle, widths, scores, target) for bundle, widths in pairs]
        self._costs = TableCosts(table, evidence, self._bundles, self._options)

    def within(self, limit: float, roughly: bool = False) -> Widths:
        """Those that lose least of all within a limit.

        Args:
            limit: What the table may say.
            roughly: As for :func:`lit_prune.select.knapsack.choose`.

        Raises:
            SelectionError: If it is out of reach; the message has what can be reached.
        """
        choice = choose(self._losses, self._costs, limit, roughly)
        if choice is None:
            least = cost_of(self._costs, cheapest(self._losses, self._costs))
            raise out_of_reach(limit, least, len(flat(self._bundles)), "ms")
        return self._chosen(choice)

    def least(self) -> Widths:
        """Those with which the table says least."""
        return self._chosen(cheapest(self._losses, self._costs))

    def _chosen(self, choice: Choice) -> Widths:
        return {
            group.name: int(widths[option])
            for bundle, widths, option in zip(self._bundles, self._options, choice, strict=True)
            for group in bundle
        }


class SpreadChoice:
    """The same by a spread, which says which layers lose, and the table how far that goes.

    Args:
        spread: The spread.
        cost: What the table says.
        evidence: As for a selection.
        scores: Likewise.
        target: Likewise.
    """

    def __init__(self, spread: Spread, cost: Cost, evidence: Evidence, scores: Scores, target: Target) -> None:
        self._spread, self._cost, self._scores, self._target = spread, cost, scores, target
        self._bundles = bundled(evidence.groups, scores)

    def within(self, limit: float, roughly: bool = False) -> Widths:
        """The widths of the lowest level within a limit.

        Args:
            limit: What the table may say.
            roughly: It is quick as it is.

        Raises:
            SelectionError: If it is out of reach; the message has what can be reached.
        """
        return fit(self._spread, self._bundles, self._scores, self._target, self._cost, limit, "ms")

    def least(self) -> Widths:
        """Those of the highest level."""
        return self._spread.widths(1.0, self._bundles, self._scores, self._target)


def _options(bundle: Bundle, target: Target) -> Wholes:
    """The widths that a bundle may have, the widest first."""
    size, least = bundle[0].size, target.allowed(bundle[0], 0)
    step = bundle[0].step(target.round_to)
    rounded = range(step * (size // step), least - 1, -step)
    return np.array(list(dict.fromkeys([size, *rounded])))


def _losses(bundle: Bundle, widths: Wholes, scores: Scores, target: Target) -> Floats:
    """What a bundle loses at each of some widths, in the unit that all layers share."""
    rising = Global().curve(bundle, scores, target).numpy() ** _POWER
    lost = np.concatenate([[0.0], rising.cumsum()]) * len(bundle)
    return np.asarray(lost[len(rising) - widths])
