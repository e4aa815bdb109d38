"""Small choices under a budget, of which all can be tried: layers in a row that cost by input and output."""

from __future__ import annotations

import itertools

import numpy as np
import numpy.typing as npt

from lit_prune.select.knapsack import cheapest, choose

Floats = npt.NDArray[np.float64]


class Chain:
    """Layers in a row: each costs something for every pair of an input and an output width.

    Args:
        rng: Draws what they cost.
        items: Widths that are to be chosen.
        options: Widths that each may have.
    """

    def __init__(self, rng: np.random.Generator, items: int, options: int) -> None:
        self.rng, self.items = rng, items
        self.widths = np.sort(rng.choice(np.arange(1, 33), options, replace=False))[::-1]
        self.steps = [np.ceil(rng.uniform(0.2, 3) * self._pairs()) for _ in range(items + 1)]

    def _pairs(self) -> Floats:
        # A device computes blocks of channels, and a narrower layer need not be a faster one.
        block = self.rng.choice([1, 4, 8])
        rounded = np.ceil(self.widths / block) * block
        ragged = 1 + 0.3 * (self.widths % block > 0)
        return np.outer(rounded * ragged, rounded)

    def total(self, choice: list[int] | tuple[int, ...]) -> float:
        inner = sum(self.steps[k + 1][choice[k], choice[k + 1]] for k in range(len(choice) - 1))
        return float(self.steps[0][0, choice[0]] + inner + self.steps[-1][choice[-1], 0])

    def along(self, item: int, choice: list[int]) -> Floats:
        return np.array([self.total([*choice[:item], k, *choice[item + 1 :]]) for k in range(len(self.widths))])


def problem(seed: int, items: int = 4, options: int = 6) -> tuple[list[Floats], Chain]:
    """What each option of each item loses, and what they cost."""
    rng = np.random.default_rng(seed)
    costs = Chain(rng, items, options)
    losses = []
    for _ in range(items):
        rising = np.sort(rng.gamma(0.7, 1, costs.widths[0]))
        lost = np.concatenate([[0], rising.cumsum()])
        losses.append(lost[costs.widths[0] - costs.widths] * rng.uniform(0.3, 3))
    return losses, costs


def excess(losses: list[Floats], costs: Chain, part: float) -> float:
    """By how much more a choice loses than the best of all, of all that could be lost.

    Args:
        losses: As :func:`problem` makes them.
        costs: As well.
        part: Where the budget lies between the cheapest and the dearest choice.
    """
    low, high = costs.total(cheapest(losses, costs)), costs.total([0] * costs.items)
    budget = low + part * (high - low)
    choice = choose(losses, costs, budget)
    assert choice is not None
    assert costs.total(choice) <= budget

    def lost(each: list[int] | tuple[int, ...]) -> float:
        return float(sum(values[k] for values, k in zip(losses, each, strict=True)))

    every = itertools.product(*(range(len(values)) for values in losses))
    best = min(lost(each) for each in every if costs.total(each) <= budget)
    return (lost(choice) - best) / lost([len(values) - 1 for values in losses])
