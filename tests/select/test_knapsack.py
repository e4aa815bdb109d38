"""The choice under a budget is as good as that of a search through all of them."""

import pytest

from lit_prune.select.knapsack import cheapest, choose
from testing.knapsacks import excess, problem


@pytest.mark.parametrize("seed", range(24))
@pytest.mark.parametrize("part", [0.25, 0.5, 0.8])
def test_it_loses_hardly_more_than_the_best(seed, part):
    assert excess(*problem(seed), part) <= 0.01


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
