"""What of a network can be pruned, and why the rest cannot: the table behind `lit-prune inspect`."""

from __future__ import annotations

import difflib
import inspect
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Group
from rich.table import Table
from rich.text import Text
from torch import Tensor, nn

from lit_prune.cost import count_parameters
from lit_prune.graph import ChannelGraph, ChannelGroup
from lit_prune.report import human, share_bar

_OUTPUT = "reaches the network's output"
# Of a video; networks with embedded positions take no other number.
_FRAMES = 16


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
    def share(self) -> float:
        """The prunable share of all channels but the outputs."""
        return self.prunable / max(1, self.total - self.outputs)


def load_network(name: str, image_size: int | None = None) -> tuple[nn.Module, Tensor]:
    """Build a network by name, and example images for it.

    Args:
        name: An Ultralytics configuration (`"yolov8n.yaml"`) or file (`"best.pt"`), `"torchvision:NAME"` or
            `"timm:NAME"`; the latter two with random weights.
        image_size: Height and width of the example images; by default what the network is made for, else 640 for
            Ultralytics and 224 for the others.

    Returns:
        The network in eval mode, and images (1, C, H, W); of a network for videos (1, C, T, H, W).

    Raises:
        FileNotFoundError: If there is no such configuration or file.
        ImportError: If the package that the name asks for is missing.
        ValueError: If the package knows no such network; the message has the nearest names.

    Example:
        >>> network, images = load_network("torchvision:resnet18")
        >>> type(network).__name__, tuple(images.shape)
        ('ResNet', (1, 3, 224, 224))
    """
    source, colon, model = name.partition(":")
    if colon and source == "torchvision":
        network, leading, size = _from_torchvision(model, image_size)
    elif colon and source == "timm":
        network, *leading, size = _from_timm(model)
    elif Path(name).suffix in {".yaml", ".yml", ".pt"}:
        network, size = _from_ultralytics(name), 640
        leading = [int(network.yaml.get("channels", 3))]
    else:
        raise ValueError(
            f"{name!r} is no network that can be inspected: give an Ultralytics file that ends in .yaml or .pt, "
            f"torchvision:NAME (torchvision:resnet50) or timm:NAME (timm:convnext_tiny)."
        )
    side = size if image_size is None else image_size
    return network.eval(), torch.zeros(1, *leading, side, side)


def coverage(graph: ChannelGraph, network: nn.Module) -> Coverage:
    """Count the output channels of a network's convolutions and linear layers.

    Example:
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
        for layer, reason in graph.frozen.items()
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


def inspection(graph: ChannelGraph, network: nn.Module, title: str = "") -> Group:
    """All groups of a network, all frozen layers with the reason, and the totals, to be printed by rich."""
    table = Table(title=title or None, title_style="bold", header_style="bold")
    table.add_column("group", overflow="fold")
    table.add_column("coupled with", overflow="fold", style="dim")
    table.add_column("channels", justify="right")
    table.add_column("prunable", overflow="fold")
    for group in graph.groups:
        yes = Text("yes", style="green")
        partners = [name for name in group.balanced if name != group.name]
        if partners:
            yes.append(f"; loses as many as {', '.join(partners)}", style="dim")
        others = [layer for layer in group.layers if layer != group.name.partition("#")[0]]
        table.add_row(group.name, ", ".join(others), str(group.size), yes)
    if graph.groups and graph.frozen:
        table.add_section()
    widths = layer_widths(network)
    for layer, reason in graph.frozen.items():
        width = str(widths[layer]) if layer in widths else ""
        table.add_row(layer, "", width, Text.assemble(("no", "yellow"), f": {reason}"))
    return Group(table, _totals(graph, network))


def _totals(graph: ChannelGraph, network: nn.Module) -> Table:
    found = coverage(graph, network)
    totals = Table.grid(padding=(0, 2))
    totals.add_column(style="bold")
    totals.add_column()
    inner = found.total - found.outputs
    totals.add_row("groups", f"{len(graph.groups)}, of {sum(group.size for group in graph.groups):,} channels")
    totals.add_row(
        "prunable",
        Text.assemble(share_bar(found.prunable, inner), f" of {inner:,} layer channels, network outputs left out"),
    )
    unsupported = ", ".join(f"{name} ({count}×)" for name, count in graph.unsupported.items())
    totals.add_row("operations without a rule", unsupported or "none")
    totals.add_row("parameters", f"{human(count_parameters(network))} ({count_parameters(network):,})")
    totals.add_row("multiply-adds", f"{human(graph.macs)} ({graph.macs:,}) an image")
    return totals


def _channels_of(group: ChannelGroup, layer: str, network: nn.Module) -> int:
    module: Any = network.get_submodule(layer)
    dim = 1 if getattr(module, "transposed", False) else 0
    members = group.members.get((f"{layer}.weight", dim))
    if members is None:
        return 0
    groups = module.groups if dim == 1 else 1
    return len(np.unique(members.indices)) * groups


def _from_torchvision(name: str, image_size: int | None) -> tuple[nn.Module, list[int], int]:
    """The network, the size of an example before height and width, and its height."""
    try:
        from torchvision import models
    except ImportError as error:
        raise ImportError("torchvision is not installed. Install it with: pip install torchvision") from error
    if name not in models.list_models():
        raise ValueError(f"torchvision has no model {name!r}.{_near(name, models.list_models())}")
    builder = models.get_model_builder(name)
    kind = builder.__module__.removeprefix("torchvision.models.").partition(".")[0]
    if kind == "optical_flow":
        raise ValueError(f"torchvision's {name} takes two images: trace it with ChannelGraph.trace(network, one, two).")
    size = 224 if image_size is None else image_size
    options: dict[str, Any] = {"init_weights": False} if name in {"googlenet", "inception_v3"} else {}
    if kind == "detection" and not name.startswith("ssd"):
        # They would enlarge the images to 800 pixels.
        options |= {"min_size": size, "max_size": size}
    if "weights_backbone" in inspect.signature(builder).parameters:
        # By default they are downloaded, also where the rest is random.
        options["weights_backbone"] = None
    network: nn.Module = models.get_model(name, weights=None, **options)
    if kind == "video":
        return network, [3, _FRAMES], models.get_model_weights(name).DEFAULT.transforms().crop_size[0]
    return network, [3], size


def _from_timm(name: str) -> tuple[nn.Module, int, int]:
    try:
        import timm
    except ImportError as error:
        raise ImportError("timm is not installed. Install it with: pip install timm") from error
    if name.partition(".")[0] not in timm.list_models():
        raise ValueError(f"timm has no model {name!r}.{_near(name, timm.list_models())}")
    network = timm.create_model(name, pretrained=False)
    channels, height, _ = network.default_cfg.get("input_size", (3, 224, 224))
    return network, channels, height


def _from_ultralytics(name: str) -> Any:
    from lit_prune.yolo.networks import build_network

    return build_network(name)


def _near(name: str, known: list[str]) -> str:
    near = difflib.get_close_matches(name, known, n=4, cutoff=0.5)
    return f" Did you mean {', '.join(near)}?" if near else f" It has {len(known)} models, such as {known[0]}."
