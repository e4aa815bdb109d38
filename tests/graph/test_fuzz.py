"""Random networks, random plans: a shrunk network computes what its masked twin does."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lit_prune import ChannelGraph, mask_, shrink_
from lit_prune.surgery.adoption import adopt_shapes_
from testing.invariant import difference, randomise_
from tests.graph.fuzz_check import TOLERANCE, some_of
from tests.graph.strategies import SPACE, Program, programs

QUICK, MANY = 200, 5000


def holds(network: Program, seed: int) -> None:
    """The invariant, twice; composition; costs; and shapes that are adopted both ways.

    Raises:
        AssertionError: If one does not hold.
    """
    torch.manual_seed(seed)
    rng = np.random.default_rng(seed)
    network = randomise_(network.double().eval(), seed)
    images = torch.randn(2, 3, SPACE, SPACE, dtype=torch.float64)
    graph = ChannelGraph.trace(network, images)
    assert not graph.unsupported

    removal = some_of(graph, rng)
    plan = graph.plan(removal)
    shrunk = shrink_(copy.deepcopy(network), plan)
    assert difference(shrunk(images), mask_(copy.deepcopy(network), plan)(images)) < TOLERANCE
    again = ChannelGraph.trace(shrunk, images)
    attends = any(step[0] == "attention" for step in network.steps)
    if not attends or all(group.size - len(removal[group.name]) > 1 for group in graph.groups):
        # A product over a width of one is an outer product, which torch computes, and a trace counts, otherwise.
        assert graph.macs_without(removal) == again.macs

    second = again.plan(some_of(again, rng))
    twice = shrink_(copy.deepcopy(shrunk), second)
    assert difference(twice(images), mask_(copy.deepcopy(shrunk), second)(images)) < TOLERANCE
    both = shrink_(copy.deepcopy(network), plan.then(second))
    assert difference(both(images), twice(images)) == 0

    dense = copy.deepcopy(network)
    adopt_shapes_(dense, shrunk.state_dict())
    dense.load_state_dict(shrunk.state_dict())
    assert difference(dense(images), shrunk(images)) == 0
    adopt_shapes_(dense, network.state_dict())
    dense.load_state_dict(network.state_dict())
    assert difference(dense(images), network(images)) == 0


@settings(max_examples=QUICK, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True)
@given(programs(), st.integers(0, 2**16))
def test_random_networks(network: Program, seed: int) -> None:
    with torch.no_grad():
        holds(network, seed)


@pytest.mark.slow
@settings(max_examples=MANY, deadline=None, suppress_health_check=list(HealthCheck))
@given(programs(most=16), st.integers(0, 2**16))
def test_many_random_networks(network: Program, seed: int) -> None:
    with torch.no_grad():
        holds(network, seed)
