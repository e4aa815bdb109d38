"""A selection that makes a network fast enough, by a table of what its layers take on a device."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from lit_prune.common.arguments import check_whole
from lit_prune.common.ranks import is_rank_zero, warn_once
from lit_prune.cost.profile import LatencyTable, Runtime, Stopwatch, runtime_of
from lit_prune.cost.profile.runtimes import Name
from lit_prune.cost.profile.torch_runtime import placed
from lit_prune.criteria import Evidence
from lit_prune.errors import ArgumentError, SelectionError
from lit_prune.graph.skeleton import replica
from lit_prune.select.base import Bundle, Scores, Target, Widths, bundled, flat
from lit_prune.select.budget import Budget, Meets, always, cost_where, removal_of
from lit_prune.select.knapsack import cheapest, choose, cost_of
from lit_prune.select.spread import Cost, Global, Spread, filled, fit, out_of_reach
from lit_prune.select.table_costs import Floats, TableCosts, Wholes, shrinking
from lit_prune.surgery import shrink_

# So often a choice is made again that the clock finds too slow, or faster than this part of what is allowed.
_TRIES, _NEAR = 4, 0.97
# The clock follows the table at most so many times as fast, or as slowly, as the ratio of both says.
_STEEPER = 2.0
# Steps in which a faster choice is looked for that meets other budgets, too.
_HALVINGS = 10
# A first-order score says too little of a layer that loses much. Raised to a power, the worthiest channel that a layer
# loses counts most, so that no layer is all but emptied for being dear.
_POWER = 4

Timed = tuple[float, float]
"""What the table says of a network, and the clock."""


class LatencyBudget(Budget):
    """As many channels as it takes to make one forward fast enough on a device.

    Of each layer go those channels whose scores are lowest, and of the layers those that save most milliseconds for
    what they are worth: every combination of widths is looked up in the table (HALP, Shen et al., NeurIPS 2022, section
    3; here with input and output together). Where a runtime is at hand, the whole network is then timed, and if it is
    too slow, or faster than need be, the choice is made again with the table corrected by what the clock said.

    Args:
        table: A :class:`lit_prune.cost.LatencyTable`, or the path of one that `lit-prune profile` has made.
        at_most: As for :class:`Budget`: ``"8 ms"``, or a number of milliseconds. Without it the amount says which ratio
            goes of the latency that the profiled network has.
        spread: ``"uniform"``, ``"global"`` or a :class:`Spread` share the removal out as for the other budgets; by
            default the table does.
        runtime: Times the whole network, as for :func:`lit_prune.cost.profile_latency`; ``None`` goes by the table.
        threads: Of the runtime; by default those of the table.

    Attributes:
        findings: Of the last choice ``table_ms``, and ``clock_ms`` where it was timed.

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

    def cost(self, evidence: Evidence) -> Cost:
        """Milliseconds, by the table."""
        costs = self._costs(evidence, [*((group,) for group in evidence.groups)])
        place = {group.name: number for number, group in enumerate(evidence.groups)}
        whole = np.array([group.size for group in evidence.groups])

        def cost(widths: Widths) -> float:
            now = whole.copy()
            for name, width in widths.items():
                now[place[name]] = width
            return costs.ms(now)

        return cost

    def dense(self, evidence: Evidence, target: Target) -> float:
        """The latency of the network that was profiled."""
        return self.table.dense_ms

    @property
    def leads(self) -> bool:
        """Whether layers lose channels by the table."""
        return self.by_table

    def foretell(self, evidence: Evidence, scores: Scores, target: Target) -> Mapping[str, object]:
        """What the table alone says."""
        return removal_of(evidence, self.within(evidence, scores, target, roughly=True))

    def within(
        self, evidence: Evidence, scores: Scores, target: Target, meets: Meets = always, roughly: bool = False
    ) -> Widths:
        """As of any budget; by the clock where there is one, and ``roughly`` by the table alone.

        Raises:
            SelectionError: If the budget is out of reach (the message has what can be reached), if the table is of
                another network, or if no choice of the table's meets what else must hold.
        """
        limit, last = self.limit(evidence, target), target.findings
        if roughly:
            return self._meeting(evidence, scores, target, limit, meets, roughly)
        scale = last["clock_ms"] / last["table_ms"] if "clock_ms" in last else 1.0
        cost = self.cost(evidence)
        best: Widths | None = None
        whole: Timed | None = None
        for _ in range(_TRIES):
            try:
                widths = self._meeting(evidence, scores, target, limit / scale, meets)
            except SelectionError:
                if best is None:
                    raise
                break
            found = {"table_ms": cost(widths)}
            clock = self._clock(evidence, widths)
            if clock is not None:
                found["clock_ms"] = clock
            left = found["table_ms"] * scale if clock is None else clock
            found = {**super().found(evidence, target, limit, left), **found}
            # Of those that are fast enough the slowest, of others the fastest: it loses least, or is too slow by least.
            if best is None or _nearness(clock, limit) > _nearness(self.findings.get("clock_ms"), limit):
                # What else must hold may have it be faster than need be.
                before, best, self.findings = best, widths, found
                if before == best:
                    break
            if clock is None or _NEAR * limit <= clock <= limit:
                break
            whole = whole or (cost({}), self._clock(evidence, {}) or clock)
            scale = limit / table_ms_for(limit, whole, (found["table_ms"], clock))
        assert best is not None
        if self.findings.get("clock_ms", 0.0) > limit:
            warn_once(
                f"The network takes {self.findings['clock_ms']:.4g} ms by the clock where {limit:.4g} ms were wanted, "
                f"after {_TRIES} choices; the table says {self.findings['table_ms']:.4g} ms. Is the machine busy?"
            )
        return best

    def found(self, evidence: Evidence, target: Target, limit: float, left: float) -> dict[str, float]:
        """What the table says as well, where nothing was timed."""
        return {**super().found(evidence, target, limit, left), "table_ms": left}

    def _meeting(
        self, evidence: Evidence, scores: Scores, target: Target, limit: float, meets: Meets, roughly: bool = False
    ) -> Widths:
        """The slowest choice within a limit that meets what else must hold, and what room there is then."""
        widths = self._widths(evidence, scores, target, limit, roughly)
        if meets(widths):
            return widths
        found: Widths | None = None
        low, high = 0.0, limit
        for _ in range(_HALVINGS):
            middle = (low + high) / 2
            try:
                widths = self._widths(evidence, scores, target, middle, roughly=True)
            except SelectionError:
                low = middle
                continue
            if meets(widths):
                found, low = widths, middle
            else:
                high = middle
        if found is None:
            raise SelectionError("No choice by the table meets all budgets.")
        if roughly:
            return found
        cost = cost_where(meets, self.cost(evidence))
        return filled(self.spread, bundled(evidence.groups, scores), scores, target, cost, limit, found)

    def _widths(
        self, evidence: Evidence, scores: Scores, target: Target, limit: float, roughly: bool = False
    ) -> Widths:
        bundles = bundled(evidence.groups, scores)
        if not self.by_table:
            return fit(self.spread, bundles, scores, target, self.cost(evidence), limit, self.unit)
        options = [_options(bundle, target) for bundle in bundles]
        costs = self._costs(evidence, bundles, options)
        losses = [_losses(bundle, widths, scores, target) for bundle, widths in zip(bundles, options, strict=True)]
        choice = choose(losses, costs, limit, roughly)
        if choice is None:
            raise out_of_reach(limit, cost_of(costs, cheapest(losses, costs)), len(flat(bundles)), self.unit)
        return {
            group.name: int(widths[option])
            for bundle, widths, option in zip(bundles, options, choice, strict=True)
            for group in bundle
        }

    def _costs(self, evidence: Evidence, bundles: Sequence[Bundle], options: Sequence[Wholes] = ()) -> TableCosts:
        try:
            return TableCosts(self.table, evidence, bundles, options)
        except ArgumentError as error:
            raise SelectionError(str(error)) from error

    def _clock(self, evidence: Evidence, widths: Widths) -> float | None:
        """The milliseconds of the whole network at some widths, where a runtime is at hand; measured on one rank."""
        if self.runtime is None or not is_rank_zero():
            return None
        network = shrink_(replica(evidence.network), evidence.graph.plan(removal_of(evidence, widths)))
        prefix = self.table.prefix_in(network, shrinking(evidence))
        part = network.get_submodule(prefix.rstrip(".")).eval().float()
        try:
            images = self._images(next(part.parameters()).device)
            self._check_device(images)
            return self.runtime.whole(part, images)
        except Exception as error:
            warn_once(f"{type(part).__name__} could not be timed, so its latency is that of the table. {error}")
            return None

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


def _nearness(clock: float | None, limit: float) -> float:
    """How good it is that the clock says this: the more, the closer it is to the limit, and any within it first."""
    if clock is None:
        return 0.0
    return clock if clock <= limit else limit - clock


def _options(bundle: Bundle, target: Target) -> Wholes:
    """The widths that a bundle may have, the widest first."""
    size, least = bundle[0].size, target.allowed(bundle[0], 0)
    rounded = range(target.round_to * (size // target.round_to), least - 1, -target.round_to)
    return np.array(list(dict.fromkeys([size, *rounded])))


def _losses(bundle: Bundle, widths: Wholes, scores: Scores, target: Target) -> Floats:
    """What a bundle loses at each of some widths, in the unit that all layers share."""
    rising = Global().curve(bundle, scores, target).numpy() ** _POWER
    lost = np.concatenate([[0.0], rising.cumsum()]) * len(bundle)
    return np.asarray(lost[len(rising) - widths])
