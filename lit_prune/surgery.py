"""Cut a network to a plan, in place; the tensors keep their identity, so optimizers and hooks stay valid."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import TypeVar

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

import lit_prune.remembered  # noqa: F401 - fills the table of attributes
from lit_prune.attributes import register_attributes, update_attributes_
from lit_prune.errors import ArgumentError
from lit_prune.lookup import find_tensor
from lit_prune.plan import PruningPlan
from lit_prune.statistics import keep_statistics_, shrink_statistics_

__all__ = [
    "accept_for_now",
    "accept_pruned",
    "accepts_pruned",
    "adopt_shapes_",
    "adopt_shapes_hook",
    "is_cut_to",
    "mask_",
    "register_attributes",
    "select",
    "shrink_",
    "targets",
]

ModuleT = TypeVar("ModuleT", bound=nn.Module)


def shrink_(module: ModuleT, plan: PruningPlan) -> ModuleT:
    """Remove from ``module``, in place, all that ``plan`` does not keep.

    Parameters and buffers keep their identity (``p is p`` before and after); gradients are cut along; integers that
    modules remember (``out_channels``, ``C2PSA.c``) follow. Optimizer state is not reached from here: see
    :func:`lit_prune.trainer.prune_`.

    Args:
        module: The network that the plan was made for.
        plan: Names are those of ``module``'s parameters and buffers.

    Returns:
        The same module.

    Raises:
        ArgumentError: If the plan does not fit the module; then nothing has changed.

    Example:
        >>> net = nn.Sequential(nn.Conv2d(3, 8, 1), nn.Conv2d(8, 4, 1))
        >>> keep = torch.arange(6)
        >>> plan = PruningPlan({"0.weight": {0: keep}, "0.bias": {0: keep}, "1.weight": {1: keep}})
        >>> shrink_(net, plan)[1].in_channels
        6
    """
    # All that takes memory comes first: where there is none left, nothing has changed.
    cuts = [
        (tensor, select(tensor.data, dims), None if tensor.grad is None else select(tensor.grad, dims))
        for tensor, dims in targets(module, plan)
    ]
    shrink_statistics_(module, plan)
    for tensor, values, gradient in cuts:
        _assign_(tensor, values)
        tensor.grad = gradient
    update_attributes_(module)
    return module


def mask_(module: ModuleT, plan: PruningPlan) -> ModuleT:
    """Set to zero, in place, all that :func:`shrink_` would remove: the reference for it.

    Running variances stay, for a zero there would be divided by. Norms over channels (LayerNorm, GroupNorm, RMSNorm)
    take their statistics from the kept channels, as they do in a shrunk network: see :mod:`lit_prune.statistics`.

    Args:
        module: The network that the plan was made for.
        plan: As for :func:`shrink_`.

    Returns:
        The same module.

    Raises:
        ArgumentError: If the plan does not fit the module; then nothing has changed.
    """
    spared = {id(buffer) for name, buffer in module.named_buffers() if name.rpartition(".")[2] == "running_var"}
    for tensor, dims in targets(module, plan):
        if id(tensor) in spared:
            continue
        for dim, kept in dims.items():
            gone = torch.ones(tensor.shape[dim], dtype=torch.bool)
            gone[kept] = False
            tensor.data.index_fill_(dim, gone.nonzero().flatten().to(tensor.device), 0)
    keep_statistics_(module, plan)
    return module


def is_cut_to(module: nn.Module, plan: PruningPlan) -> bool:
    """Whether every tensor that ``plan`` names has the size that the plan leaves."""
    tensors = {name: find_tensor(module, name) for name in plan.kept}
    return all(
        tensor is not None and dim < tensor.dim() and tensor.shape[dim] == len(kept)
        for name, tensor in tensors.items()
        for dim, kept in plan.kept[name].items()
    )


def adopt_shapes_(module: nn.Module, state_dict: Mapping[str, Tensor], prefix: str = "") -> None:
    """Give ``module`` the shapes of ``state_dict``, so that it can be loaded; the values come with the loading.

    Works both ways: a dense network takes the shapes of a pruned checkpoint, a pruned one grows back.

    Args:
        module: A network of the architecture that wrote the state dict, pruned or not.
        state_dict: Tensors by name.
        prefix: What the state dict's names have before those of ``module``.

    Raises:
        ArgumentError: If a tensor differs in its number of dimensions: then it is another architecture, and nothing
            has changed.

    Example:
        >>> dense = nn.Linear(8, 4)
        >>> adopt_shapes_(dense, nn.Linear(6, 4).state_dict())
        >>> dense.in_features
        6
    """
    differing = [
        (name, tensor, state_dict[prefix + name])
        for name, tensor in _named_tensors(module)
        if prefix + name in state_dict and state_dict[prefix + name].shape != tensor.shape
    ]
    for name, tensor, stored in differing:
        if tensor.dim() != stored.dim():
            raise ArgumentError(
                f"{prefix + name} has shape {tuple(tensor.shape)} in the network and {tuple(stored.shape)} in the "
                "checkpoint: pruning never changes the number of dimensions, so it is of another architecture."
            )
    for _, tensor, stored in differing:
        _assign_(tensor, tensor.data.new_empty(stored.shape))
    if differing:
        update_attributes_(module)


def adopt_shapes_hook(module: nn.Module, state_dict: Mapping[str, Tensor], prefix: str, *_: object) -> None:
    """:func:`adopt_shapes_` as a ``load_state_dict`` pre-hook; at module level, so that it pickles and deep-copies."""
    adopt_shapes_(module, state_dict, prefix)


def accept_pruned(module: ModuleT) -> ModuleT:
    """Let a module load state dicts of pruned networks from now on: it takes their shapes first.

    :class:`lit_prune.ChannelPruning` does this for as long as a Trainer runs. It takes a call of one's own where
    weights are loaded outside of that: in the main process after ``strategy="ddp_spawn"``, without a Trainer, or by a
    Trainer that lacks the callback (``test``, ``validate`` or ``predict`` with a ``ckpt_path``). Called on ``self`` at
    the end of a LightningModule's ``__init__``, it also lets ``load_from_checkpoint`` load pruned checkpoints.

    Args:
        module: Any module; it pickles and deep-copies as before.

    Returns:
        The same module.

    Example:
        >>> dense = accept_pruned(nn.Linear(8, 4))
        >>> dense.load_state_dict(nn.Linear(6, 4).state_dict())
        <All keys matched successfully>
    """
    accept_for_now([module])
    return module


def accept_for_now(modules: Iterable[nn.Module]) -> list[RemovableHandle]:
    """:func:`accept_pruned` for modules on which it was not called, until the handles are removed."""
    return [
        module.register_load_state_dict_pre_hook(adopt_shapes_hook)  # type: ignore[no-untyped-call]
        for module in modules
        if not accepts_pruned(module)
    ]


def accepts_pruned(module: nn.Module) -> bool:
    """Whether :func:`accept_pruned` was called on the module."""
    hooks = module._load_state_dict_pre_hooks.values()
    return any(getattr(hook, "hook", hook) is adopt_shapes_hook for hook in hooks)


def _named_tensors(module: nn.Module) -> Iterator[tuple[str, Tensor]]:
    for path, child in module.named_modules(remove_duplicate=False):
        prefix = f"{path}." if path else ""
        for name, tensor in (*child._parameters.items(), *child._buffers.items()):
            if tensor is not None:
                yield prefix + name, tensor


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
