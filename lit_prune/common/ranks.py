"""Several processes that decide alike: errors, plans and digests shared among ranks."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import TypeVar

import torch.distributed as dist

from lit_prune.errors import RanksError
from lit_prune.plan import PruningPlan

T = TypeVar("T")


def together(action: Callable[[], T]) -> T:
    """Run ``action`` on every rank; if it fails on one, it fails on all, with that rank's error.

    Without this a rank that fails would leave the others waiting in their next collective operation.

    Raises:
        RanksError: On ranks where the action went well, if it failed on another.
    """
    if not is_distributed():
        return action()
    result, error = None, None
    try:
        result = action()
    except Exception as raised:
        error = raised
    messages = gather(None if error is None else f"{type(error).__name__}: {error}")
    if error is not None:
        raise error
    for rank, message in enumerate(messages):
        if message is not None:
            raise RanksError(f"Rank {rank} could not prune, so none does: {message}")
    return result  # type: ignore[return-value]


def from_rank_zero(plan: PruningPlan) -> PruningPlan:
    """The plan of rank 0, on every rank: ranks that decide for themselves would prune different channels."""
    return PruningPlan.from_state_dict(sent_by_rank_zero(plan.state_dict())) if is_distributed() else plan


def sent_by_rank_zero(value: T) -> T:
    """What rank 0 has, on every rank; tensors should lie on the CPU."""
    if not is_distributed():
        return value
    values = [value]
    dist.broadcast_object_list(values)
    return values[0]


def check_same(digest: str) -> None:
    """Raise a RanksError, on every rank, unless all have the same digest."""
    digests = gather(digest)
    differing = [rank for rank, other in enumerate(digests) if other != digests[0]]
    if differing:
        raise RanksError(
            f"Ranks {differing} hold another plan than rank 0 (digests {', '.join(text[:12] for text in digests)}): "
            "the network was not pruned. A criterion or selection must not depend on the rank."
        )


def any_rank(here: bool) -> bool:
    """Whether it is so on any rank: what all have to do together, if one has to."""
    return any(gather(here))


def gather(value: T) -> list[T]:
    """``value`` of each rank, in their order."""
    if not is_distributed():
        return [value]
    values = [value] * dist.get_world_size()
    dist.all_gather_object(values, value)
    return values


def warn_once(message: str) -> None:
    """Warn the user, on rank 0 alone."""
    if is_rank_zero():
        warnings.warn(message, stacklevel=3)


def is_rank_zero() -> bool:
    """Whether this process is the one that decides for all."""
    return not is_distributed() or dist.get_rank() == 0


def is_distributed() -> bool:
    """Whether several processes train together."""
    return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1
