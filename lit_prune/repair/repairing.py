"""The second of two passes over the same batches: what is left of a network learns to answer as the whole one did.

It goes from the first layer to the last: each is fitted to what really enters it, so that what has drifted before it
is made up for behind (He et al., "Channel Pruning for Accelerating Very Deep Neural Networks", ICCV 2017, section 3.2;
here each kernel position is fitted by itself, in closed form).
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from lit_prune.activations.samples import PRODUCTS, Product
from lit_prune.common.names import layer_of
from lit_prune.common.running import in_full_precision
from lit_prune.errors import CalibrationError
from lit_prune.repair.fit import Evidence, best_penalty
from lit_prune.repair.listening import Answers, Pass, Place
from lit_prune.repair.recalibration import Recalibration, Statistics, of_norm
from lit_prune.repair.routing import Choices

# The part of the examples that is held out of a fit.
_HELD_OUT = 0.25


@dataclass(frozen=True)
class Fit:
    """How well a layer answers as it did.

    Attributes:
        before: Share of the variance of its answers that is explained without a change, at most 1.
        after: With it, where it was not fitted.
    """

    before: float
    after: float


@dataclass
class _State:
    """What is known of one weight: what was there at the start, and the evidence around what was met first.

    Attributes:
        shift: ``(groups, inputs)`` what inputs are counted from.
        centre: ``(groups, outputs)`` what is wanted of them there.
        constant: Whether a constant is free: there is a bias, or a BatchNorm behind takes it up.
        spread: Variance of what is wanted, of all outputs together.
        usual: Variance that an input would have if all had the same, and nothing in common.
    """

    weight: Tensor
    bias: Tensor | None
    constant: bool
    shift: Tensor
    centre: Tensor
    spread: float
    usual: float
    fitted: Evidence | None = None
    held_out: Evidence | None = None
    batches: int = 0
    ridge: float | None = None


class Repairing(Pass):
    """Fits each layer before it runs, and moves the statistics of each BatchNorm.

    Args:
        names: The id of each tensor of what is left of the network to its name; these are changed in place.
        answers: Of the whole network.
        compensated: Names of the weights that may be fitted.
        recalibrates: Whether statistics are moved.
        kept_up: Names of the running means that a training keeps up.

    Attributes:
        changed: Names of the tensors that were changed.
        fits: Name of a weight to how well its layer answers.
        of_whole: Name of a statistic to that of the whole network, taken in the same way.
    """

    def __init__(
        self,
        names: Mapping[int, str],
        answers: Answers,
        compensated: Collection[str],
        recalibrates: bool,
        kept_up: Collection[str] = (),
    ) -> None:
        super().__init__(names, Choices(answers.choices.made))
        self.of_whole: dict[str, Tensor] = {}
        self.changed: set[str] = set()
        self.fits: dict[str, Fit] = {}
        self._answers = answers
        self._compensated = compensated
        self._recalibrates = recalibrates
        self._states: dict[str, _State] = {}
        self._norms = Recalibration(kept_up)

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if func in PRODUCTS:
            product = Product(func, args, kwargs)
            place = self.place_of(product.weight)
            if place in self._answers.leaving and place is not None and place[0] in self._compensated:
                with in_full_precision(product.weight.device):
                    self._compensate(product, place)
                # Autocast keeps weights as it has cast them; this one may run again.
                torch.clear_autocast_cache()
        elif func is F.batch_norm:
            given = of_norm(args, kwargs)
            place = self.place_of(given["running_mean"])
            if self._recalibrates and place in self._answers.statistics and place is not None:
                self._recalibrate(given, place)
        return self.choices.run(func, args, kwargs)

    def _compensate(self, product: Product, place: Place) -> None:
        name, at = place[0], self._answers.positions[place]
        wanted = self._answers.leaving.pop(place)
        if product.span != self._answers.spans[place]:
            # It runs along channels, of which some are gone, or on rows that come of its values: they are others now.
            return
        entering = product.entering(at).float()
        wanted = wanted.reshape(len(wanted), len(entering), -1).transpose(0, 1)
        state = self._states.get(name)
        if state is None and len(at.examples) == 1:
            # One answer has no variance, and leaves none to be held out.
            return
        if state is None:
            state = self._states[name] = self._begin(product, name, wanted, entering)
        matrix = product.matrix(state.weight)
        entering = entering - state.shift[:, None]
        missing = wanted - state.centre[:, None] - entering @ matrix
        # Neighbours may be alike, as frames of one film are: a stretch of its own shows how the others are met.
        last, rows = int(at.examples.max()), len(at.examples)
        # Rows come in the order of their examples.
        fitted = int((at.examples < min(last, int((1 - _HELD_OUT) * (last + 1)))).sum())
        if not fitted:
            fitted = math.ceil((1 - _HELD_OUT) * rows)
        found = [Evidence.of(entering[:, part], missing[:, part]) for part in (slice(fitted), slice(fitted, rows))]
        if not all(each.is_finite for each in found):
            raise CalibrationError(
                f"What enters or leaves {layer_of(name)} has values on the calibration batches that are NaN, infinite, "
                "or too large to be multiplied, so it can't be repaired. Look at what the network computes there."
            )
        state.fitted = found[0] if state.fitted is None else state.fitted + found[0]
        state.held_out = found[1] if state.held_out is None else state.held_out + found[1]
        state.batches += 1
        evidence = state.fitted + state.held_out
        # To choose takes several times as long as to solve, and changes less and less.
        chooses = math.log(state.batches, 4).is_integer()
        added = self._choose(name, state, state.fitted, state.held_out) if chooses else None
        # What is seen later on counts in the end; until then, what the choice was made with does.
        ends = all(other != name for other, _, _ in self._answers.leaving)
        if state.ridge is not None and (ends or not chooses):
            added = evidence.moments(state.constant).solve(state.ridge, state.usual)
        self._change_(product, state, evidence, added)

    def _begin(self, product: Product, name: str, wanted: Tensor, entering: Tensor) -> _State:
        own = product.bias is not None and id(product.bias) in self.names
        taken_up = product.bias is None and self._recalibrates and name in self._answers.normed
        constant = own or taken_up
        weight = product.weight.detach().float().clone()
        bias = None if product.bias is None else product.bias.detach().float().clone()
        groups, _, inputs = entering.shape
        shift, centre = entering.new_zeros(groups, inputs), wanted.new_zeros(groups, wanted.shape[2])
        if constant:
            shift, centre = entering.mean(1), wanted.mean(1)
        elif bias is not None:
            centre = bias.reshape(groups, -1)
        spread = float((wanted.var(1, correction=0) if constant else wanted.square().mean(1)).sum())
        # Of what is always the same, rounding is no variance.
        spread = max(spread, torch.finfo(torch.float32).eps ** 2 * float(wanted.square().mean(1).sum()))
        squares = float(weight.square().sum())
        usual = spread / squares if squares else 0.0
        return _State(weight, bias, constant, shift, centre, spread, usual)

    def _choose(self, name: str, state: _State, fitted: Evidence, held_out: Evidence) -> Tensor | None:
        """Choose a penalty; what is added with it."""
        seen = held_out.moments(state.constant)
        state.ridge, added, left = best_penalty(fitted.moments(state.constant), seen, state.usual)
        spread = max(state.spread, torch.finfo(torch.float32).tiny)
        self.fits[name] = Fit(1 - seen.square / spread, 1 - left / spread)
        return added

    def _change_(self, product: Product, state: _State, evidence: Evidence, added: Tensor | None) -> None:
        """Add to the weight, and to the bias what makes the means right."""
        product.weight.data.copy_(state.weight if added is None else state.weight + product.weight_of(added))
        self.changed.add(self.names[id(product.weight)])
        if product.bias is not None and state.bias is not None and state.constant:
            means, constant = evidence.means()
            matrix = product.matrix(state.weight)
            if added is not None:
                matrix = matrix + added
                constant = constant - (means[:, None] @ added)[:, 0]
            # Inputs are counted from their shift, and answers from their centre.
            bias = state.centre - (state.shift[:, None] @ matrix)[:, 0] + constant
            product.bias.data.copy_(bias.flatten())
            self.changed.add(self.names[id(product.bias)])

    def _recalibrate(self, given: Mapping[str, Any], place: Place) -> None:
        mean, var = given["running_mean"], given["running_var"]
        self._norms.move_(place[0], mean, var, self._answers.statistics[place], Statistics.of(given["input"]))
        for tensor, whole in zip((mean, var), self._norms.of_whole(place[0]), strict=True):
            if (name := self.names.get(id(tensor))) is not None:
                self.changed.add(name)
                self.of_whole[name] = whole
