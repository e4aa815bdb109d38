"""Selections that rank channels by score: the same ratio of every layer, or of all channels together."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from lit_prune.common.arguments import check_number
from lit_prune.common.findings import SPENT
from lit_prune.criteria import Evidence
from lit_prune.errors import ArgumentError, SelectionError
from lit_prune.select.base import Bundle, Scores, Selection, Target, Widths, bundled, flat, lowest

_TINY = torch.finfo(torch.float64).tiny
Cost = Callable[[Widths], float]
"""What a network costs at some widths."""


class Spread(Selection):
    """A way to share out a removal among layers, from nothing (level 0) to as much as is allowed (level 1)."""

    advice: str = "Ask for less, lower `round_to` or `min_channels`, or widen `blocks`."
    """What to do where that is not enough."""

    @abstractmethod
    def widths(self, level: float, bundles: Sequence[Bundle], scores: Scores, target: Target) -> Widths:
        """Group name to what it keeps at a level in [0, 1]; never wider at a higher level."""

    def curve(self, bundle: Bundle, scores: Scores, target: Target) -> Tensor:
        """``(size,)`` rising: what the k-th channel is worth that all groups of a bundle lose together."""
        normed = [scores[group.name].double().cpu() for group in bundle]
        return torch.stack([score.sort().values / score.mean().clamp(min=_TINY) for score in normed]).mean(0)


class Uniform(Spread):
    """The same ratio of every layer; of each layer the channels with the lowest scores."""

    def __call__(self, evidence: Evidence, scores: Scores, target: Target) -> dict[str, Tensor]:
        """Remove ``target.ratio`` of each group's dense channels."""
        bundles = bundled(evidence.groups, scores)
        widths = self.widths(ratio_of(target, self), bundles, scores, target)
        return lowest(flat(bundles), scores, widths)

    def widths(self, level: float, bundles: Sequence[Bundle], scores: Scores, target: Target) -> Widths:
        """The level is the ratio that is gone."""
        return {group.name: target.keep(group, level) for bundle in bundles for group in bundle}


class Global(Spread):
    """The channels with the lowest scores of the whole network; layers that matter more keep more.

    A score is divided by a power of its layer's mean, since scales differ between layers for reasons other than
    importance; and by the share of its layer's total that would be left, so that no layer is emptied while others are
    whole. Scores that rise with what is gone of their layer (``"lamp"``) count as they are.

    Args:
        normalization: The power, from 0, which takes scores as they are, to 1, which leaves no difference between the
            means of layers. By default 0.5 where the criterion says that its scores have one unit, and 1 elsewhere.

    Raises:
        ArgumentError: If it is out of range.
    """

    def __init__(self, normalization: float | None = None) -> None:
        if normalization is not None:
            check_number("normalization", normalization)
            if not 0 <= normalization <= 1:
                raise ArgumentError(f"normalization must be in [0, 1], but is {normalization}.")
        self.normalization = normalization

    def __call__(self, evidence: Evidence, scores: Scores, target: Target) -> dict[str, Tensor]:
        """Remove ``target.ratio`` of all dense channels of these groups."""
        bundles = bundled(evidence.groups, scores)
        return lowest(flat(bundles), scores, within_ratio(self, bundles, scores, target, ratio_of(target, self)))

    def widths(self, level: float, bundles: Sequence[Bundle], scores: Scores, target: Target) -> Widths:
        """The level is a quantile of all scores: what lies below it goes."""
        curves = [self.curve(bundle, scores, target) for bundle in bundles]
        if not curves:
            return {}
        pooled = [curve.repeat(len(bundle)) for curve, bundle in zip(curves, bundles, strict=True)]
        pool = torch.cat(pooled).sort().values
        threshold = torch.inf if level >= 1 else float(pool[int(level * len(pool))])
        widths = {}
        for curve, bundle in zip(curves, bundles, strict=True):
            wanted = int((curve >= threshold).sum())
            for group in bundle:
                widths[group.name] = target.allowed(group, wanted)
        return widths

    def curve(self, bundle: Bundle, scores: Scores, target: Target) -> Tensor:
        """As of any spread, in the unit that all layers share."""
        if target.is_layer_adaptive:
            return torch.stack([scores[group.name].double().cpu().sort().values for group in bundle]).mean(0)
        power = (0.5 if target.comparable else 1.0) if self.normalization is None else self.normalization
        curves = []
        for group in bundle:
            rising = scores[group.name].double().cpu().sort().values
            left = rising.flip(0).cumsum(0).flip(0)
            scarcity = rising.sum() / left.clamp(min=_TINY)
            curves.append(rising * scarcity / rising.mean().clamp(min=_TINY) ** power)
        return torch.stack(curves).mean(0)


def within_ratio(spread: Spread, bundles: Sequence[Bundle], scores: Scores, target: Target, ratio: float) -> Widths:
    """The widths with which a ratio of all dense channels is gone.

    Raises:
        SelectionError: As for :func:`fit`.
    """
    dense = sum(target.widths.get(group.name, group.size) for group in flat(bundles))
    return fit(spread, bundles, scores, target, lambda kept: sum(kept.values()), (1 - ratio) * dense)


def fit(
    spread: Spread,
    bundles: Sequence[Bundle],
    scores: Scores,
    target: Target,
    cost: Cost,
    budget: float,
    counted: str = "channels",
    adds_up: bool = True,
) -> Widths:
    """The widths of the lowest level whose cost is within ``budget``, with what is left of it spent where it counts.

    Args:
        spread: How the removal is shared out.
        bundles: What may lose channels.
        scores: Group name to scores.
        target: Which widths are allowed.
        cost: Of widths.
        budget: The most that they may cost.
        counted: What that is counted in, for the message.
        adds_up: Whether each layer has a part of the cost. Then no layer could be wider by a step within the budget
            where more than a hundredth of it is left.

    Raises:
        SelectionError: If even the highest level costs more.
    """
    low, high = 0.0, 1.0
    wide, narrow = (spread.widths(level, bundles, scores, target) for level in (low, high))
    if cost(wide) <= budget:
        return wide
    if cost(narrow) > budget:
        raise out_of_reach(budget, cost(narrow), len(narrow), counted, spread.advice)
    for _ in range(24):
        level = (low + high) / 2
        widths = spread.widths(level, bundles, scores, target)
        if cost(widths) <= budget:
            high, narrow = level, widths
        else:
            low, wide = level, widths
        if wide == narrow:
            break

    def regained(bundle: Bundle) -> float:
        name = bundle[0].name
        return _worth(spread.curve(bundle, scores, target), narrow[name], wide[name])

    # Rounding makes many layers jump at the same level: give back to those whose channels score highest.
    jumped = [bundle for bundle in bundles if any(wide[group.name] != narrow[group.name] for group in bundle)]
    for bundle in sorted(jumped, key=regained, reverse=True):
        trial = narrow | {group.name: wide[group.name] for group in bundle}
        if cost(trial) <= budget:
            narrow = trial
    return filled(spread, bundles, scores, target, cost, budget, narrow) if adds_up else narrow


def filled(
    spread: Spread,
    bundles: Sequence[Bundle],
    scores: Scores,
    target: Target,
    cost: Cost,
    budget: float,
    widths: Widths,
) -> Widths:
    """Widths from which no layer could be a step wider, unless less than a hundredth of the budget is left.

    Args:
        spread: Says which channels are worth most.
        bundles: What may have some back.
        scores: As for :func:`fit`.
        target: As for :func:`fit`.
        cost: As for :func:`fit`.
        budget: As for :func:`fit`.
        widths: What is within it.
    """
    used = cost(widths)
    if used >= SPENT * budget:
        return widths
    curves = {bundle[0].name: spread.curve(bundle, scores, target) for bundle in bundles}

    def step(bundle: Bundle) -> int:
        return min(bundle[0].step(target.round_to), bundle[0].size - widths[bundle[0].name])

    def worth(bundle: Bundle) -> float:
        name = bundle[0].name
        return _worth(curves[name], widths[name], widths[name] + step(bundle))

    waiting = [*bundles]
    while used < SPENT * budget and (waiting := [bundle for bundle in waiting if step(bundle)]):
        best = max(waiting, key=worth)
        trial = widths | {group.name: widths[group.name] + step(best) for group in best}
        needed = cost(trial)
        if needed <= budget:
            widths, used = trial, needed
        else:
            # What does not fit now does not later, for all get wider.
            waiting.remove(best)
    return widths


def _worth(curve: Tensor, narrow: int, wide: int) -> float:
    """Of a channel, in the mean, that makes the difference between two widths."""
    return float(curve[len(curve) - wide : len(curve) - narrow].mean())


def out_of_reach(wanted: float, least: float, groups: int, counted: str, advice: str = Spread.advice) -> SelectionError:
    """What is said where a budget can't be met."""
    return SelectionError(
        f"The wanted {_shown(wanted)} {counted} are out of reach: with each of the {groups} groups at its least "
        f"width, {_shown(least)} are left. {advice}"
    )


def _shown(cost: float) -> str:
    return f"{cost:,.0f}" if cost >= 1000 else f"{cost:.4g}"


def ratio_of(target: Target, selection: Selection) -> float:
    """The target's ratio, for selections that can't do without.

    Raises:
        SelectionError: If there is none.
    """
    if target.ratio is None:
        raise SelectionError(f"{type(selection).__name__} needs an amount in (0, 1), but got None.")
    return target.ratio
