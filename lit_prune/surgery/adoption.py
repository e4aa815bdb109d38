"""Networks that take the shapes of what they load."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping

from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from lit_prune.common._compat import load_hooks
from lit_prune.common.arguments import check_kind
from lit_prune.errors import ArgumentError
from lit_prune.modules.registry import update_attributes_
from lit_prune.modules.remembered import note_widths_
from lit_prune.surgery.shrink import ModuleT, _assign_


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
    if differing:
        note_widths_(module)
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

    Raises:
        ArgumentTypeError: If it is no module.

    Example:
        >>> dense = accept_pruned(nn.Linear(8, 4))
        >>> dense.load_state_dict(nn.Linear(6, 4).state_dict())
        <All keys matched successfully>
    """
    check_kind("module", module, nn.Module)
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
    hooks = load_hooks(module).values()
    return any(getattr(hook, "hook", hook) is adopt_shapes_hook for hook in hooks)


def _named_tensors(module: nn.Module) -> Iterator[tuple[str, Tensor]]:
    for path, child in module.named_modules(remove_duplicate=False):
        prefix = f"{path}." if path else ""
        for name, tensor in (*child._parameters.items(), *child._buffers.items()):
            if tensor is not None:
                yield prefix + name, tensor
