"""DDP's wrapper and its communication hooks, renewed when shapes change."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from lit_prune.common._compat import comm_hooks
from lit_prune.errors import UnsupportedError
from lit_prune.training._compat import expect_first_step_

if TYPE_CHECKING:
    from lightning.pytorch import Trainer


# What PowerSGD's state remembers of DDP's buckets.
_BUCKET_MEMORY = ("error_dict", "p_memory_dict", "q_memory_dict")


def forget_shapes(trainer: Trainer) -> list[tuple[Any, Any]] | None:
    """Drop what was made for the old shapes: compiled code, cast copies of weights, DDP's wrapper and its buckets.

    Returns:
        The hooks of the wrapper, for :func:`wrap_again`; ``None`` where there was none.
    """
    torch.compiler.reset()
    torch.clear_autocast_cache()
    strategy: Any = trainer.strategy
    if not isinstance(strategy.model, nn.parallel.DistributedDataParallel):
        return None
    hooks = comm_hooks(strategy.model)
    for _, state in hooks:
        _forget_buckets_(state)
    # The old wrapper's hooks must be gone before the new ones come.
    strategy.model = strategy.lightning_module
    expect_first_step_(strategy)
    return hooks


def wrap_again(trainer: Trainer, hooks: list[tuple[Any, Any]] | None) -> None:
    """Make DDP's wrapper for the new shapes where :func:`forget_shapes` has dropped one; ranks wait for each other."""
    strategy: Any = trainer.strategy
    if hooks is not None:
        strategy.configure_ddp()
        if not comm_hooks(strategy.model):
            # The strategy does not know of hooks that the user has registered on the wrapper.
            for hook, state in hooks:
                strategy.model.register_comm_hook(state, hook)


def check_comm_hooks(trainer: Trainer) -> None:
    """Raise an UnsupportedError for a DDP communication hook that remembers tensors of the old buckets."""
    for hook, state in comm_hooks(trainer.strategy.model):
        held = {name for name, value in getattr(state, "__dict__", {}).items() if _holds_tensors(value)}
        if held - set(_BUCKET_MEMORY):
            raise UnsupportedError(
                f"The communication hook {getattr(hook, '__qualname__', hook)} keeps tensors in its "
                f"{type(state).__name__} ({', '.join(sorted(held))}): it is not known how they follow when DDP is "
                "wrapped again. Use a hook without such state, or PowerSGD."
            )


def _holds_tensors(value: Any) -> bool:
    values = value.values() if isinstance(value, Mapping) else value if isinstance(value, (list, tuple)) else [value]
    return any(isinstance(each, Tensor) for each in values)


def _forget_buckets_(state: Any) -> None:
    """PowerSGD remembers errors by bucket, and has to wait again until the new wrapper's buckets are settled."""
    for name in _BUCKET_MEMORY:
        memory = getattr(state, name, None)
        if isinstance(memory, dict):
            memory.clear()
            state.iter = 0
