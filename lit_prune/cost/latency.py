"""How long a network takes, measured side by side."""

from __future__ import annotations

import statistics
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn

from lit_prune.common.arguments import check_whole
from lit_prune.common.initialized import check_network
from lit_prune.common.running import evaluating
from lit_prune.errors import ArgumentError, ArgumentTypeError


@dataclass(frozen=True)
class Latency:
    """How long one forward took, and under which conditions.

    Attributes:
        median_ms: Median over the repeats, in milliseconds.
        fastest_ms: The fastest repeat, in milliseconds: the figure that other work on the machine disturbs least.
        repeats: Number of timed forwards.
        batch_size: Examples in the batch.
        image_size: Size of one example without its channels: ``(height, width)`` of an image.
        threads: CPU threads of torch.
        device: ``"cpu"``, or the name of the accelerator.
    """

    median_ms: float
    fastest_ms: float
    repeats: int
    batch_size: int
    image_size: tuple[int, ...]
    threads: int
    device: str

    def __str__(self) -> str:
        """The figure with its conditions, in one line."""
        size = "×".join(map(str, self.image_size))
        where = f"{self.threads} thread{'s' * (self.threads != 1)}" if self.device == "cpu" else self.device
        return f"{self.median_ms:.1f} ms (batch {self.batch_size}, {size}, {where}, median of {self.repeats})"

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        return asdict(self)


def measure_latency(
    networks: Mapping[str, nn.Module], *inputs: Any, repeats: int = 30, warmup: int = 5
) -> dict[str, Latency]:
    """Time the forward of several networks side by side, in eval mode and without gradients.

    The networks take turns, in another order each round, so that a machine that slows down meanwhile slows all of
    them alike. Modes are restored.

    Args:
        networks: What to time, by name; on the device of the inputs.
        *inputs: The example inputs of each; the first tensor among them tells batch and image size.
        repeats: Timed forwards of each network.
        warmup: Untimed forwards of each before.

    Returns:
        For each name what was measured.

    Raises:
        ArgumentTypeError: If networks are not given by name, or one is none.
        ArgumentError: If there is no network or no tensor, ``repeats`` is below 1, or ``warmup`` is negative.

    Example:
        >>> found = measure_latency({"wide": nn.Linear(64, 64), "narrow": nn.Linear(64, 8)}, torch.zeros(4, 64))
        >>> found["narrow"].batch_size, found["narrow"].repeats
        (4, 30)
    """
    if not isinstance(networks, Mapping):
        raise ArgumentTypeError(
            f"measure_latency takes networks by name, such as {{'pruned': network}}, but got a "
            f"{type(networks).__name__}."
        )
    for name, network in networks.items():
        check_network(name, network)
    first = next((value for value in inputs if isinstance(value, Tensor) and value.dim() > 0), None)
    if not networks or first is None:
        raise ArgumentError("measure_latency needs at least one network and one input tensor with a batch dimension.")
    check_whole("repeats", repeats)
    check_whole("warmup", warmup, least=0)
    names = list(networks)
    seconds: dict[str, list[float]] = {name: [] for name in names}
    with evaluating(*networks.values()), torch.no_grad():
        for turn in range(-warmup, repeats):
            shift = turn % len(names)
            for name in names[shift:] + names[:shift]:
                synchronize(first.device)
                start = time.perf_counter()
                networks[name](*inputs)
                synchronize(first.device)
                if turn >= 0:
                    seconds[name].append(time.perf_counter() - start)
    return {
        name: Latency(
            median_ms=1e3 * statistics.median(taken),
            fastest_ms=1e3 * min(taken),
            repeats=repeats,
            batch_size=first.shape[0],
            image_size=tuple(first.shape[2:]),
            threads=torch.get_num_threads(),
            device=device_name(first.device),
        )
        for name, taken in seconds.items()
    }


def synchronize(device: torch.device) -> None:
    """Wait until a device has done what it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()


def device_name(device: torch.device) -> str:
    """``"cpu"``, or the name of an accelerator."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
