"""Class-wise statistics of activations, streamed; and how well a channel tells two classes apart by them."""

from __future__ import annotations

import math
from itertools import combinations
from typing import Any

import torch
from torch import Tensor
from torchmetrics import Metric

from lit_prune.common._compat import take_count_
from lit_prune.errors import ArgumentError

# What stands for the deviation of a class whose activations are all alike.
_LEAST_DEVIATION = 1e-10


class Moments:
    """What is known of a layer's channels, class by class.

    Attributes:
        count: ``(K,)`` int64, objects seen of each class.
        mean: ``(K, C)`` float64, 0 where a class has no object.
        var: ``(K, C)`` float64, variance of the population (divided by the count), 0 where a class has no object.
    """

    # No dataclass and no tuple: torchmetrics would walk into it and squeeze what has one element.
    __slots__ = ("count", "mean", "var")

    def __init__(self, count: Tensor, mean: Tensor, var: Tensor) -> None:
        self.count = count
        self.mean = mean
        self.var = var

    def __repr__(self) -> str:
        classes, channels = self.mean.shape
        return f"Moments({int(self.count.sum())} objects, {classes} classes, {channels} channels)"


class ClassMoments(Metric):
    """Count, mean and variance of each channel over the objects of each class.

    Values are streamed: nothing of the size objects × channels is kept. Batches and ranks are merged around their own
    means, in double precision, so that a deviation of 1 around a mean of 10,000 is not lost, and equal values have a
    variance of exactly 0.

    Args:
        num_channels: C, at least 1.
        num_classes: K, at least 1.
        name: What errors call the layer.
        **kwargs: Passed to ``torchmetrics.Metric``.

    Raises:
        ArgumentError: If a number is below 1.

    Example:
        >>> moments = ClassMoments(num_channels=2, num_classes=3)
        >>> moments.update(torch.tensor([[1.0, 5.0], [3.0, 5.0], [7.0, 0.0]]), torch.tensor([0, 0, 2]))
        >>> moments.compute().count.tolist(), moments.compute().mean.tolist(), moments.compute().var[0].tolist()
        ([2, 0, 1], [[2.0, 5.0], [0.0, 0.0], [7.0, 0.0]], [1.0, 0.0])

    References:
        Chan, Golub and LeVeque, "Updating Formulae and a Pairwise Algorithm for Computing Sample Variances", 1979,
        equation 1.5.
    """

    is_differentiable = False
    higher_is_better = None
    full_state_update = False
    packed: Tensor

    def __init__(self, num_channels: int, num_classes: int, name: str = "", **kwargs: Any) -> None:
        super().__init__(**kwargs)
        for argument, value in (("num_channels", num_channels), ("num_classes", num_classes)):
            if value < 1:
                raise ArgumentError(f"{argument} must be at least 1, but got {value}.")
        self.num_channels = num_channels
        self.num_classes = num_classes
        self.name = name
        # One state, (K, 1 + 2C): count, mean and summed squared deviation can only be merged together.
        empty = torch.zeros(num_classes, 1 + 2 * num_channels, dtype=torch.float64)
        self.add_state("packed", empty, dist_reduce_fx=_merge)

    def update(self, values: Tensor, labels: Tensor) -> None:
        """Take in the activations of some objects.

        Args:
            values: ``(M, C)``, of any floating-point type.
            labels: ``(M,)`` integers, the class of each.

        Raises:
            ArgumentError: If a shape or a label is wrong, or a value is NaN or infinite.
        """
        of = f" of layer {self.name}" if self.name else ""
        if values.dim() != 2 or values.shape[1] != self.num_channels or labels.shape != values.shape[:1]:
            raise ArgumentError(
                f"Activations{of} must be (M, {self.num_channels}) with labels (M,), but are {tuple(values.shape)} "
                f"and {tuple(labels.shape)}."
            )
        if labels.is_floating_point() or labels.dtype == torch.bool:
            raise ArgumentError(f"labels must be integers, but are {labels.dtype}; convert them with `.long()`.")
        if not len(labels):
            return
        low, high = (int(bound) for bound in torch.aminmax(labels))
        if low < 0 or high >= self.num_classes:
            raise ArgumentError(
                f"labels must be in 0..{self.num_classes - 1}, as there are {self.num_classes} classes, but are in "
                f"{low}..{high}."
            )
        values = values.detach().to(self.packed.device, torch.float64)
        if not bool(torch.isfinite(values).all()):
            channel = int((~torch.isfinite(values)).any(0).nonzero()[0])
            raise ArgumentError(
                f"Activations{of} are NaN or infinite (first in channel {channel}), so there are no statistics of "
                "them. Look for a diverged training run, or calibrate in higher precision."
            )
        self.packed = _merge(torch.stack([self.packed, self._of_batch(values, labels.to(values.device))]))

    def resume(self, other: ClassMoments) -> None:
        """Take over what another metric of the same channels, and of no more classes, has seen."""
        self.packed[: other.num_classes] = other.packed
        take_count_(self, other)

    def compute(self) -> Moments:
        """The moments of all that was taken in, on all ranks."""
        count, mean, squares = _unpack(self.packed)
        return Moments(count[:, 0].long(), mean, squares / count.clamp(min=1))

    def _of_batch(self, values: Tensor, labels: Tensor) -> Tensor:
        # A product with the one-hot labels gives the same bits every time; a scatter on CUDA does not.
        members = torch.nn.functional.one_hot(labels.long(), self.num_classes).to(values.dtype)
        count = members.sum(0)[:, None]
        mean = members.T @ values / count.clamp(min=1)
        squares = members.T @ (values - mean[labels]).square()
        return torch.cat([count, mean, squares], dim=1)


def jeffries_matusita(moments: Moments) -> Tensor:
    """How well each channel tells each two classes apart: the Jeffries–Matusita distance of two Gaussians.

    Args:
        moments: Of C channels and K classes.

    Returns:
        ``(C, K(K-1)/2)`` float64 in [0, 2], pairs in the order of ``itertools.combinations``; 0 where one of the two
        classes has no object. A deviation of less than 1e-10 counts as 1e-10.

    Raises:
        ArgumentError: If there are fewer than two classes.

    Example:
        >>> alike = Moments(torch.tensor([9, 9]), torch.tensor([[0.0], [0.0]]), torch.tensor([[1.0], [1.0]]))
        >>> apart = Moments(torch.tensor([9, 9]), torch.tensor([[0.0], [9.0]]), torch.tensor([[1.0], [1.0]]))
        >>> jeffries_matusita(alike).item(), round(jeffries_matusita(apart).item(), 3)
        (0.0, 2.0)

    References:
        Bruzzone, Roli and Serpico, "An extension of the Jeffreys–Matusita distance to multiclass cases for feature
        selection", IEEE TGRS 33(6), 1995, section II; with the bound 2 of the squared distance.
    """
    classes = len(moments.count)
    if classes < 2:
        raise ArgumentError(f"Separability is between two classes, but there is {classes}; use another criterion.")
    first, second = torch.tensor(list(combinations(range(classes), 2)), device=moments.count.device).unbind(1)
    variance = moments.var.double().clamp(min=_LEAST_DEVIATION**2)
    # In logarithms: the product of two variances of 1e-20 and a variance of 1e20 are too far apart for one float.
    logarithm = variance.log()
    both = variance[first] + variance[second]
    distance = (moments.mean.double()[first] - moments.mean.double()[second]).square() / (4 * both)
    distance += 0.5 * (both.log() - math.log(2)) - 0.25 * (logarithm[first] + logarithm[second])
    separability = -2 * torch.expm1(-distance)
    seen = moments.count > 0
    return (separability * (seen[first] & seen[second])[:, None]).clamp(0, 2).T.contiguous()


def _merge(parts: Tensor) -> Tensor:
    """Merge packed moments ``(parts, K, 1 + 2C)``, in their order, into ``(K, 1 + 2C)``."""
    merged = parts[0]
    for part in parts[1:]:
        count, mean, squares = _unpack(merged)
        other_count, other_mean, other_squares = _unpack(part)
        total = (count + other_count).clamp(min=1)
        delta = other_mean - mean
        # Class by class the weights are exactly 0 or 1 where only one part has objects.
        mean = mean + delta * (other_count / total)
        squares = squares + other_squares + delta.square() * (count * other_count / total)
        merged = torch.cat([count + other_count, mean, squares], dim=1)
    return merged


def _unpack(packed: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Count ``(K, 1)``, mean ``(K, C)`` and summed squared deviation ``(K, C)``."""
    channels = (packed.shape[1] - 1) // 2
    return packed[:, :1], packed[:, 1 : 1 + channels], packed[:, 1 + channels :]
