"""Statistics of BatchNorms: those of the whole network, and those of what is left of it."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lit_prune.common._compat import NormBase
from lit_prune.common.names import layer_of
from lit_prune.errors import CalibrationError

# How many steps statistics take to settle, and how far those of training and calibration may lie apart.
_SETTLED = 30
_MOST_SHIFT = 3.0
_MOST_RATIO = 16.0
_ARGUMENTS = ("input", "running_mean", "running_var", "weight", "bias", "training", "momentum", "eps")


@dataclass(frozen=True, eq=False)
class Statistics:
    """Of what enters a BatchNorm: how many values a channel, their ``(channels,)`` means and variances.

    They lie on the CPU: not every device has double precision.
    """

    number: int
    mean: Tensor
    var: Tensor

    @classmethod
    def of(cls, values: Tensor) -> Statistics:
        """Of ``(N, channels, ...)``."""
        flat = values.detach().float()[..., None].flatten(2)
        # One dimension after the other: over several at once torch takes seven times as long.
        mean = flat.mean(2).mean(0)
        var = (flat - mean[:, None]).square_().mean(2).mean(0)
        return cls(values.numel() // values.shape[1], mean.cpu().double(), var.cpu().double())

    def __add__(self, other: Statistics) -> Statistics:
        """Those of both."""
        number = self.number + other.number
        part = other.number / number
        between = (1 - part) * part * (self.mean - other.mean).square()
        return Statistics(
            number,
            (1 - part) * self.mean + part * other.mean,
            (1 - part) * self.var + part * other.var + between,
        )

    def of_channels(self, kept: Tensor | None) -> Statistics:
        """Of some channels; of all where it is None."""
        return self if kept is None else Statistics(self.number, self.mean[kept], self.var[kept])

    @property
    def unbiased(self) -> Tensor:
        """The variances that a BatchNorm keeps."""
        return self.var * self.number / max(1, self.number - 1)


def check_alike(
    network: nn.Module,
    kept_up: Collection[str],
    kept: Mapping[str, Tensor],
    statistics: Mapping[tuple[str, int, int], Statistics],
) -> None:
    """Raise if what enters the first BatchNorm that a training keeps up is nothing like what entered in training.

    A step may prepare its inputs before the network gets them, which a calibration batch does not go through.

    Raises:
        CalibrationError: With both means.
    """
    place = next((place for place in statistics if place[0] in kept_up), None)
    if place is None:
        return
    norm = network.get_submodule(layer_of(place[0]))
    seen = getattr(norm, "num_batches_tracked", None)
    if not isinstance(norm, NormBase) or norm.running_mean is None or seen is None or int(seen) < _SETTLED:
        return
    chosen = kept.get(place[0], torch.arange(norm.num_features))
    buffers = dict(norm.named_buffers())
    mean, var = (buffers[name].detach().cpu().double()[chosen] for name in ("running_mean", "running_var"))
    found, tiny = statistics[place], torch.finfo(torch.float32).tiny
    shift = float(((found.mean - mean).abs() / (var + found.var).clamp(min=tiny).sqrt()).median())
    ratio = float((found.var.clamp(min=tiny) / var.clamp(min=tiny)).log().median())
    if are_unlike(math.exp(ratio), shift):
        raise CalibrationError(unlike(layer_of(place[0]), math.exp(ratio), shift))


def are_unlike(ratio: float, shift: float) -> bool:
    """Whether calibration data are nothing like those of training; as for :func:`unlike`."""
    return shift > _MOST_SHIFT or ratio > _MOST_RATIO or ratio < 1 / _MOST_RATIO


def unlike(what: str, ratio: float, shift: float) -> str:
    """What is said where calibration data are not like those of training.

    Args:
        what: They enter.
        ratio: Of their variance to that in training.
        shift: In deviations.
    """
    return (
        f"What enters {what} on the calibration batches is nothing like what enters it in training: deviations are "
        f"{math.sqrt(ratio):.3g} times as large, and means lie {shift:.2g} deviations away. The training step may "
        "prepare its inputs, or they are augmented strongly: prepare them in `forward`, in the data set or in "
        "`on_after_batch_transfer`, or let `calibration_batch(batch)` return what the network gets."
    )


def of_norm(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments of ``F.batch_norm`` by name."""
    return {**dict(zip(_ARGUMENTS, args, strict=False)), **kwargs}


def as_in_training(given: Mapping[str, Any]) -> Tensor | None:
    """What a BatchNorm gives in a training step; None where a batch is too small for it.

    Args:
        given: Its arguments by name.
    """
    values = given["input"]
    if values.numel() <= values.shape[1]:
        return None
    return F.batch_norm(values, None, None, given.get("weight"), given.get("bias"), True, 0.0, given.get("eps", 1e-5))


class Recalibration:
    """Moves the statistics of BatchNorms, batch by batch.

    Those that a training keeps up are lagging behind its weights, and are measured anew. The others may be of more and
    better data than are at hand: they move as much as those of their inputs do.

    Args:
        kept_up: Names of the running means that a training keeps up.
    """

    def __init__(self, kept_up: Collection[str]) -> None:
        self._kept_up = kept_up
        self._start: dict[str, tuple[Tensor, Tensor]] = {}
        self._dense: dict[str, Statistics] = {}
        self._now: dict[str, Statistics] = {}

    def move_(self, name: str, mean: Tensor, var: Tensor, dense: Statistics, now: Statistics) -> None:
        """Take one call more into account.

        Args:
            name: Of the running mean.
            mean: The running mean, changed in place.
            var: The running variance, likewise.
            dense: What entered in the whole network.
            now: What enters.
        """
        if name in self._now:
            dense, now = self._dense[name] + dense, self._now[name] + now
        else:
            self._start[name] = mean.detach().cpu().double().clone(), var.detach().cpu().double().clone()
        self._dense[name], self._now[name] = dense, now
        if name in self._kept_up:
            mean.copy_(now.mean)
            var.copy_(now.unbiased)
            return
        tiny = torch.finfo(torch.float32).tiny
        ratio = torch.where(dense.var > tiny, now.var / dense.var.clamp(min=tiny), torch.ones_like(now.var))
        mean.copy_(self._start[name][0] + (now.mean - dense.mean))
        var.copy_(self._start[name][1] * ratio)

    def of_whole(self, name: str) -> tuple[Tensor, Tensor]:
        """Mean and variance that those moved to are to be compared with: of the whole network, in the same way."""
        dense = self._dense[name]
        return (dense.mean, dense.unbiased) if name in self._kept_up else self._start[name]
