"""A selection that makes a network fast enough, by a table of what its layers take on a device."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from lit_prune.common.arguments import check_positive, check_whole
from lit_prune.common.ranks import warn_once
from lit_prune.cost.profile import LatencyTable, Runtime, Stopwatch, runtime_of
from lit_prune.cost.profile.runtimes import Name
from lit_prune.cost.profile.torch_runtime import placed
from lit_prune.criteria import Evidence
from lit_prune.errors import ArgumentError, SelectionError
from lit_prune.graph.skeleton import replica
from lit_prune.select.base import Scores, Target, Widths, bundled
from lit_prune.select.budget import Budget, Meets, NoneMeetsAll, always, cost_where, removal_of
from lit_prune.select.clock_search import ClockSearch
from lit_prune.select.spread import Cost, Spread, filled
from lit_prune.select.table_choice import SpreadChoice, TableChoice
from lit_prune.select.table_costs import TableCosts, shrinking
from lit_prune.surgery import shrink_

# Steps in which a faster choice is looked for that meets other budgets, too.
_HALVINGS = 10
_DENSE = "dense_ms"


class LatencyBudget(Budget):
    """As many channels as it takes to make one forward fast enough on a device.

    Of each layer go those channels whose scores are lowest, and of the layers those that save most milliseconds for
    what they are worth: every combination of widths is looked up in the table (HALP, Shen et al., NeurIPS 2022, section
    3; here with input and output together). Where a runtime is at hand, the whole network is then timed, and if it is
    too slow, or faster than need be, the choice is made again with the table corrected by what the clock said.

    Args:
        table: A :class:`lit_prune.cost.LatencyTable`, or the path of one that `lit-prune profile` has made.
        at_most: As for :class:`Budget`: ``"8 ms"``, or a number of milliseconds. Without it the amount says which ratio
            goes of the dense network's latency: by the clock where there is one, else by the table.
        spread: ``"uniform"``, ``"global"`` or a :class:`Spread` share the removal out as for the other budgets; by
            default the table does.
        runtime: Times the whole network, as for :func:`lit_prune.cost.profile_latency`; ``None`` goes by the table.
        threads: Of the runtime; by default those of the table.

    Attributes:
        findings: Of the last choice ``table_ms``, and ``clock_ms`` where it was timed; ``dense_ms`` is what the clock
            said of the dense network, where that was asked.

    Raises:
        ArgumentError: As for :class:`Budget`, or if the table can't be read.
        MissingPackageError: If the runtime is not installed.

    Example:
        >>> from lit_prune.cost.profile import LayerTimes
        >>> table = LatencyTable({"0": LayerTimes((3,), (8, 16), [[1.0, 2.0]])})
        >>> LatencyBudget(table, at_most="1.5 ms").at_most
        1.5
    """

    unit = "ms"

    def __init__(
        self,
        # Of `PathLike` jsonargparse would think that it is a class, and read the file.
        table: LatencyTable | str | Path,
        at_most: float | str | None = None,
        spread: Spread | str | None = None,
        runtime: Name | Stopwatch | Runtime | None = None,
        threads: int | None = None,
    ) -> None:
        super().__init__("uniform" if spread is None else spread, at_most)
        self.by_table = spread is None
        self.table = table if isinstance(table, LatencyTable) else LatencyTable.load(table)
        if threads is not None:
            check_whole("threads", threads)
        if runtime is not None and not self.table.shape:
            raise ArgumentError(
                f"{self.table} does not say of which input shape it is (`input`), so the network can't be timed by "
                f"runtime={runtime!r}. Leave the runtime out, or make the table with `lit-prune profile`."
            )
        known = self.table.conditions.get("runtime")
        if isinstance(runtime, str) and known is not None and known != runtime:
            raise ArgumentError(f"{self.table} is not of runtime={runtime!r}: profile the network there.")
        count = threads or int(self.table.conditions.get("threads", 1))
        self.runtime = None if runtime is None else runtime_of(runtime, count)
        # What the clock says of the dense network, once that was asked.
        self._dense_ms: float | None = None

    def cost(self, evidence: Evidence) -> Cost:
        """Milliseconds, by the table."""
        costs = TableCosts(self.table, evidence, [*((group,) for group in evidence.groups)])
        place = {group.name: number for number, group in enumerate(evidence.groups)}
        whole = np.array([group.size for group in evidence.groups])

        def cost(widths: Widths) -> float:
            now = whole.copy()
            for name, width in widths.items():
                now[place[name]] = width
            return costs.ms(now)

        return cost

    def dense(self, evidence: Evidence, target: Target) -> float:
        """The latency of the network that was profiled, by the clock where there is one."""
        self._dense_ms = target.findings.get(_DENSE)
        if self._dense_ms is None and (clock := self._clock(evidence, {})) is not None:
            self._dense_ms = clock * self.table.dense_ms / self.cost(evidence)({})
        return self._dense_ms or self.table.dense_ms

    def limit(self, evidence: Evidence, target: Target) -> float:
        """As of any budget."""
        self._dense_ms = None
        return super().limit(evidence, target)

    def pace(self, target: Target) -> float:
        """As of any budget."""
        last = target.findings
        if "clock_ms" in last:
            return last["clock_ms"] / last["table_ms"]
        return (self._dense_ms or self.table.dense_ms) / self.table.dense_ms

    @property
    def asks_clock(self) -> bool:
        """Whether the whole network is timed at an event."""
        return self.runtime is not None

    @property
    def leads(self) -> bool:
        """Whether layers lose channels by the table."""
        return self.by_table

    def shared_out(self, spread: Spread) -> LatencyBudget:
        """As of any budget; the table does not say it then."""
        other = super().shared_out(spread)
        other.by_table = False
        return other

    def foretell(self, evidence: Evidence, scores: Scores, target: Target) -> Mapping[str, object]:
        """What the table alone says."""
        budget = self.rough()
        return removal_of(evidence, budget.within(evidence, scores, target, budget.limit(evidence, target)))

    def within(self, evidence: Evidence, scores: Scores, target: Target, limit: float, meets: Meets = always) -> Widths:
        """As of any budget; by the clock where there is one, and roughly by the table alone.

        Raises:
            SelectionError: If the budget is out of reach (the message has what can be reached), if the table is of
                another network, or if no choice of the table's meets what else must hold.
        """
        scale, cost = self.pace(target), self.cost(evidence)
        ways: TableChoice | SpreadChoice = (
            TableChoice(self.table, evidence, scores, target)
            if self.by_table
            else SpreadChoice(self.spread, cost, evidence, scores, target)
        )
        least = cache(ways.least)

        def choose(allowed: float) -> Widths:
            widths = ways.within(allowed, self.is_rough)
            if meets(widths):
                return widths
            widths = _meeting(ways, allowed, meets)
            if self.is_rough:
                return widths
            # What room there is then.
            bundles, both = bundled(evidence.groups, scores), cost_where(meets, cost)
            return filled(self.spread, bundles, scores, target, both, allowed, widths)

        # Only what the clock says of the least widths is a reason to give up.
        is_beyond = limit / scale <= cost(least())
        widths = least() if is_beyond and self.asks_clock else choose(limit / scale)
        clock = self._clock(evidence, widths)
        if clock is None:
            if is_beyond and not self.is_rough:
                widths = choose(limit / scale)
            self.findings = self.found(evidence, target, limit, cost(widths) * scale) | {"table_ms": cost(widths)}
            return widths
        search = ClockSearch(limit, least(), cost, (widths, clock), lambda tried: self._clock(evidence, tried))
        widths, clock = search.best(choose)
        if clock > limit:
            raise SelectionError(
                f"The wanted {limit:.4g} ms are out of reach: with each of the {len(least())} groups at its least "
                f"width, the clock says {clock:.4g} ms, and the table {cost(widths):.4g}. {self.spread.advice} Or is "
                "the device busy?"
            )
        self.findings = self._by_clock(evidence, target, limit, widths, clock)
        return widths

    def confirmed(self, evidence: Evidence, target: Target, limit: float, widths: Widths) -> dict[str, float]:
        """As of any budget.

        Raises:
            SelectionError: If the clock says that they are not within the limit after all.
        """
        clock = self._clock(evidence, widths)
        if clock is None:
            return super().confirmed(evidence, target, limit, widths)
        if clock > limit:
            raise SelectionError(
                f"What meets all budgets by the table takes {clock:.4g} ms by the clock where {limit:.4g} ms were "
                "wanted. Ask for less of the others, or of this one."
            )
        return self._by_clock(evidence, target, limit, widths, clock)

    def _by_clock(
        self, evidence: Evidence, target: Target, limit: float, widths: Widths, clock: float
    ) -> dict[str, float]:
        left = super().found(evidence, target, limit, clock)
        timed = {} if self._dense_ms is None else {_DENSE: self._dense_ms}
        return left | {"table_ms": self.cost(evidence)(widths), "clock_ms": clock} | timed

    def found(self, evidence: Evidence, target: Target, limit: float, left: float) -> dict[str, float]:
        """What the table says as well, where nothing was timed."""
        return {**super().found(evidence, target, limit, left), "table_ms": left}

    def _clock(self, evidence: Evidence, widths: Widths) -> float | None:
        """The milliseconds of the whole network at some widths, where a runtime is at hand."""
        if self.runtime is None or self.is_rough:
            return None
        network = shrink_(replica(evidence.network), evidence.graph.plan(removal_of(evidence, widths)))
        prefix = self.table.prefix_in(network, shrinking(evidence))
        part = network.get_submodule(prefix.rstrip(".")).eval().float()
        try:
            images = self._images(next(part.parameters()).device)
            self._check_device(images)
            ms = self.runtime.whole(part, images)
            check_positive("The milliseconds that the runtime returns", ms)
        except Exception as error:
            warn_once(f"{type(part).__name__} could not be timed, so its latency is that of the table. {error}")
            return None
        return ms

    def _images(self, device: torch.device) -> Tensor:
        """Such as the table was made with, where it was made."""
        told = self.table.conditions
        # The random numbers of the run stay as they are.
        images = torch.rand(self.table.shape, generator=torch.Generator().manual_seed(0))
        layout, precision = told.get("layout", "contiguous"), told.get("precision", "float32")
        return placed(images, told.get("device_type", device), precision, layout)

    def _check_device(self, images: Tensor) -> None:
        assert self.runtime is not None
        known, here = self.table.conditions.get("device"), self.runtime.conditions(images).get("device")
        if None not in (known, here) and known != here:
            raise ArgumentError(f"The table is of {known}, but this is {here}: profile the network here.")


def _meeting(ways: TableChoice | SpreadChoice, limit: float, meets: Meets) -> Widths:
    """The slowest choice within a limit that meets what else must hold, about."""
    found: Widths | None = None
    low, high = 0.0, limit
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        try:
            widths = ways.within(middle, roughly=True)
        except SelectionError:
            low = middle
            continue
        if meets(widths):
            found, low = widths, middle
        else:
            high = middle
    if found is None:
        raise NoneMeetsAll("No choice by the table meets all budgets.")
    return found
