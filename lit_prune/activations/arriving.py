"""What arrives at the weights that read a network's channels, summed up over calibration batches."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from lit_prune.activations.calibration import run_batches
from lit_prune.activations.objects import CalibrationBatch
from lit_prune.activations.samples import PRODUCTS, Product
from lit_prune.common.running import in_full_precision, untouched
from lit_prune.errors import CalibrationError

# Of a batch, at least so many rows go into covariances, and as many as there are inputs.
_ROWS = 1024
# Of more inputs than these, covariances would take gigabytes.
_MOST_INPUTS = 4096


@dataclass(frozen=True, eq=False)
class Arrivals:
    """Statistics of what a weight is multiplied with, for each index of the dimension that counts its inputs.

    Attributes:
        dim: That dimension: 1, or 0 of a transposed convolution.
        size: ``(inputs,)`` mean of absolute values.
        nonzero: ``(inputs,)`` share of values that are not zero.
        variance: ``(inputs,)``; of a grouped convolution the mean over its groups.
        covariance: ``(groups, inputs of a group, inputs of a group)``; ``None`` where it was not asked for, or is of
            more than 4,096 inputs.
    """

    dim: int
    size: Tensor
    nonzero: Tensor
    variance: Tensor
    covariance: Tensor | None = None


def collect_arrivals(
    network: nn.Module,
    weights: Collection[str],
    batches: Iterable[CalibrationBatch | Sequence[Any]],
    forward: Callable[..., Any] | None = None,
    covariances: bool = False,
) -> dict[str, Arrivals]:
    """Run the live network once over ``batches`` and return what arrived at weights of convolutions and linear layers.

    The network, in eval mode meanwhile, and all random states stay as they are. Batches are reduced as they run, so
    memory does not grow with their number.

    Args:
        network: The network, pruned or not.
        weights: Names of parameters.
        batches: Inputs of the forward, on the device of the network; or positional ones alone.
        forward: Takes them; by default the network.
        covariances: Whether those are wanted.

    Returns:
        Name of a weight to its arrivals, on the CPU in double precision; without weights that are not run.

    Raises:
        CalibrationError: If there is no batch, one is empty or can't be run, or a value is NaN or infinite; the message
            names the batch or the weight.

    Example:
        >>> net = nn.Sequential(nn.Conv2d(3, 4, 1), nn.ReLU(), nn.Conv2d(4, 2, 1))
        >>> found = collect_arrivals(net, ["2.weight"], [(torch.rand(2, 3, 8, 8),)])
        >>> found["2.weight"].size.shape
        torch.Size([4])
    """
    names = {id(parameter): name for name, parameter in network.named_parameters() if name in weights}
    listening = _Listening(names, covariances)
    with untouched(network):
        run_batches(forward or network, batches, lambda: listening)
    return {name: sums.arrivals(name) for name, sums in listening.sums.items()}


class _Listening(TorchFunctionMode):
    """Adds up what arrives at some weights."""

    def __init__(self, names: dict[int, str], covariances: bool) -> None:
        super().__init__()
        self.sums: dict[str, _Sums] = {}
        self._names = names
        self._covariances = covariances

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func in PRODUCTS:
            product = Product(func, args, kwargs or {})
            name = self._names.get(id(product.weight))
            if name is not None:
                with in_full_precision(product.weight.device):
                    values = product.values().float()
                    if name not in self.sums:
                        self.sums[name] = _Sums(values, product.groups, product.is_transposed, self._covariances)
                    self.sums[name].add(values)
        return func(*args, **(kwargs or {}))


class _Sums:
    """Over all that was seen of one weight's inputs, counted from the first batch's means."""

    def __init__(self, values: Tensor, groups: int, is_transposed: bool, covariances: bool) -> None:
        inputs = values.shape[1] // groups
        self.groups, self.is_transposed = groups, is_transposed
        self.rows, self.sampled, self._shift = 0, 0, values.mean(0)
        self._generator = torch.Generator().manual_seed(0)
        self.size, self.nonzero, self.mean, self.square = torch.zeros(4, values.shape[1], device=values.device)
        is_kept = covariances and inputs <= _MOST_INPUTS
        self.gram = values.new_zeros(groups, inputs, inputs) if is_kept else None
        self.mean_of_sample = values.new_zeros(groups, inputs)

    def add(self, values: Tensor) -> None:
        """Take in ``(rows, inputs)``."""
        self.rows += len(values)
        self.size += values.abs().sum(0)
        self.nonzero += (values != 0).sum(0)
        values = values - self._shift
        self.mean += values.sum(0)
        self.square += values.square().sum(0)
        if self.gram is not None:
            wanted = max(_ROWS, self.gram.shape[1])
            if len(values) > wanted:
                picked = torch.randperm(len(values), generator=self._generator)[:wanted]
                values = values[picked.to(values.device)]
            grouped = values.reshape(len(values), *self.gram.shape[:2]).transpose(0, 1)
            self.sampled += len(values)
            self.gram += grouped.transpose(1, 2) @ grouped
            self.mean_of_sample += grouped.sum(1)

    def arrivals(self, name: str) -> Arrivals:
        """What is told of them."""
        size, nonzero, mean, square = (
            each.cpu().double() / self.rows for each in (self.size, self.nonzero, self.mean, self.square)
        )
        variance = (square - mean.square()).clamp(min=0)
        if not (size.isfinite().all() and variance.isfinite().all()):
            raise CalibrationError(
                f"What arrives at {name} has values on the calibration batches that are NaN, infinite, or too large to "
                "be multiplied. Look at what the network computes there."
            )
        covariance = None
        if self.gram is not None:
            mean_of_sample = self.mean_of_sample.cpu().double() / self.sampled
            covariance = self.gram.cpu().double() / self.sampled
            covariance -= mean_of_sample[:, :, None] * mean_of_sample[:, None]
        if not self.is_transposed:
            # Each group of a convolution reads its own inputs by the same indices of the weight.
            size, nonzero, variance = (each.reshape(self.groups, -1).mean(0) for each in (size, nonzero, variance))
        return Arrivals(0 if self.is_transposed else 1, size, nonzero, variance, covariance)
