"""The slowest of the networks that a clock finds fast enough, found by what a table says and where it errs."""

from __future__ import annotations

import math
from collections.abc import Callable

from lit_prune.errors import SelectionError
from lit_prune.select.base import Widths
from lit_prune.select.spread import Cost

# So often a choice is made that the clock finds faster than this part of what is allowed; of too slow ones twice that.
_TRIES, _NEAR = 4, 0.97
# The clock follows the table at most so many times as fast, or as slowly, as the ratio of both says.
_STEEPER = 2.0
Timed = tuple[float, float]
"""What the table says of a network, and the clock."""


class ClockSearch:
    """Looks for the slowest of the networks that the clock finds fast enough.

    Args:
        limit: Milliseconds.
        least: The widths with which the table says least.
        cost: What the table says.
        first: Widths, and what the clock says of them.
        clock: Tells it of others; ``None`` where that fails.
    """

    def __init__(
        self,
        limit: float,
        least: Widths,
        cost: Cost,
        first: tuple[Widths, float],
        clock: Callable[[Widths], float | None],
    ) -> None:
        self.limit, self.least, self.cost, self.clock = limit, least, cost, clock
        self.timed: list[tuple[Widths, float, float]] = []
        # The network that is cut; it is timed where a choice has to be made again.
        self._whole: Timed | None = None
        self._note(*first)

    def best(self, choose: Callable[[float], Widths]) -> tuple[Widths, float]:
        """The widths that were found, and what the clock says of them; too slow where the least are.

        Args:
            choose: What the table may say to widths.
        """
        # What else must hold may have it be faster than need be; what is too slow is no choice.
        while not self._is_near() and len(self.timed) < (_TRIES if self._fast() else 2 * _TRIES):
            allowed = self._allowed()
            try:
                widths = self.least if allowed <= self.cost(self.least) else choose(allowed)
            except SelectionError:
                widths = self.least
            if not self._time(widths):
                break
        if not self._fast():
            self._time(self.least)
        widths, _, clock = max(self.timed, key=self._nearness)
        return widths, clock

    def _note(self, widths: Widths, clock: float) -> None:
        self.timed.append((widths, self.cost(widths), clock))

    def _time(self, widths: Widths) -> bool:
        """Whether something was learnt: of widths that are known once more nothing is."""
        if any(widths == known for known, _, _ in self.timed):
            return False
        clock = self.clock(widths)
        if clock is not None:
            self._note(widths, clock)
        return clock is not None

    def _fast(self) -> list[float]:
        """What the table says of those that are fast enough."""
        return [table for _, table, clock in self.timed if clock <= self.limit]

    def _is_near(self) -> bool:
        return any(_NEAR * self.limit <= clock <= self.limit for _, _, clock in self.timed)

    def _nearness(self, timed: tuple[Widths, float, float]) -> float:
        """How good a choice is: the more, the closer it is to the limit, and any within it first."""
        clock = timed[2]
        return clock if clock <= self.limit else self.limit - clock

    def _allowed(self) -> float:
        """What the table may say next: between what was too slow and what was fast enough."""
        _, table, clock = max(self.timed, key=self._nearness)
        if self._whole is None:
            whole = self.cost({})
            self._whole = whole, self.clock({}) or clock * whole / table
        allowed = table_ms_for(self.limit, self._whole, (table, clock))
        slow = min((table for _, table, clock in self.timed if clock > self.limit), default=math.inf)
        fast = max(self._fast(), default=self.cost(self.least))
        return allowed if fast < allowed < slow or slow == math.inf else (fast + slow) / 2


def table_ms_for(clock_ms: float, whole: Timed, chosen: Timed) -> float:
    """What a table may say so that the clock says so much: along the line through what both say of two networks.

    A table that errs by the same ratio at all widths is put right by that ratio alone; mostly it is right of the
    network that it was made with, and errs the more, the less is left.

    Args:
        clock_ms: What the clock is to say.
        whole: What table and clock say of the network that is cut.
        chosen: What they say of one that is left of it.

    Example:
        >>> round(table_ms_for(5.0, whole=(10.0, 10.0), chosen=(5.0, 4.0)), 2), table_ms_for(5.0, (8, 16), (4, 8))
        (5.83, 2.5)
    """
    table, clock = chosen
    ratio = clock / table
    slope = (whole[1] - clock) / (whole[0] - table) if whole[0] > table else ratio
    # Of two networks that are almost alike the line is anything.
    slope = min(max(slope, ratio / _STEEPER), ratio * _STEEPER)
    return max(table + (clock_ms - clock) / slope, clock_ms / ratio / _STEEPER)
