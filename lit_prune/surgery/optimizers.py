"""The state of optimizers, cut along with what it belongs to."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn
from torch.optim import Optimizer

from lit_prune.common.names import class_names
from lit_prune.errors import UnsupportedError
from lit_prune.plan import PruningPlan
from lit_prune.surgery.shrink import select

if TYPE_CHECKING:
    pass


_CANNOT_OPTIMIZERS = {
    "LBFGS": "it keeps one flat vector of all parameters",
    "ZeroRedundancyOptimizer": "it shards its state over the ranks",
}


def check_state(module: nn.Module, plan: PruningPlan, optimizers: Sequence[Optimizer]) -> None:
    """Raise an UnsupportedError for state of an optimizer that could not follow a plan."""
    cuts = _cuts(module, plan)
    for optimizer in optimizers:
        for _ in _state_changes(optimizer, cuts):
            pass


def _cuts(module: nn.Module, plan: PruningPlan) -> dict[nn.Parameter, Mapping[int, Tensor]]:
    parameters = dict(module.named_parameters(remove_duplicate=False))
    return {parameters[name]: dims for name, dims in plan.kept.items() if name in parameters}


def _state_changes(
    optimizer: Optimizer, cuts: Mapping[nn.Parameter, Mapping[int, Tensor]]
) -> Iterator[tuple[dict[str, Any], str, Tensor]]:
    """Each entry of the state that has to change, with its cut value; raises before anything is written."""
    check_optimizer(optimizer)
    for parameter, dims in cuts.items():
        for key, value in optimizer.state.get(parameter, {}).items():
            # A step counter has one element whatever the shape of the parameter is.
            if isinstance(value, Tensor) and (value.numel() > 1 or value.shape == parameter.shape):
                yield optimizer.state[parameter], key, select(value, _dims_of(optimizer, key, value, parameter, dims))


def _dims_of(
    optimizer: Optimizer, key: str, value: Tensor, parameter: nn.Parameter, dims: Mapping[int, Tensor]
) -> dict[int, Tensor]:
    sizes = [] if value.dim() != parameter.dim() else [*zip(value.shape, parameter.shape, strict=True)]
    # Factored moments (Adafactor) have size 1 where they are a mean over the dimension.
    if not sizes or any(mine not in (1, full) for mine, full in sizes):
        raise UnsupportedError(
            f"{type(optimizer).__name__} keeps {key!r} of shape {tuple(value.shape)} for a parameter of shape "
            f"{tuple(parameter.shape)}: it is not known how to cut that. Use SGD, Adam, AdamW, RMSprop or Adafactor."
        )
    return {dim: kept for dim, kept in dims.items() if sizes[dim][0] == sizes[dim][1]}


def check_optimizer(optimizer: Optimizer) -> None:
    """Raise an UnsupportedError for an optimizer whose state can't follow."""
    inner = getattr(optimizer, "optimizer", optimizer)
    for name in class_names(inner):
        if name in _CANNOT_OPTIMIZERS:
            raise UnsupportedError(
                f"ChannelPruning can't prune under {name}, for {_CANNOT_OPTIMIZERS[name]}. Use SGD, Adam, AdamW or "
                "Adafactor, or prune once with ChannelPruning(epochs='before_wrap')."
            )
