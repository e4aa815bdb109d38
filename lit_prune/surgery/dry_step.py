"""A step of an optimizer on stand-ins for what will be cut: some choose the form of their state by a width."""

from __future__ import annotations

import copy
from collections import OrderedDict, defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from lit_prune.common._compat import OPTIMIZER_HOOKS, tree_map_only
from lit_prune.common.running import untouched
from lit_prune.errors import UnsupportedError
from lit_prune.surgery.held import beside, optimizers_in


def check_step(
    module: nn.Module,
    optimizer: Optimizer,
    cuts: Mapping[nn.Parameter, Mapping[int, Tensor]],
    changes: Sequence[tuple[Tensor, Tensor]],
    instead: str,
) -> None:
    """Have a copy of an optimizer take a step with the state that a cut leaves.

    One parameter of each shape is enough. An optimizer that can't be copied, or wants more than gradients for a step,
    is not tried.

    Args:
        module: The network; its random states are left alone.
        optimizer: With state.
        cuts: What is kept of parameters.
        changes: Each tensor of the state that changes, with its cut value.
        instead: What a message tells to use.

    Raises:
        UnsupportedError: If it fails with the cut state, and not with the whole one.
    """
    # What lies beside parameters has to lie beside all of them, and inner optimizers are tried by themselves.
    if any(held.parameter is not None for held in beside(optimizer)) or len(optimizers_in([optimizer])) > 1:
        return
    values = {id(tensor): value for tensor, value in changes}
    with untouched(module):
        for (parameter, shape), group in _one_of_each(optimizer, cuts).items():
            if _failure(optimizer, group, parameter, parameter.shape, {}) is not None:
                continue
            error = _failure(optimizer, group, parameter, shape, values)
            if error is not None:
                raise UnsupportedError(
                    f"{type(optimizer).__name__} could not take a step once a parameter of shape "
                    f"{tuple(parameter.shape)} was cut to {tuple(shape)}: the form of its state "
                    f"({', '.join(map(repr, optimizer.state[parameter]))}) goes by the shape. {instead}. ({error})"
                ) from error


def _one_of_each(
    optimizer: Optimizer, cuts: Mapping[nn.Parameter, Mapping[int, Tensor]]
) -> dict[tuple[nn.Parameter, torch.Size], dict[str, Any]]:
    """A parameter of each shape with the shape that it is cut to, and its group."""
    found: dict[Any, Any] = {}
    for number, group in enumerate(optimizer.param_groups):
        for parameter in group["params"]:
            if parameter in cuts and optimizer.state.get(parameter):
                sizes = {dim: len(kept) for dim, kept in cuts[parameter].items()}
                shape = torch.Size(sizes.get(dim, size) for dim, size in enumerate(parameter.shape))
                found.setdefault((number, parameter.shape, shape), ((parameter, shape), group))
    return dict(found.values())


def _failure(
    optimizer: Optimizer,
    group: Mapping[str, Any],
    parameter: nn.Parameter,
    shape: torch.Size,
    cut: Mapping[int, Tensor],
) -> Exception | None:
    """What a step of a copy raises that has one parameter, of this shape, and its state, as far as it is cut."""
    stand_in = nn.Parameter(torch.rand(shape, dtype=parameter.dtype, device=parameter.device))
    stand_in.grad = torch.rand_like(stand_in)
    memo: dict[int, Any] = {
        id(each): nn.Parameter(torch.empty(0)) for other in optimizer.param_groups for each in other["params"]
    }
    memo[id(parameter)] = stand_in
    attributes = {
        # A scheduler puts its own `step` over that of the class, and hooks are the user's.
        name: OrderedDict() if name.startswith(OPTIMIZER_HOOKS) else value
        for name, value in vars(optimizer).items()
        if name not in ("state", "param_groups", "step")
    }
    options = {name: value for name, value in group.items() if name != "params"}
    state = tree_map_only(Tensor, lambda each: cut.get(id(each), each).clone(), dict(optimizer.state[parameter]))
    try:
        trial = object.__new__(type(optimizer))
        vars(trial).update(copy.deepcopy(attributes, memo))
        trial.param_groups = [{**copy.deepcopy(options, memo), "params": [stand_in]}]
        trial.state = defaultdict(dict, {stand_in: state})
        type(optimizer).step(trial)
    except Exception as error:
        return error
    return None
