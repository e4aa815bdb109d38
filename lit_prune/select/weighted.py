"""A selection that takes more from some layers than from others, by their names."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase

from lit_prune.common.arguments import check_number
from lit_prune.errors import ArgumentError, ArgumentTypeError, SelectionError
from lit_prune.select.base import Bundle, Scores, Target, Widths
from lit_prune.select.spread import Uniform


class Weighted(Uniform):
    """The same ratio of every layer, times a factor for those that a pattern names.

    By itself the amount is the ratio of a layer with the factor 1. Within ``MacsBudget(spread=...)`` the ratios are
    scaled until the budget is met.

    Args:
        factors: Pattern of group names (:mod:`fnmatch`) to the factor; the first that matches counts, 1 where none
            does.
        most: The largest ratio that a factor above 1 can lead to, in (0, 1).

    Raises:
        ArgumentError: If a factor is negative, or ``most`` is out of range.
        ArgumentTypeError: If the factors are no dict.
        SelectionError: At an event, if no pattern names a layer.

    Example:
        >>> from lit_prune.select import MacsBudget
        >>> selection = MacsBudget(spread=Weighted({"model.model.22.*": 4.0}))
        >>> Weighted({"head.*": -1.0})
        Traceback (most recent call last):
        lit_prune.errors.ArgumentError: the factor of 'head.*' must be 0 or more, but is -1.0.
    """

    def __init__(self, factors: Mapping[str, float], most: float = 0.65) -> None:
        if not isinstance(factors, Mapping):
            raise ArgumentTypeError(f"Weighted takes a dict from patterns to factors, but got {factors!r}.")
        for pattern, factor in factors.items():
            check_number(f"the factor of {pattern!r}", factor)
            if factor < 0:
                raise ArgumentError(f"the factor of {pattern!r} must be 0 or more, but is {factor}.")
        check_number("most", most)
        if not 0 < most < 1:
            raise ArgumentError(f"most must be in (0, 1), but is {most}.")
        self.factors = dict(factors)
        self.most = most

    def widths(self, level: float, bundles: Sequence[Bundle], scores: Scores, target: Target) -> Widths:
        """The level is the ratio of a layer with the factor 1."""
        # Of those that take part in this event, patterns may name none.
        names = {**target.widths, **{group.name: group.size for bundle in bundles for group in bundle}}
        if self.factors and names and not any(fnmatchcase(name, each) for each in self.factors for name in names):
            raise SelectionError(
                f"None of the patterns of Weighted ({', '.join([*self.factors][:3])}, ...) names a layer: they are "
                f"{', '.join([*names][:3])}, ..."
            )
        widths = {}
        for bundle in bundles:
            # Groups that lose equally many follow the first of them.
            ratio = self._ratio(bundle[0].name, level)
            widths.update({group.name: target.keep(group, ratio) for group in bundle})
        return widths

    def _ratio(self, name: str, level: float) -> float:
        factor = next((factor for pattern, factor in self.factors.items() if fnmatchcase(name, pattern)), 1.0)
        return min(max(self.most, level), factor * level) if factor > 1 else factor * level
