"""What of a network can be pruned, and why the rest cannot: the table behind `lit-prune inspect`."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from rich.console import Group
from rich.padding import Padding
from rich.table import Table
from rich.text import Text
from torch import Tensor, nn

from lit_prune.common.names import count_parameters, layer_of
from lit_prune.cost.counts import Cost
from lit_prune.graph import ChannelGraph, ChannelGroup
from lit_prune.report.tables import human, ratio_bar

_OUTPUT = "reaches the network's output"
_INDENT = 2  # of what is said of a name, below it


@dataclass(frozen=True)
class Coverage:
    """How many output channels of convolutions and linear layers can be pruned.

    Attributes:
        prunable: Channels in a group.
        outputs: Channels that are the network's output, which nobody wants to prune.
        total: All of them.
    """

    prunable: int
    outputs: int
    total: int

    @property
    def ratio(self) -> float:
        """The prunable ratio of all channels but the outputs."""
        return self.prunable / max(1, self.total - self.outputs)


def coverage(graph: ChannelGraph, network: nn.Module) -> Coverage:
    """Count the output channels of a network's convolutions and linear layers.

    Example:
        >>> import torch
        >>> network = nn.Sequential(nn.Conv2d(3, 8, 1), nn.Conv2d(8, 4, 1))
        >>> coverage(ChannelGraph.trace(network, torch.zeros(1, 3, 4, 4)), network)
        Coverage(prunable=8, outputs=4, total=12)
    """
    sizes = layer_widths(network)
    prunable = dict.fromkeys(sizes, 0)
    for group in graph.groups:
        for layer in group.layers:
            if layer in sizes:
                prunable[layer] += _channels_of(group, layer, network)
    outputs = sum(
        sizes[layer] - prunable[layer]
        for layer, reason in graph.unprunable.items()
        if layer in sizes and reason.startswith(_OUTPUT)
    )
    return Coverage(sum(prunable.values()), outputs, sum(sizes.values()))


def layer_widths(network: nn.Module) -> dict[str, int]:
    """Output channels of every convolution and linear layer, by name."""
    widths = {}
    for name, module in network.named_modules():
        width = getattr(module, "out_channels", getattr(module, "out_features", None))
        if isinstance(width, int) and isinstance(getattr(module, "weight", None), Tensor):
            widths[name] = width
    return widths


def channel_cost(graph: ChannelGraph, group: ChannelGroup, network: nn.Module) -> Cost:
    """What goes with one channel of a group: parameters of all coupled layers, and multiply-adds of one example.

    Where groups must stay equally wide, a channel of each other one goes as well; those are not counted here.

    Example:
        >>> import torch
        >>> network = nn.Sequential(nn.Conv2d(3, 8, 1), nn.Conv2d(8, 4, 1))
        >>> graph = ChannelGraph.trace(network, torch.zeros(1, 3, 5, 5))
        >>> channel_cost(graph, graph.groups[0], network)
        Cost(params=8, macs=175)
    """
    sizes = {name: list(parameter.shape) for name, parameter in network.named_parameters()}
    left = {name: list(sizes[name]) for name, _ in group.members if name in sizes}
    for (name, dim), members in group.members.items():
        if name in left:
            left[name][dim] -= int((members.channels == 0).sum())
    params = sum(math.prod(sizes[name]) - math.prod(rest) for name, rest in left.items())
    return Cost(params, graph.macs - graph.macs_without({group.name: [0]}))


def inspection(graph: ChannelGraph, network: nn.Module, title: str = "") -> Group:
    """All groups of a network, all unprunable layers with the reason, and the totals, to be printed by rich."""
    widths = layer_widths(network)
    names = [*(group.name for group in graph.groups), *graph.unprunable]
    table = Table(title=title or None, title_style="bold", header_style="bold")
    # A name can be copied only if it is whole.
    table.add_column("group, or layer", overflow="fold", min_width=_INDENT + max(map(len, names), default=0))
    for heading in ("channels", "params\nper channel", "MACs\nper channel"):
        table.add_column(heading, justify="right", no_wrap=True)
    for group in graph.groups:
        cost = channel_cost(graph, group, network)
        others = [layer for layer in group.layers if layer != group.name.partition("#")[0]]
        partners = [name for name in group.balanced if name != group.name]
        notes = [
            Text(f"{words} {', '.join(names)}", style="dim")
            for words, names in (("coupled with", others), ("loses as many as", partners))
            if names
        ]
        table.add_row(_cell(group.name, notes), str(group.size), human(cost.params), human(cost.macs))
    if graph.groups and graph.unprunable:
        table.add_section()
    for layer, reason in graph.unprunable.items():
        note = Text.assemble(("unprunable", "yellow"), f": {reason}")
        table.add_row(_cell(layer, [note]), str(widths[layer]) if layer in widths else "", "", "")
    return Group(table, _totals(graph, network))


def _cell(name: str, notes: list[Text]) -> Group:
    return Group(name, *(Padding(note, (0, 0, 0, _INDENT), expand=False) for note in notes))


def _totals(graph: ChannelGraph, network: nn.Module) -> Table:
    found = coverage(graph, network)
    totals = Table.grid(padding=(0, 2))
    totals.add_column(style="bold", no_wrap=True)
    totals.add_column()
    inner = found.total - found.outputs
    totals.add_row("groups", f"{len(graph.groups)}")
    totals.add_row(
        "prunable",
        Text.assemble(
            ratio_bar(found.prunable, inner), f", {found.prunable:,} of {inner:,} channels of layers, outputs left out"
        ),
    )
    unsupported = ", ".join(f"{name} ({count}×)" for name, count in graph.unsupported.items())
    totals.add_row("operations without a rule", unsupported or "none")
    totals.add_row("parameters", f"{human(count_parameters(network))} ({count_parameters(network):,})")
    totals.add_row("multiply-adds", f"{human(graph.macs)} ({graph.macs:,}) an image")
    return totals


def _channels_of(group: ChannelGroup, layer: str, network: nn.Module) -> int:
    module: Any = network.get_submodule(layer)
    dim = 1 if getattr(module, "transposed", False) else 0
    members = next((own for (name, d), own in group.members.items() if layer_of(name) == layer and d == dim), None)
    if members is None:
        return 0
    groups = module.groups if dim == 1 else 1
    return len(np.unique(members.indices)) * groups
