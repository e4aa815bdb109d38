"""Several networks measured side by side, for a report."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn

from lit_prune.cost.counts import Cost
from lit_prune.cost.latency import measure_latency


def measure_side_by_side(
    networks: Mapping[str, nn.Module], image_shape: Sequence[int], batch_sizes: Sequence[int]
) -> dict[str, dict[str, Any]]:
    """What each of several networks costs, as plain data for a report.

    Args:
        networks: What to measure, by name, on the CPU.
        image_shape: Of one image: channels, height, width.
        batch_sizes: At which latency is measured, by :func:`measure_latency`.

    Returns:
        For each name what :class:`Cost` and each :class:`Latency` tell: ``params``, ``macs``, ``latency``.
    """
    image = torch.zeros(1, *image_shape)
    measured: dict[str, dict[str, Any]] = {
        name: {**Cost.of(network, image).to_dict(), "latency": []} for name, network in networks.items()
    }
    for size in batch_sizes:
        for name, latency in measure_latency(networks, torch.rand(size, *image_shape)).items():
            measured[name]["latency"].append(latency.to_dict())
    return measured
