"""What must hold of any network: shrunk it computes what its masked twin does, and a trace changes nothing in it."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from lit_prune import ChannelGraph, mask_, shrink_
from lit_prune.errors import TraceError
from testing.invariant import difference, randomise_
from tests.graph.fuzz_glue import SPACE
from tests.graph.fuzz_networks import Network

TOLERANCE = 1e-4
CALLS = 3


class Refused(Exception):
    """A trace that says that it can't tell."""


def some_of(graph: ChannelGraph, rng: np.random.Generator) -> dict[str, np.ndarray]:
    """Any number of channels of each group, but not all; balanced groups lose equally many."""
    counts: dict[str, int] = {}
    for group in graph.groups:
        if group.name not in counts:
            together = group.balanced or (group.name,)
            counts.update(dict.fromkeys(together, int(rng.integers(min(graph[name].size for name in together)))))
    return {group.name: rng.permutation(group.size)[: counts[group.name]] for group in graph.groups}


def holds(network: Network, seed: int, warm: bool) -> ChannelGraph:
    """The invariant over several calls, and that a trace leaves no trace.

    Args:
        network: Its weights are changed.
        seed: Of weights, inputs and what is removed.
        warm: Whether it has run before.

    Raises:
        AssertionError: If it does not hold.
        Refused: If the network can't be traced, or not be cut as planned, and says so.
    """
    rng = np.random.default_rng(seed)
    torch.manual_seed(seed)
    randomise_(network, seed)
    batches = [torch.randn(2, 3, SPACE, SPACE, dtype=torch.float64) for _ in range(CALLS)]

    def twin() -> Network:
        other = network.twin()
        if warm:
            outputs(other, batches)
        return other

    traced = twin()
    before = state_of(traced)
    try:
        graph = ChannelGraph.trace(traced, batches[0])
        again = ChannelGraph.trace(traced, batches[0])
    except TraceError as error:
        assert state_of(traced) == before, "a trace that failed has changed the network"
        raise Refused(str(error)) from error
    assert state_of(traced) == before, "a trace has changed the network"
    assert [(g.name, g.slots) for g in graph.groups] == [(g.name, g.slots) for g in again.groups]

    plan = graph.plan(some_of(graph, rng))
    try:
        graph.rehearse(plan)
    except TraceError as error:
        raise Refused(str(error)) from error
    shrunk, masked = outputs(shrink_(twin(), plan), batches), outputs(mask_(twin(), plan), batches)
    worst = difference(shrunk, masked)
    assert worst < TOLERANCE, f"differs by {worst:g}"
    return graph


@torch.no_grad()
def outputs(network: Network, batches: list[Tensor]) -> list[list[Tensor]]:
    """What each call has returned, or left behind."""
    return [[each.clone() for each in network.read(network(batch))] for batch in batches]


def state_of(network: nn.Module) -> list[Any]:
    """Tensors, modes and attributes of a network, and the random state, to be compared."""
    found: list[Any] = [torch.get_rng_state().tolist(), random.getstate()[1], np.random.get_state()[1].tolist()]  # type: ignore[index]  # noqa: NPY002
    for name, module in network.named_modules():
        for key, value in (*vars(module).items(), *module._parameters.items(), *module._buffers.items()):
            if key not in ("_parameters", "_buffers", "_modules"):
                found.append((name, key, _plain(value)))
    return found


def _plain(value: Any) -> Any:
    if isinstance(value, Tensor):
        return id(value), tuple(value.shape), value.detach().flatten().tolist()
    if isinstance(value, dict):
        return [(key, _plain(item)) for key, item in value.items()]
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    return repr(value) if not callable(value) else id(value)
