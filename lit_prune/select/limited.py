"""A way to share out a removal that leaves each layer what it can't do without."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from fnmatch import fnmatchcase
from os import PathLike
from pathlib import Path
from typing import Any

from torch import Tensor

from lit_prune.common.arguments import check_number
from lit_prune.criteria import Evidence
from lit_prune.errors import ArgumentError, ArgumentTypeError, MissingFileError, SelectionError
from lit_prune.select.base import Bundle, Scores, Target, Widths
from lit_prune.select.budget import as_spread
from lit_prune.select.spread import Spread


class Limited(Spread):
    """Another way to share out, by which no layer loses more than a ratio of its own.

    Args:
        spread: The other way: ``"uniform"``, ``"global"``, ``"isomorphic"`` or a :class:`Spread`.
        limits: Pattern of group names (:mod:`fnmatch`) to the ratio of its dense channels that may go, in [0, 1); the
            first that matches counts, and where none does there is no limit. Or a file of `lit-prune sensitivity`.
        max_drop: With such a file: how much worse the metric may be when that layer alone is cut.
        repaired: With such a file: whether the metric counts after repair.

    Raises:
        ArgumentError: If a limit is out of range, or the file is no such file.
        MissingFileError: If there is no such file.
        ArgumentTypeError: If the limits are neither.
        SelectionError: At an event, if no limit names a layer that takes part.

    Example:
        >>> from lit_prune.select import MacsBudget
        >>> selection = MacsBudget(spread=Limited("global", {"model.0": 0.0, "model.1.*": 0.5}))
        >>> Limited("global", {"model.0": 1.0})
        Traceback (most recent call last):
        lit_prune.errors.ArgumentError: the limit of 'model.0' must be in [0, 1), but is 1.0.
    """

    advice = Spread.advice.replace("Ask for less,", "Ask for less, raise the limits of `Limited`,")

    def __init__(
        self,
        spread: Spread | str,
        limits: Mapping[str, float] | str | PathLike[str],
        max_drop: float = 0.01,
        repaired: bool = True,
    ) -> None:
        self.spread = as_spread(spread)
        check_number("max_drop", max_drop)
        if isinstance(limits, (str, PathLike)):
            self.limits = _limits_of(Path(limits), max_drop, repaired)
        elif isinstance(limits, Mapping):
            self.limits = dict(limits)
        else:
            raise ArgumentTypeError(f"Limited takes a dict from patterns to ratios, or a file, but got {limits!r}.")
        for pattern, limit in self.limits.items():
            check_number(f"the limit of {pattern!r}", limit)
            if not 0 <= limit < 1:
                raise ArgumentError(f"the limit of {pattern!r} must be in [0, 1), but is {limit}.")

    def __call__(self, evidence: Evidence, scores: Scores, target: Target) -> dict[str, Tensor]:
        """Remove what the other way does, as far as the limits let it."""
        return self.spread(evidence, scores, self._within(target, evidence.groups))

    def widths(self, level: float, bundles: Sequence[Bundle], scores: Scores, target: Target) -> Widths:
        """The level is that of the other way."""
        groups = [group for bundle in bundles for group in bundle]
        return self.spread.widths(level, bundles, scores, self._within(target, groups))

    def curve(self, bundle: Bundle, scores: Scores, target: Target) -> Tensor:
        """As of the other way."""
        return self.spread.curve(bundle, scores, target)

    def _within(self, target: Target, groups: Sequence[Any]) -> Target:
        least = {}
        for group in groups:
            limit = next((limit for pattern, limit in self.limits.items() if fnmatchcase(group.name, pattern)), None)
            if limit is not None:
                least[group.name] = math.ceil(target.widths.get(group.name, group.size) * (1 - limit) - 1e-9)
        if self.limits and groups and not least:
            raise SelectionError(
                f"None of the limits ({', '.join([*self.limits][:3])}, ...) names a layer that takes part: "
                f"{', '.join(group.name for group in groups[:3])}, ..."
            )
        # Groups that lose equally many are held by the strictest of them.
        most = {
            group.name: max(least.get(name, 0) for name in group.bundle)
            for group in groups
            if any(name in least for name in group.bundle)
        }
        return replace(target, least=most)


def _limits_of(path: Path, max_drop: float, repaired: bool) -> dict[str, float]:
    """The largest ratio of each group up to which the metric was no worse than allowed."""
    if not path.is_file():
        raise MissingFileError(f"There is no file {str(path)!r}: `lit-prune sensitivity` makes one.")
    way = "repaired" if repaired else "cut"
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        sign = 1 if content["mode"] == "max" else -1
        found = {}
        for name, ratios in content["groups"].items():
            found[_literal(name)] = 0.0
            for ratio, scores in sorted(ratios.items(), key=lambda item: float(item[0])):
                if way not in scores:
                    raise ArgumentError(f"{path} was measured without repair: give Limited repaired=False.")
                # What is not a number is not good enough.
                if not sign * (content["dense"] - scores[way]) <= max_drop + 1e-9:
                    break
                found[_literal(name)] = float(ratio)
    except ArgumentError:
        raise
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ArgumentError(f"{path} is no file of `lit-prune sensitivity` ({error!r}).") from error
    return found


def _literal(name: str) -> str:
    """A pattern that matches just this name."""
    return name.replace("[", "[[]")
