"""Networks of many widths, drawn so that each layer is seen with most combinations of few and many channels."""

from __future__ import annotations

import copy
import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from torch import Tensor, nn

from lit_prune.common._compat import ConvNd
from lit_prune.common.arguments import check_kind
from lit_prune.common.initialized import check_network
from lit_prune.common.running import untouched
from lit_prune.cost.profile.layer_widths import widths_of
from lit_prune.errors import ArgumentError
from lit_prune.graph import ChannelGraph
from lit_prune.surgery import shrink_

# Of all its channels each layer keeps at least this ratio. The first networks keep the same of every layer; the mean of
# the others goes from the one to the other: some are narrow and others wide as a whole.
_LEAST, _EVEN, _MEANS = 0.1, (1.0, 0.5, 0.2), (0.25, 0.95)
# Devices compute channels in blocks, and take longer where a block is not full: so some widths are of larger blocks.
_TIMES = (1, 2, 4)
_LAYERS = (ConvNd, nn.Linear)

Shapes = Mapping[str, tuple[int, int]]
"""Layer to the (inputs, outputs) of its weight."""


@dataclass(frozen=True)
class Work:
    """What a layer does at one output channel.

    Attributes:
        elements: That leave it.
        macs: Multiply-adds, for each input channel.
    """

    elements: float
    macs: float


class Drawn:
    """Copies of a network that are cut to drawn widths; the first is whole.

    Args:
        network: Any module; it stays as it is.
        inputs: The one tensor that it takes; it may lie elsewhere, in another precision.
        number: How many.
        round_to: Widths are multiples of it; of narrow layers, of a part of it.
        seed: Of the draws.

    Attributes:
        name: The class of the network.
        inputs: As given.
        round_to: As given.
        graph: Its graph.

    Raises:
        ArgumentTypeError: If the network is none, or the inputs are no tensor.
        ArgumentError: If there is nothing in the network whose width could be drawn.
        TraceError: If the forward fails.

    Example:
        >>> import torch
        >>> drawn = Drawn(nn.Sequential(nn.Conv2d(3, 32, 3), nn.Conv2d(32, 4, 3)), torch.zeros(1, 3, 8, 8), 4)
        >>> [widths_of(network[0]) for network in drawn]
        [(3, 32), (3, 16), (3, 8), (3, 8)]
    """

    def __init__(self, network: nn.Module, inputs: Tensor, number: int, round_to: int = 8, seed: int = 0) -> None:
        check_network("network", network)
        check_kind("inputs", inputs, Tensor)
        self._network = copy.deepcopy(network).eval().float()
        own = next(iter(network.parameters()), inputs).device
        self._inputs = (inputs.float() if inputs.is_floating_point() else inputs).to(own).contiguous()
        self.name, self.inputs, self.round_to = type(network).__name__, inputs, round_to
        self.graph = ChannelGraph.trace(self._network, self._inputs)
        bundles = dict.fromkeys(group.bundle for group in self.graph.groups)
        if not bundles:
            raise ArgumentError(f"No layer of {type(network).__name__} can have fewer channels: nothing to profile.")
        rng = np.random.default_rng(seed)
        even = [[ratio] * len(bundles) for ratio in _EVEN[:number]]
        rest = number - len(even)
        # Each layer's ratios are spread over the networks, in an order of its own.
        means = (np.linspace(*_MEANS, rest) - _LEAST) / (1 - _LEAST)
        evenly = [(rng.permutation(rest) + 0.5) / max(1, rest) for _ in bundles]
        # The mean of a power of what is spread evenly from 0 to 1 is 1 / (1 + power).
        spread = [each ** (1 / means - 1) * (1 - _LEAST) + _LEAST for each in evenly]
        self._removals: list[dict[str, range]] = []
        for ratios in [*even, *np.array(spread).T.tolist()]:
            removal: dict[str, range] = {}
            for bundle, ratio in zip(bundles, ratios, strict=True):
                group, times = self.graph[bundle[0]], int(rng.choice(_TIMES))
                size = group.size
                block = group.step(round_to) * (times if len(self._removals) >= len(even) else 1)
                while block > 1 and block > size // 2:
                    block //= 2
                # Whole is whole, be it no multiple of anything.
                width = size if ratio == 1 else min(size, max(block, block * round(size * ratio / block)))
                removal |= {name: range(width, size) for name in bundle}
            self._removals.append(removal)

    def __len__(self) -> int:
        return len(self._removals)

    def __iter__(self) -> Iterator[nn.Module]:
        """Each network, made when its turn comes."""
        for removal in self._removals:
            yield shrink_(copy.deepcopy(self._network), self.graph.plan(removal)).eval()

    @property
    def made_of(self) -> str:
        """What tells these networks from those of another network, input or step of widths."""
        removed = [{name: [gone.start, gone.stop] for name, gone in removal.items()} for removal in self._removals]
        told = json.dumps([self.name, [*self._inputs.shape], self.round_to, [*self.work], removed])
        return hashlib.sha256(told.encode()).hexdigest()

    @cached_property
    def work(self) -> dict[str, Work]:
        """The layers that run in a forward of the whole network, in their order, and what each does there."""
        modules = self._network.named_modules()
        names: dict[nn.Module, str] = {module: name for name, module in modules if isinstance(module, _LAYERS)}
        found: dict[str, Work] = {}

        def note(module: nn.Module, given: object, output: Tensor) -> None:
            inputs, outputs = widths_of(module)
            before = found.get(names[module], Work(0.0, 0.0))
            elements = output.numel() / outputs
            taps = module.weight.numel() / (inputs * outputs)  # type: ignore[operator]
            found[names[module]] = Work(before.elements + elements, before.macs + elements * taps)

        handles = [module.register_forward_hook(note) for module in names]
        try:
            with untouched(self._network):
                self._network(self._inputs)
        finally:
            for handle in handles:
                handle.remove()
        return found


def shapes_of(network: nn.Module, layers: Mapping[str, object]) -> dict[str, tuple[int, int]]:
    """The (inputs, outputs) of some layers of a network."""
    return {name: widths_of(network.get_submodule(name)) for name in layers}
