"""Ridge regression around weights that are there: what is left of a layer made to answer as the whole layer did."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

RIDGES = (1e-3, 1e-2, 1e-1, 1.0)
"""Penalties that are tried, relative to the mean variance of the inputs."""


# What is held out is mostly more like what was fitted than other data are, so the strongest penalty is taken that
# leaves no more than this times what the best does.
_NEAR = 1.1


@dataclass
class Evidence:
    """Moments of what enters, and of what is missing in what leaves, summed over the rows of all batches.

    They are taken around the first batch's means, so that single precision is enough.

    Attributes:
        rows: Number of rows.
        entering: ``(groups, inputs)`` sums.
        missing: ``(groups, outputs)`` sums.
        gram: ``(groups, inputs, inputs)`` of products of inputs.
        cross: ``(groups, inputs, outputs)`` of products of inputs and what is missing.
        square: ``(groups,)`` sums of the squares of what is missing.
    """

    rows: int
    entering: Tensor
    missing: Tensor
    gram: Tensor
    cross: Tensor
    square: Tensor

    @classmethod
    def of(cls, entering: Tensor, missing: Tensor) -> Evidence:
        """Of ``(groups, rows, inputs)`` and ``(groups, rows, outputs)``."""
        transposed = entering.transpose(1, 2)
        return cls(
            entering.shape[1],
            entering.sum(1),
            missing.sum(1),
            transposed @ entering,
            transposed @ missing,
            missing.square().sum((1, 2)),
        )

    def __add__(self, other: Evidence) -> Evidence:
        """That of both."""
        return Evidence(*(getattr(self, name) + getattr(other, name) for name in self.__dataclass_fields__))

    def solve(self, ridge: float, centred: bool) -> Tensor:
        """``(groups, inputs, outputs)`` what to add to the weights so that the least is missing.

        Args:
            ridge: Penalty on what is added, relative to the mean variance of the inputs.
            centred: Whether a constant is free, too.
        """
        gram, cross = self._moments(centred)
        scale = gram.diagonal(dim1=1, dim2=2).mean(1)
        eye = torch.eye(gram.shape[1], dtype=gram.dtype, device=gram.device)
        # Inputs that are nothing anywhere need some penalty, too.
        penalty = (ridge * scale).clamp(min=torch.finfo(gram.dtype).tiny ** 0.5)
        factor, failed = torch.linalg.cholesky_ex(gram + penalty[:, None, None] * eye)
        if bool(failed.any()):
            # Not every device has double precision.
            gram, cross, penalty, eye = (each.cpu().double() for each in (gram, cross, penalty, eye))
            factor = torch.linalg.cholesky(gram + (penalty[:, None, None] + 1e-7) * eye)
        return torch.cholesky_solve(cross, factor).to(self.gram)

    def left(self, added: Tensor, centred: bool) -> float:
        """Mean square of what is missing still, once ``added`` is."""
        gram, cross = self._moments(centred)
        before = self.square / self.rows
        if centred:
            before = before - (self.missing / self.rows).square().sum(1)
        fitted = (added * (gram @ added - 2 * cross)).sum((1, 2))
        return max(0.0, float((before + fitted).sum()))

    def _moments(self, centred: bool) -> tuple[Tensor, Tensor]:
        gram, cross = self.gram / self.rows, self.cross / self.rows
        if centred:
            mean, missing = self.entering / self.rows, self.missing / self.rows
            gram = gram - mean[:, :, None] * mean[:, None, :]
            cross = cross - mean[:, :, None] * missing[:, None, :]
        return gram, cross


def best_fit(fitted: Evidence, held_out: Evidence, centred: bool) -> tuple[Tensor, float]:
    """What to add to the weights, with the penalty that does best where it was not fitted; and how well it does.

    Returns:
        ``(groups, inputs, outputs)`` of all evidence, nothing where no penalty helps; and the mean square of what is
        missing still in the rows that were held out.
    """
    nothing = torch.zeros_like(fitted.cross)
    before = held_out.left(nothing, centred)
    left = {ridge: held_out.left(fitted.solve(ridge, centred), centred) for ridge in RIDGES}
    if min(left.values()) >= before:
        return nothing, before
    ridge = max(each for each in RIDGES if left[each] <= min(before, _NEAR * min(left.values())))
    return (fitted + held_out).solve(ridge, centred), left[ridge]
