"""Random steps on random networks: after an event the next ones run, and lose what those of a masked twin lose."""

from __future__ import annotations

from contextlib import suppress

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lit_prune import ChannelGraph
from lit_prune.training.inputs import step_of
from tests.graph.fuzz_check import Refused
from tests.graph.fuzz_glue import SPACE
from tests.graph.fuzz_networks import Network
from tests.training.fuzz_steps import USES, Training, step_holds, trainings

QUICK, MANY = 25, 1500
SEEDS = st.integers(0, 2**16)


def holds_or_refuses(training: Training, seed: int) -> None:
    with suppress(Refused):
        step_holds(training, seed)


@settings(max_examples=QUICK, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True)
@given(trainings(), SEEDS)
def test_random_steps(training: Training, seed: int) -> None:
    holds_or_refuses(training, seed)


@pytest.mark.slow
@settings(max_examples=MANY, deadline=None, suppress_health_check=list(HealthCheck))
@given(trainings(), SEEDS)
def test_many_random_steps(training: Training, seed: int) -> None:
    holds_or_refuses(training, seed)


def test_what_a_search_has_found() -> None:
    holds_or_refuses(Training(Network(6, []), "layer behind shift", 0), 476)
    holds_or_refuses(Training(Network(6, [("Demodulated", 0, "add", 0, False)]), "sparse", 0), 463)


@pytest.mark.parametrize("use", ["state", "notes"])
def test_state_that_no_step_has_left_yet_stays(use: str) -> None:
    training = Training(Network(8, [("conv 8", 0, "", 0, False)]), use, 0)
    batch = [torch.rand(2, 3, SPACE, SPACE, dtype=torch.float64)]
    step = step_of(training, batch, 0)
    assert step is not None
    assert "net.stem" in ChannelGraph.trace_calls(training, [step]).unprunable


# Losses that compare features with what does not shrink, or take them all together; and weights that do so with data.
HOLDING = [
    *"teacher hook state notes width contrast entropy norm".split(),
    *(f"weights {what}" for what in ("divided", "scaled", "that cut", "prepared")),
]


@pytest.mark.parametrize("use", USES)
def test_each_use(use: str) -> None:
    graph = step_holds(Training(Network(8, [("conv 8", 0, "", 0, False)]), use, 0), 3)
    held = "net.stem" in graph.unprunable
    assert held == (use in HOLDING), graph.unprunable
