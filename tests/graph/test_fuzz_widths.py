"""Networks that compute with widths, in all kinds of objects and with state: shrunk they equal their masked twins."""

from __future__ import annotations

from contextlib import suppress

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.graph.fuzz_check import Refused, holds
from tests.graph.fuzz_layers import GLUED, LAYERS
from tests.graph.fuzz_networks import Network, networks
from tests.graph.fuzz_outputs import OUTPUTS

QUICK, MANY = 50, 5000
SEEDS = st.integers(0, 2**16)


def holds_or_refuses(network: Network, seed: int, warm: bool) -> None:
    """Wrong is worse than refused: a condition on a width may only be met by much pruning."""
    with suppress(Refused):
        holds(network, seed, warm)


@settings(max_examples=QUICK, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True)
@given(networks(), SEEDS, st.booleans())
def test_networks_that_compute_with_widths(network: Network, seed: int, warm: bool) -> None:
    holds_or_refuses(network, seed, warm)


@pytest.mark.slow
@settings(max_examples=MANY, deadline=None, suppress_health_check=list(HealthCheck))
@given(networks(), SEEDS, st.booleans())
def test_many_networks_that_compute_with_widths(network: Network, seed: int, warm: bool) -> None:
    holds_or_refuses(network, seed, warm)


# Stems and removals by which a search has found wrong results.
FOUND = [
    (4, "group norm by width", 410),
    (8, "group norm of two", 815),
    (4, "attention of two", 484),
    (4, "vectors of two", 629),
]


@pytest.mark.parametrize(("stem", "name", "seed"), FOUND)
def test_what_a_search_has_found(stem: int, name: str, seed: int) -> None:
    holds_or_refuses(Network(stem, [(name, 0, "", 0, False)]), seed, warm=False)


@pytest.mark.parametrize("name", GLUED)
def test_each_function(name: str) -> None:
    holds_or_refuses(Network(8, [(name, 0, "", 0, False)]), 1, warm=False)


@pytest.mark.slow
@pytest.mark.parametrize("way", ["", "reads", "hooked"])
@pytest.mark.parametrize("stem", [6, 12])
@pytest.mark.parametrize("name", GLUED)
def test_each_function_in_all_ways(name: str, stem: int, way: str) -> None:
    for remembered in (False, True):
        for behind in ([], [("conv 8", 1, "", 0, False)]):
            holds_or_refuses(Network(stem, [(name, 0, "", 0, remembered), *behind], way=way), 2, warm=False)


@pytest.mark.parametrize("warm", [False, True])
@pytest.mark.parametrize("name", LAYERS)
def test_each_layer(name: str, warm: bool) -> None:
    holds_or_refuses(Network(8, [(name, 0, "", 0, False)]), 1, warm)


@pytest.mark.parametrize("output", OUTPUTS)
def test_each_object(output: str) -> None:
    graph = holds(Network(8, [("conv 8", 0, "", 0, False), ("conv 6", 0, "", 0, False)], output), 1, warm=False)
    assert {"heads.0", "heads.1"} <= graph.unprunable.keys()
    assert {group.name for group in graph.groups} >= {"layers.0.0", "layers.1.0"}, "only outputs stay"
