"""Selections that remove as much as it takes to meet a budget: multiply-adds, parameters, the size of a file."""

from __future__ import annotations

import copy
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import get_args

from torch import Tensor

from lit_prune.common.arguments import check_choice
from lit_prune.common.names import count_parameters
from lit_prune.cost.activation_memory import BYTES, Precision
from lit_prune.criteria import Evidence
from lit_prune.errors import ArgumentError, ArgumentTypeError
from lit_prune.plan import belongs_to_any
from lit_prune.select.base import Scores, Selection, Target, Widths, bundled, flat, lowest
from lit_prune.select.budget import Budget, NoneMeetsAll, as_spread, removal_of, waits_for_rank_zero
from lit_prune.select.spread import Cost, Spread, fit, out_of_reach


class MacsBudget(Budget):
    """As many channels as it takes to leave a ratio, or a number, of multiply-adds of one example.

    Args:
        spread: As for :class:`Budget`.
        at_most: As for :class:`Budget`: ``"45 MMACs"``, or a number.

    Example:
        >>> MacsBudget("global", at_most="45 MMACs").at_most
        45000000.0
    """

    unit = "MACs"

    def cost(self, evidence: Evidence) -> Cost:
        """Multiply-adds, by the graph."""
        # Every channel of a group costs the same, so any of them will do.
        return lambda widths: evidence.graph.macs_without(removal_of(evidence, widths))


class ParamsBudget(Budget):
    """As many channels as it takes to leave a ratio, or a number, of parameters.

    Args:
        spread: As for :class:`Budget`.
        at_most: As for :class:`Budget`: ``"1.5 Mparams"``, or a number.

    Example:
        >>> ParamsBudget(at_most="250 kparams").at_most
        250000.0
    """

    unit = "params"

    def cost(self, evidence: Evidence) -> Cost:
        """Parameters, each once, whatever names it has; averages inside of the network are no part of it."""
        return _sizes(evidence, buffers=False)

    def dense(self, evidence: Evidence, target: Target) -> float:
        """Parameters of the dense network; after an event, in proportion to all that it has now."""
        return self.cost(evidence)({}) * _of_now(evidence, target)


class SizeBudget(Budget):
    """As many channels as it takes for the weights to fit into a file, or flash memory, of some size.

    Counted are parameters, and the buffers that a checkpoint of the weights holds, in the precision that they are
    stored in; the format's own few bytes are not. Vectors (norms, biases) stay in four bytes where weights are in one.

    Args:
        spread: As for :class:`Budget`.
        at_most: As for :class:`Budget`: ``"2 MB"``, ``"512 KiB"``, or a number of bytes.
        precision: ``"float32"``, ``"float16"`` or ``"int8"``.

    Raises:
        ArgumentError: As for :class:`Budget`, or if the precision is unknown.

    Example:
        >>> SizeBudget("global", at_most="2 MB", precision="int8").at_most
        2000000.0
        >>> SizeBudget(at_most="8 ms")
        Traceback (most recent call last):
        lit_prune.errors.ArgumentError: at_most must be in B, such as '2 MB', or a number, but is '8 ms'.
    """

    unit = "B"

    def __init__(
        self,
        spread: Spread | str = "uniform",
        at_most: float | str | None = None,
        precision: Precision = "float32",
    ) -> None:
        super().__init__(spread, at_most)
        check_choice("precision", precision, get_args(Precision))
        self.precision = precision

    def cost(self, evidence: Evidence) -> Cost:
        """Bytes."""
        each = BYTES[self.precision]
        return _sizes(evidence, buffers=True, matrices=each, vectors=4 if each == 1 else each)

    def dense(self, evidence: Evidence, target: Target) -> float:
        """Bytes of the dense network; after an event, in proportion to the parameters that it has now."""
        return self.cost(evidence)({}) * _of_now(evidence, target)


class Budgets(Selection):
    """Several budgets, all of them met: as many channels as the strictest takes.

    Args:
        budgets: Each with its own ``at_most``, or all without, for one amount.
        spread: How the removal is shared out; that of each budget by itself is not looked at. By default a
            :class:`LatencyBudget` among them says it by its table, as it does alone; without one it is ``"uniform"``.

    Raises:
        ArgumentError: If there is none, or only some have a limit.

    Example:
        >>> both = Budgets([MacsBudget(at_most="40 MMACs"), SizeBudget(at_most="2 MB")], spread="global")
        >>> both.has_limit
        True
    """

    def __init__(self, budgets: Sequence[Budget], spread: Spread | str | None = None) -> None:
        if not isinstance(budgets, Sequence) or not all(isinstance(budget, Budget) for budget in budgets):
            raise ArgumentTypeError(
                "Budgets takes a list of budgets, such as [MacsBudget(at_most='40 MMACs'), SizeBudget(at_most='2 MB')],"
                f" but got {budgets!r}."
            )
        self.budgets = [*budgets]
        self.spread = as_spread("uniform" if spread is None else spread)
        timed = [budget for budget in budgets if budget.asks_clock]
        if len(timed) > 1:
            raise ArgumentError(
                f"Budgets times one network by one clock, but {len(timed)} of its budgets have a runtime. Leave out "
                "all but one: the others go by their tables."
            )
        self._leading = next(iter(timed), next((each for each in budgets if spread is None and each.leads), None))
        if timed and not (spread is None and timed[0].leads):
            # Its own spread is not looked at, but its clock is.
            self._leading = timed[0].shared_out(self.spread)
            self.budgets[self.budgets.index(timed[0])] = self._leading
        if not self.budgets or len({budget.has_limit for budget in self.budgets}) > 1:
            raise ArgumentError(
                "Budgets takes at least one budget, and either each has its at_most or none has: then the amount is "
                "the same ratio of each."
            )
        self.has_limit = self.budgets[0].has_limit
        self.findings: dict[str, float] = {}

    def __call__(self, evidence: Evidence, scores: Scores, target: Target) -> dict[str, Tensor]:
        """Remove channels until each budget is met.

        Raises:
            SelectionError: If one is out of reach; the message has what can be reached of that one.
        """
        if waits_for_rank_zero(self._leading):
            return {}
        widths = self._widths(evidence, scores, target)
        return lowest(flat(bundled(evidence.groups, scores)), scores, widths)

    def foretell(self, evidence: Evidence, scores: Scores, target: Target) -> Mapping[str, object]:
        """As a call, but that nothing is timed."""
        rough = copy.copy(self)
        rough.budgets = [budget.rough() for budget in self.budgets]
        if self._leading is not None:
            rough._leading = rough.budgets[self.budgets.index(self._leading)]
        return removal_of(evidence, rough._widths(evidence, scores, target))

    def _widths(self, evidence: Evidence, scores: Scores, target: Target) -> Widths:
        bundles = bundled(evidence.groups, scores)
        leading = self._leading
        parts = [(budget, budget.limit(evidence, target), budget.cost(evidence)) for budget in self.budgets]
        narrow = self.spread.widths(1.0, bundles, scores, target)
        for budget, limit, cost in parts:
            # What is timed is out of reach only if the clock says so.
            if not budget.asks_clock and cost(narrow) > limit:
                raise out_of_reach(limit, cost(narrow), len(narrow), budget.counted, self.spread.advice)

        def meets(widths: Widths) -> bool:
            return all(cost(widths) <= limit for budget, limit, cost in parts if budget is not leading)

        def most(widths: Widths) -> float:
            return max(cost(widths) * budget.pace(target) / limit for budget, limit, cost in parts)

        led: Widths | None = None
        if leading is not None:
            limit = next(limit for budget, limit, _ in parts if budget is leading)
            # Layers that save no time have to go all the same where the others are strict.
            with suppress(NoneMeetsAll):
                led = leading.within(evidence, scores, target, limit, meets)
        adds_up = all(budget.adds_up for budget in self.budgets)
        widths = fit(self.spread, bundles, scores, target, most, 1.0, "budgets", adds_up) if led is None else led
        self.findings, alike = {}, Counter[str]()
        # What is timed comes first: the next event goes on from what the clock said.
        for budget, limit, _ in sorted(parts, key=lambda part: part[0] is not leading):
            is_known = led is not None and budget is leading
            found = budget.findings if is_known else budget.confirmed(evidence, target, limit, widths)
            alike[budget.counted] += 1
            again = f" #{alike[budget.counted]}" if alike[budget.counted] > 1 else ""
            self.findings |= {f"{name}{again}": number for name, number in found.items()}
        return widths


def _of_now(evidence: Evidence, target: Target) -> float:
    """How many times as many parameters the dense network has as there are now."""
    return target.params / count_parameters(evidence.network) if target.params else 1.0


def _sizes(evidence: Evidence, buffers: bool, matrices: int = 1, vectors: int = 1) -> Cost:
    """Numbers of all parameters, each times what it counts; of buffers too, if asked for; not of averages."""
    named: dict[str, Tensor] = dict(evidence.network.named_parameters())
    if buffers:
        kept = evidence.network.state_dict(keep_vars=True)
        named |= {name: buffer for name, buffer in evidence.network.named_buffers() if name in kept}
    weights = {
        name: (tensor.shape, tensor.numel() * (matrices if tensor.dim() > 1 else vectors))
        for name, tensor in named.items()
        if not belongs_to_any(name, evidence.graph.averages)
    }

    def cost(widths: Widths) -> float:
        cut = evidence.graph.plan(removal_of(evidence, widths)).kept
        return sum(
            whole * math.prod(len(kept) / shape[dim] for dim, kept in cut.get(name, {}).items())
            for name, (shape, whole) in weights.items()
        )

    return cost
