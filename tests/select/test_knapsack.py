"""The choice under a budget is as good as that of a search through all of them."""

import itertools

import numpy as np
import pytest

from lit_prune.select.knapsack import cheapest, choose


class Chain:
    """Layers in a row: each costs something for every pair of an input and an output width."""

    def __init__(self, rng, items, options):
        self.widths = np.sort(rng.choice(np.arange(1, 33), options, replace=False))[::-1]
        ends = rng.integers(1, 17, 2)
        self.steps = [np.ceil(rng.uniform(0.2, 3) * self._pairs(rng)) for _ in range(items + 1)]
        self.first, self.last = ends

    def _pairs(self, rng):
        # A device computes blocks of channels, and a narrower layer need not be a faster one.
        block = rng.choice([1, 4, 8])
        rounded = np.ceil(self.widths / block) * block
        ragged = 1 + 0.3 * (self.widths % block > 0)
        return np.outer(rounded * ragged, rounded)

    def total(self, choice):
        inner = sum(self.steps[k + 1][choice[k], choice[k + 1]] for k in range(len(choice) - 1))
        return float(self.steps[0][0, choice[0]] + inner + self.steps[-1][choice[-1], 0])

    def along(self, item, choice):
        return np.array([self.total([*choice[:item], k, *choice[item + 1 :]]) for k in range(len(self.widths))])


def problem(seed, items=4, options=6):
    rng = np.random.default_rng(seed)
    costs = Chain(rng, items, options)
    losses = []
    for _ in range(items):
        rising = np.sort(rng.gamma(0.7, 1, costs.widths[0]))
        lost = np.concatenate([[0], rising.cumsum()])
        losses.append(lost[costs.widths[0] - costs.widths] * rng.uniform(0.3, 3))
    return losses, costs


def searched(losses, costs, budget):
    fitting = (
        each for each in itertools.product(*(range(len(lost)) for lost in losses)) if costs.total(each) <= budget
    )
    return min(sum(lost[k] for lost, k in zip(losses, each, strict=True)) for each in fitting)


@pytest.mark.parametrize("seed", range(24))
@pytest.mark.parametrize("part", [0.25, 0.5, 0.8])
def test_it_loses_hardly_more_than_the_best(seed, part):
    losses, costs = problem(seed)
    narrow, wide = costs.total(cheapest(losses, costs)), costs.total([0] * len(losses))
    budget = narrow + part * (wide - narrow)
    choice = choose(losses, costs, budget)
    lost = sum(each[k] for each, k in zip(losses, choice, strict=True))
    assert costs.total(choice) <= budget
    everything = sum(each[-1] for each in losses)
    assert lost <= searched(losses, costs, budget) + 0.01 * everything


def test_nothing_goes_where_all_fits():
    losses, costs = problem(0)
    assert choose(losses, costs, costs.total([0] * 4)) == [0] * 4
    assert choose([], costs, 0.0) == []


def test_what_is_out_of_reach_is_told():
    losses, costs = problem(1)
    assert choose(losses, costs, 0.99 * costs.total(cheapest(losses, costs))) is None


def test_roughly_is_within_the_budget_too():
    losses, costs = problem(2)
    budget = 0.5 * costs.total([0] * 4)
    assert costs.total(choose(losses, costs, budget, roughly=True)) <= budget
