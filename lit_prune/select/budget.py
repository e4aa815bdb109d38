"""What a budget is: as many channels go as it takes to be within a limit."""

from __future__ import annotations

import copy
import math
import re
from abc import abstractmethod
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

from torch import Tensor

from lit_prune.common.arguments import check_positive
from lit_prune.common.choices import resolve
from lit_prune.common.findings import allowance
from lit_prune.common.ranks import is_rank_zero
from lit_prune.criteria import Evidence
from lit_prune.errors import ArgumentError, ArgumentTypeError, SelectionError
from lit_prune.select.base import Bundle, Scores, Selection, Target, Widths, bundled, lowest
from lit_prune.select.isomorphic import Isomorphic
from lit_prune.select.spread import Cost, Global, Spread, Uniform, fit, ratio_of

Own = TypeVar("Own", bound="Budget")
Meets = Callable[[Widths], bool]
"""Whether something holds of some widths."""


def always(_: Widths) -> bool:
    """Nothing else must hold."""
    return True


_PREFIXES = {"": 1.0, "k": 1e3, "M": 1e6, "G": 1e9, "Ki": 2.0**10, "Mi": 2.0**20, "Gi": 2.0**30}


class Budget(Selection):
    """As many channels as it takes to meet a budget; a budget of your own is a subclass with :meth:`cost` and a unit.

    Args:
        spread: How the removal is shared out among layers: ``"uniform"``, ``"global"``, ``"isomorphic"`` or a
            :class:`Spread`.
        at_most: What is to be left, as a number or with a unit; then ``ChannelPruning`` is given ``amount=None``, and
            earlier events of a schedule go a part of the way. By default the amount says which ratio goes.

    Raises:
        ArgumentError: If ``at_most`` is not positive, or has another unit.
    """

    unit: str = ""
    """What ``at_most`` may be given in, with a prefix such as k or M."""
    adds_up: bool = True
    """Whether the cost is a sum to which each layer adds."""
    is_rough: bool = False
    """Whether it is to be quick, and not to ask a clock."""

    @property
    def counted(self) -> str:
        """What it is that costs, as messages and records have it."""
        return self.unit

    def __init__(self, spread: Spread | str = "uniform", at_most: float | str | None = None) -> None:
        self.spread = as_spread(spread)
        self.at_most = None if at_most is None else quantity("at_most", at_most, self.unit)
        self.has_limit = at_most is not None
        self.findings: Mapping[str, float] = {}

    @abstractmethod
    def cost(self, evidence: Evidence) -> Cost:
        """What the network costs at some widths, as a function of them; groups that are not named keep theirs."""

    def dense(self, evidence: Evidence, target: Target) -> float:
        """What the network costs before anything is removed; by default that of the dense network, where it is known.

        Raises:
            SelectionError: If the target does not tell it.
        """
        known = target.costs.get(self.unit)
        if known is None:
            raise SelectionError(f"The target does not say how many {self.unit} the dense network has.")
        return known

    def limit(self, evidence: Evidence, target: Target) -> float:
        """What may be left after the event."""
        ratio = ratio_of(target, self)
        if self.at_most is not None and ratio == 1:
            return self.at_most
        dense = self.dense(evidence, target)
        return dense * (1 - ratio) if self.at_most is None else dense - ratio * (dense - min(dense, self.at_most))

    @property
    def asks_clock(self) -> bool:
        """Whether the whole network is timed at an event."""
        return False

    def rough(self: Own) -> Own:
        """The same budget for a forecast."""
        other = copy.copy(self)
        other.is_rough = True
        return other

    def pace(self, target: Target) -> float:
        """How many times as much a clock is expected to say as :meth:`cost`, by what it said last."""
        return 1.0

    @property
    def leads(self) -> bool:
        """Whether it shares the removal out in a way of its own, which :class:`Budgets` follows then."""
        return False

    def shared_out(self: Own, spread: Spread) -> Own:
        """The same budget, whose removal is shared out in another way."""
        other = copy.copy(self)
        other.spread = spread
        return other

    def __call__(self, evidence: Evidence, scores: Scores, target: Target) -> dict[str, Tensor]:
        """Remove channels until the budget is met.

        Raises:
            SelectionError: If it is out of reach; the message has what can be reached.
        """
        if waits_for_rank_zero(self):
            return {}
        widths = self.within(evidence, scores, target, self.limit(evidence, target))
        return lowest([group for group in evidence.groups if group.name in widths], scores, widths)

    def within(self, evidence: Evidence, scores: Scores, target: Target, limit: float, meets: Meets = always) -> Widths:
        """What is to be left of the groups that are concerned; findings say how far that goes.

        Args:
            evidence: As for a call.
            scores: As for a call.
            target: As for a call.
            limit: What may be left.
            meets: What else must hold; if it does of some widths, it does of narrower ones.

        Raises:
            SelectionError: As for a call.
        """
        cost = self.cost(evidence)
        bundles = self.concerned(bundled(evidence.groups, scores), evidence, target, limit)
        widths = fit(self.spread, bundles, scores, target, cost_where(meets, cost), limit, self.counted, self.adds_up)
        self.findings = self.found(evidence, target, limit, cost(widths))
        return widths

    def found(self, evidence: Evidence, target: Target, limit: float, left: float) -> dict[str, float]:
        """What is to be known of an event.

        Args:
            evidence: As for a call.
            target: As for a call.
            limit: What was allowed.
            left: What is left.
        """
        return allowance(self.counted, limit, left)

    def confirmed(self, evidence: Evidence, target: Target, limit: float, widths: Widths) -> dict[str, float]:
        """What is to be known of widths that were chosen elsewhere, by the clock where there is one.

        Raises:
            SelectionError: If they are not within the limit after all.
        """
        return self.found(evidence, target, limit, self.cost(evidence)(widths))

    def concerned(self, bundles: list[Bundle], evidence: Evidence, target: Target, limit: float) -> list[Bundle]:
        """Those of which fewer channels cost less; by default all."""
        return bundles


def waits_for_rank_zero(budget: Budget | None) -> bool:
    """Whether another rank decides: only it asks the clock, and by the table alone a budget may be out of reach."""
    return budget is not None and budget.asks_clock and not is_rank_zero()


class NoneMeetsAll(SelectionError):
    """No choice of one budget meets all others."""


def cost_where(meets: Meets, cost: Cost) -> Cost:
    """A cost that no budget has room for where something else does not hold."""
    return lambda widths: cost(widths) if meets(widths) else math.inf


def as_spread(given: Spread | str) -> Spread:
    """A spread, or the one of that name.

    Raises:
        ArgumentError: If the name is unknown.
    """
    return resolve("spread", given, Spread, {"uniform": Uniform, "global": Global, "isomorphic": Isomorphic})


def quantity(name: str, given: float | str, unit: str) -> float:
    """A number that may be written with a unit and a prefix.

    Raises:
        ArgumentError: If it is not positive, or in another unit.

    Example:
        >>> quantity("at_most", "1.5 kB", "B"), quantity("at_most", "2 KiB", "B"), quantity("at_most", 3, "B")
        (1500.0, 2048.0, 3.0)
    """
    value: Any = given
    example = "8 ms" if unit == "ms" else f"2 M{unit}"
    refusal = f"{name} must be in {unit}, such as {example!r}, or a number, but is {given!r}."
    if isinstance(given, str):
        number = r"\d+(?:\.\d*)?(?:[eE][+-]?\d+)?"
        match = re.fullmatch(rf"\s*({number})\s*([kKMG]?i?)\s*(?:{re.escape(unit)})?\s*", given)
        prefix = match[2].replace("K", "k") if match and match[2] == "K" else match[2] if match else ""
        if match is None or prefix not in _PREFIXES:
            raise ArgumentError(refusal)
        value = float(match[1]) * _PREFIXES[prefix]
    if isinstance(value, bool):
        raise ArgumentTypeError(refusal)
    check_positive(name, value)
    return float(value)


def removal_of(evidence: Evidence, widths: Widths) -> dict[str, range]:
    """So many channels of each group that its widths are left; which ones does not count."""
    sizes = {group.name: group.size for group in evidence.groups}
    return {name: range(width, sizes[name]) for name, width in widths.items()}
