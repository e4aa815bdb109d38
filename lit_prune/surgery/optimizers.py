"""What optimizers hold, cut along with what it belongs to."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from lit_prune.common._compat import memory_of
from lit_prune.common.names import class_names
from lit_prune.errors import UnsupportedError
from lit_prune.plan import PruningPlan
from lit_prune.surgery.dry_step import check_step
from lit_prune.surgery.held import Held, held_by, optimizers_in
from lit_prune.surgery.layouts import Layout, in_place, is_rotation, kept_by, layouts, per_dimension
from lit_prune.surgery.shrink import select

Cuts = Mapping[nn.Parameter, Mapping[int, Tensor]]

_CANNOT_OPTIMIZERS = {
    "LBFGS": "it keeps one flat vector of all parameters",
    "ZeroRedundancyOptimizer": "it shards its state over the ranks",
}
_INSTEAD = "Use SGD, Adam, AdamW, RMSprop or torch.optim.Adafactor"
_PLAIN = (Tensor, nn.Parameter)
# A reading of many small dimensions would be one of very many; no optimizer is known to keep such state.
_MOST_DIMS = 5


def check_state(module: nn.Module, plan: PruningPlan, optimizers: Sequence[Optimizer]) -> None:
    """See whether what optimizers hold now can follow a plan, and whether they can take a step afterwards.

    Raises:
        UnsupportedError: If one can't; it names the optimizer, what it holds, and what to use instead.
    """
    state_changes(module, plan, optimizers)


def state_changes(module: nn.Module, plan: PruningPlan, optimizers: Sequence[Optimizer]) -> list[tuple[Tensor, Tensor]]:
    """Each tensor that has to change, with its cut value; nothing is changed yet.

    Raises:
        UnsupportedError: As for :func:`check_state`.
    """
    parameters = dict(module.named_parameters(remove_duplicate=False))
    cuts = {parameters[name]: dims for name, dims in plan.kept.items() if name in parameters}
    for optimizer in optimizers:
        check_optimizer(optimizer)
    if not cuts:
        return []
    held = held_by(optimizers)
    changes = [
        (each.value, select(each.value, dims)) for each, dims in _follow(held, cuts) if isinstance(each.value, Tensor)
    ]
    for optimizer in optimizers_in(optimizers):
        check_step(module, optimizer, cuts, changes, _INSTEAD)
    return changes


def check_optimizer(optimizer: Optimizer) -> None:
    """Raise an UnsupportedError for an optimizer that is known by its class to hold what can't follow."""
    wrapped = getattr(optimizer, "optimizer", optimizer)
    for inner in optimizers_in([wrapped] if isinstance(wrapped, Optimizer) else []):
        for name in class_names(inner):
            if name in _CANNOT_OPTIMIZERS:
                raise UnsupportedError(
                    f"ChannelPruning can't prune under {name}, for {_CANNOT_OPTIMIZERS[name]}. Use SGD, Adam, AdamW or "
                    "Adafactor, or prune once with ChannelPruning(epochs='before_wrap')."
                )


def _follow(held: Sequence[Held], cuts: Cuts) -> Iterator[tuple[Held, dict[int, Tensor]]]:
    """What has to be cut, with what is kept of its dimensions."""
    read = _Readings(held)
    shapes = {tuple(parameter.shape) for parameter in cuts}
    shared = Counter(
        memory_of(each.value) for each in held if isinstance(each.value, Tensor) and each.value.numel() > 1
    )
    for each in held:
        if each.parameter is None:
            _check_unknown(each, shapes)
        elif each.parameter in cuts:
            _check_plain(each)
            # A step counter has one element whatever the shape of the parameter is.
            if each.value.numel() > 1:
                dims = _dims_of(each, read.of(each), cuts[each.parameter])
                if dims and shared[memory_of(each.value)] > 1:
                    raise _refusal(each, "it lies in the same memory as other state, and would leave it")
                if dims:
                    yield each, dims


def _dims_of(held: Held, readings: Iterable[Layout], cut: Mapping[int, Tensor]) -> dict[int, Tensor]:
    assert held.parameter is not None
    found: list[dict[int, Tensor]] = []
    for layout in readings:
        dims = kept_by(layout, held.parameter.shape, cut)
        if not any(_same(dims, other) for other in found):
            found.append(dims)
        square = held.value.dim() == 2 and layout[0] == layout[1]
        if square and dims and is_rotation(held.value):
            raise _refusal(held, "it turns channels into another basis, in which what is kept of them lies, too")
    if len(found) != 1:
        raise _refusal(held, "several readings fit" if found else "it is not known how to cut that")
    return found[0]


class _Readings:
    """How state may be read, by what fits all parameters that have it."""

    def __init__(self, held: Iterable[Held]) -> None:
        self._found: dict[Any, set[Layout]] = {}
        # What has its parameter's dimensions wherever it is kept has them in place.
        self._elsewhere: set[Any] = set()
        for each in held:
            if each.parameter is not None and isinstance(each.value, Tensor) and 1 <= each.value.dim() <= _MOST_DIMS:
                fitting, kind = set(layouts(each.value.shape, each.parameter.shape)), self._kind(each)
                self._found[kind] = self._found.get(kind, fitting) & fitting
                if in_place(each.value.shape, each.parameter.shape) is None:
                    self._elsewhere.add(kind)

    def of(self, held: Held) -> set[Layout]:
        """The readings that are left, one alone where it can be told."""
        assert held.parameter is not None
        kind = self._kind(held)
        found = self._found.get(kind, set())
        place = None if kind in self._elsewhere else in_place(held.value.shape, held.parameter.shape)
        if held.series and held.series == held.parameter.dim():
            # As many as the parameter has dimensions: one for each, unless they are as likely something else.
            own = per_dimension(held.path[-1], held.value.dim())
            return {own} & found if place in (None, own) else found
        return found if place is None else {place}

    @staticmethod
    def _kind(held: Held) -> Any:
        assert held.parameter is not None
        return id(held.optimizer), held.path, held.parameter.dim(), held.value.dim()


def _check_plain(held: Held) -> None:
    if type(held.value) not in _PLAIN:
        raise _refusal(held, f"what is in a {type(held.value).__name__} can't be cut")
    if held.value.dtype in (torch.uint8, torch.int8) and held.value.numel() > 1:
        raise _refusal(held, "it looks quantised in blocks, whose scales would no longer be theirs")


def _check_unknown(held: Held, shapes: Iterable[tuple[int, ...]]) -> None:
    """Raise for a tensor of which nothing tells where it belongs, where it looks like what is cut."""
    shape = tuple(held.value.shape)
    if len(shape) > 0 and shape in shapes:
        raise UnsupportedError(
            f"{type(held.optimizer).__name__} holds {held.name!r} of shape {shape}, which looks like a parameter that "
            f"is to be cut, and nothing tells of which. Keep it in `optimizer.state[parameter]`. Or: {_INSTEAD}."
        )


def _refusal(held: Held, reason: str) -> UnsupportedError:
    assert held.parameter is not None
    shape = f" of shape {tuple(held.value.shape)}" if isinstance(held.value, Tensor) else ""
    return UnsupportedError(
        f"{type(held.optimizer).__name__} keeps {held.name!r}{shape} for a parameter of shape "
        f"{tuple(held.parameter.shape)}: {reason}. {_INSTEAD}."
    )


def _same(dims: Mapping[int, Tensor], others: Mapping[int, Tensor]) -> bool:
    return dims.keys() == others.keys() and all(torch.equal(kept, others[dim]) for dim, kept in dims.items())
