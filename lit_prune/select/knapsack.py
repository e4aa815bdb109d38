"""Widths that lose the least for a budget, where what a layer costs depends on its input and its output."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Protocol

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]
Choice = list[int]
"""For each item the index of one of its options."""

_BISECTIONS, _SWEEPS, _ROUNDS = 20, 30, 4
# By how many items this is divided says how far away the options are that are tried in exchange for others, and how
# often the search begins again from a choice of which some items are shaken.
_WORK, _SHAKEN, _TRIES, _STARTS = 120, 6, 10, 3
# Differences of a loss above this are no rounding.
_SURELY = 1e-12


class Costs(Protocol):
    """What choices cost."""

    def along(self, item: int, choice: Choice) -> Floats:
        """``(options,)``: the whole cost with each option of one item, the others being as they are chosen."""


def choose(losses: Sequence[Floats], costs: Costs, budget: float, roughly: bool = False) -> Choice | None:
    """One option of each item, such that the sum of their losses is least and the cost is within a budget.

    Costs may couple items in any way. A price is put on the cost, and each item in turn takes the option for which loss
    and price are least together, until none changes; the price is the lowest that keeps within the budget. What is left
    of the budget is then spent by exchange: one item takes a dearer option, or one a cheaper and others dearer ones.

    Args:
        losses: Of each item ``(options,)``, what each of its options loses.
        costs: What they cost.
        budget: The most that all may cost together.
        roughly: Leave out the exchange, which takes longest.

    Returns:
        The choice; ``None`` if none was found that is within the budget.
    """
    if not losses:
        return []
    best = [int(np.argmin(each)) for each in losses]
    if cost_of(costs, best) <= budget:
        return best
    least = cheapest(losses, costs)
    if cost_of(costs, least) > budget:
        return None
    found = {tuple(least): _loss(losses, least)}
    low, high = 0.0, _highest(losses, costs, best, least)
    for _ in range(_BISECTIONS):
        price = (low + high) / 2
        fits = False
        for start in (best, [*min(found, key=found.__getitem__)]):
            trial = _settle(losses, costs, price, start)
            if cost_of(costs, trial) <= budget:
                fits = True
                found[tuple(trial)] = _loss(losses, trial)
        low, high = (low, price) if fits else (price, high)
    starts = [[*each] for each in sorted(found, key=found.__getitem__)]
    if roughly:
        return starts[0]
    # Few items have few ways to go about it, and all the more of them can be tried in the same time.
    reach, shakes = max(2, _WORK // len(losses)), _WORK // len(losses) - 1
    several = [*starts[:_STARTS], least][: shakes + 1]
    choice = min((_exchange(losses, costs, budget, each, reach) for each in several), key=lambda e: _loss(losses, e))
    rng = np.random.default_rng(0)
    for _ in range(_TRIES * shakes):
        if not shakes:
            break
        start = [*choice]
        for item in rng.permutation(len(losses))[: rng.integers(2, _SHAKEN)]:
            start[item] = int(rng.integers(len(losses[item])))
        if cost_of(costs, start) <= budget:
            shakes -= 1
            trial = _exchange(losses, costs, budget, start, reach)
            choice = min((choice, trial), key=lambda each: _loss(losses, each))
    return choice


def cheapest(losses: Sequence[Floats], costs: Costs) -> Choice:
    """The choice that costs least, whatever it loses: narrower need not be faster."""
    return _settle([np.zeros_like(each) for each in losses], costs, 1.0, [len(each) - 1 for each in losses])


def cost_of(costs: Costs, choice: Choice) -> float:
    """What a choice costs."""
    return float(costs.along(0, choice)[choice[0]])


def _loss(losses: Sequence[Floats], choice: Choice) -> float:
    return float(sum(each[option] for each, option in zip(losses, choice, strict=True)))


def _highest(losses: Sequence[Floats], costs: Costs, best: Choice, least: Choice) -> float:
    """A price at which nothing is worth its cost."""
    saved = cost_of(costs, best) - cost_of(costs, least)
    lost = _loss(losses, least) - _loss(losses, best)
    return 1e3 * lost / max(saved, 1e-12) if np.isfinite(lost) and lost > 0 else 1e12


def _settle(losses: Sequence[Floats], costs: Costs, price: float, start: Choice) -> Choice:
    """What each item takes at a price, beginning from some choice."""
    choice = [*start]
    for _ in range(_SWEEPS):
        changed = False
        for item, lost in enumerate(losses):
            option = int(np.argmin(lost + price * costs.along(item, choice)))
            if option != choice[item]:
                choice[item], changed = option, True
        if not changed:
            break
    return choice


def _exchange(losses: Sequence[Floats], costs: Costs, budget: float, start: Choice, reach: int) -> Choice:
    """Spend what is left of a budget: by one item alone, or by several that change together."""
    choice = [*start]
    for _ in range(_ROUNDS):
        moves = (_together, _make_room)
        if not (_alone(losses, costs, budget, choice) or any(m(losses, costs, budget, choice, reach) for m in moves)):
            break
    return choice


def _alone(losses: Sequence[Floats], costs: Costs, budget: float, choice: Choice) -> bool:
    """Change items by themselves while one loses less; whether any did."""
    changed = False
    while (best := _best_gain(losses, costs, budget, choice))[0] > 0:
        choice[best[1]], changed = best[2], True
    return changed


def _together(losses: Sequence[Floats], costs: Costs, budget: float, choice: Choice, reach: int) -> bool:
    """Let one item give way and others take what that saves, wherever all of them together lose less."""
    changed = False
    for item, more, trial in _with_another(losses, choice, reach):
        given = more
        if given <= 0:
            continue
        while given > 0 and (best := _best_gain(losses, costs, budget, trial, but=item))[0] > 0:
            trial[best[1]] = best[2]
            given -= best[0]
        if given < -_SURELY:
            choice[:], changed = trial, True
    return changed


def _make_room(losses: Sequence[Floats], costs: Costs, budget: float, choice: Choice, reach: int) -> bool:
    """Let one item take a dearer option and others give way for it, wherever all of them together lose less."""
    changed = False
    for item, more, trial in _with_another(losses, choice, reach):
        given = more
        if given >= 0:
            continue
        while given < 0 and (total := costs.along(item, trial)[trial[item]]) > budget:
            given += _give_way(losses, costs, budget, trial, total, but=item)
        if given < -_SURELY:
            choice[:], changed = trial, True
    return changed


def _with_another(losses: Sequence[Floats], choice: Choice, reach: int) -> Iterator[tuple[int, float, Choice]]:
    """(item, what it loses more by that, the choice with it) for each item and each option of it within reach."""
    for item, lost in enumerate(losses):
        here = choice[item]
        for option in range(max(0, here - reach), min(len(lost), here + reach + 1)):
            trial = [*choice]
            trial[item] = option
            yield item, float(lost[option] - lost[choice[item]]), trial


def _give_way(losses: Sequence[Floats], costs: Costs, budget: float, choice: Choice, total: float, but: int) -> float:
    """Change the item that saves most for what it loses, of what is still too much; what it loses."""
    best = np.inf, -1, -1
    for item, lost in enumerate(losses):
        if item == but:
            continue
        saved = np.minimum(total - costs.along(item, choice), total - budget)
        with np.errstate(divide="ignore", invalid="ignore"):
            price = np.where(saved > 0, (lost - lost[choice[item]]) / saved, np.inf)
        option = int(np.argmin(price))
        if price[option] < best[0]:
            best = float(price[option]), item, option
    if best[1] < 0:
        return np.inf
    given = losses[best[1]][best[2]] - losses[best[1]][choice[best[1]]]
    choice[best[1]] = best[2]
    return float(given)


def _best_gain(
    losses: Sequence[Floats], costs: Costs, budget: float, choice: Choice, but: int = -1
) -> tuple[float, int, int]:
    """By how much the loss falls at most when one item changes, which one, and to which option."""
    best = 0.0, -1, -1
    for item, lost in enumerate(losses):
        # Looked up only where something could be gained.
        if item == but or lost[choice[item]] - lost.min() <= best[0]:
            continue
        gains = np.where(costs.along(item, choice) <= budget, lost[choice[item]] - lost, 0.0)
        option = int(np.argmax(gains))
        if gains[option] > best[0]:
            best = float(gains[option]), item, option
    return best
