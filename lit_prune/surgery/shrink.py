"""Cut a network to a plan, in place; the tensors keep their identity, so optimizers and hooks stay valid."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TypeVar

import torch
from torch import Tensor, nn

from lit_prune.common.arguments import check_kind
from lit_prune.common.initialized import check_network
from lit_prune.common.names import find_tensor
from lit_prune.errors import ArgumentError
from lit_prune.modules.registry import update_attributes_
from lit_prune.modules.remembered import note_widths_
from lit_prune.plan import PruningPlan
from lit_prune.surgery.kept_norms import shrink_statistics_

ModuleT = TypeVar("ModuleT", bound=nn.Module)


def shrink_(module: ModuleT, plan: PruningPlan) -> ModuleT:
    """Remove from ``module``, in place, all that ``plan`` does not keep.

    Parameters and buffers keep their identity (``p is p`` before and after); gradients are cut along; integers that
    modules remember (``out_channels``, ``C2PSA.c``) follow. Optimizer state is not reached from here: see
    :func:`lit_prune.prune_`.

    Args:
        module: The network that the plan was made for.
        plan: Names are those of ``module``'s parameters and buffers.

    Returns:
        The same module.

    Raises:
        ArgumentTypeError: If the module or the plan is none.
        ArgumentError: If the plan does not fit the module; then nothing has changed.

    Example:
        >>> net = nn.Sequential(nn.Conv2d(3, 8, 1), nn.Conv2d(8, 4, 1))
        >>> keep = torch.arange(6)
        >>> plan = PruningPlan({"0.weight": {0: keep}, "0.bias": {0: keep}, "1.weight": {1: keep}})
        >>> shrink_(net, plan)[1].in_channels
        6
    """
    check_network("module", module)
    check_kind("plan", plan, PruningPlan)
    # All that takes memory comes first: where there is none left, nothing has changed.
    cuts = [
        (tensor, select(tensor.data, dims), None if tensor.grad is None else select(tensor.grad, dims))
        for tensor, dims in targets(module, plan)
    ]
    note_widths_(module)
    shrink_statistics_(module, plan)
    for tensor, values, gradient in cuts:
        _assign_(tensor, values)
        tensor.grad = gradient
    update_attributes_(module)
    return module


def is_cut_to(module: nn.Module, plan: PruningPlan) -> bool:
    """Whether every tensor that ``plan`` names has the size that the plan leaves."""
    tensors = {name: find_tensor(module, name) for name in plan.kept}
    return all(
        tensor is not None and dim < tensor.dim() and tensor.shape[dim] == len(kept)
        for name, tensor in tensors.items()
        for dim, kept in plan.kept[name].items()
    )


def targets(module: nn.Module, plan: PruningPlan) -> list[tuple[Tensor, Mapping[int, Tensor]]]:
    """Each tensor that a plan cuts, once, with the indices that it keeps.

    Raises:
        ArgumentError: If the plan does not fit the module.
    """
    # Two names of one tensor (tied weights) must not cut it twice.
    targets: dict[int, tuple[Tensor, Mapping[int, Tensor]]] = {}
    for name, dims in plan.kept.items():
        tensor = find_tensor(module, name)
        if tensor is None:
            raise ArgumentError(
                f"The plan names {name!r}, which is no parameter or buffer of this {type(module).__name__}. "
                "Plans carry the names of the traced module: add or drop a prefix with `plan.with_prefix`."
            )
        for dim, kept in dims.items():
            if dim >= tensor.dim():
                raise ArgumentError(f"The plan cuts dim {dim} of {name}, which has shape {tuple(tensor.shape)}.")
            size, expected = tensor.shape[dim], plan.sizes.get(name, {}).get(dim)
            if int(kept[-1]) >= size or (expected is not None and expected != size):
                raise ArgumentError(
                    f"The plan was made for {name} with {expected or f'at least {int(kept[-1]) + 1}'} indices in dim "
                    f"{dim}; here it has {size}. It was made for another network, or has been applied already."
                )
        targets[id(tensor)] = (tensor, dims)
    return list(targets.values())


def select(tensor: Tensor, dims: Mapping[int, Tensor]) -> Tensor:
    """The kept part of ``tensor``, contiguous in the memory format that it had."""
    memory_format = (
        torch.channels_last
        if tensor.dim() == 4 and tensor.is_contiguous(memory_format=torch.channels_last) and not tensor.is_contiguous()
        else torch.contiguous_format
    )
    if tensor.is_meta:
        # Nothing to select from, and torch would go a long way to find the shape.
        shape = [len(dims[dim]) if dim in dims else size for dim, size in enumerate(tensor.shape)]
        return torch.empty(shape, dtype=tensor.dtype, device="meta", memory_format=memory_format)
    for dim, kept in dims.items():
        tensor = tensor.index_select(dim, kept.to(tensor.device))
    return tensor.contiguous(memory_format=memory_format)


def _assign_(tensor: Tensor, values: Tensor) -> None:
    # A gradient of the old shape would be accepted here and fail only in the next backward.
    tensor.grad = None
    if not tensor.is_meta:
        # Changing the dtype drops an AccumulateGrad node that remembers the old shape; the shape alone does not.
        tensor.data = torch.empty(
            0, dtype=torch.float64 if values.dtype != torch.float64 else torch.float32, device=values.device
        )
    tensor.data = values
