"""An event, step by step: before the first tensor is cut a failure means "as it was", after it the run can't go on."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from lit_prune.common.ranks import together

T = TypeVar("T")

BEFORE = ("look", "measure", "choose", "rehearse", "check", "repair", "watch", "keep", "prepare")
"""The steps before the cut: nothing is changed by them."""
AFTER = ("cut", "unwrap", "wrap", "record", "recover")
"""The steps from the first cut tensor to the written record."""
BY_THEMSELVES = ("measure", "wrap")
"""Steps in which ranks wait for each other, and so see to it themselves that all learn of a failure."""


def carry_out(step: str, action: Callable[[], T]) -> T:
    """Run one step of an event; where it fails on one rank, it fails on all.

    Args:
        step: One of :data:`BEFORE` or :data:`AFTER`.
        action: What it does.

    Example:
        >>> carry_out("look", lambda: 3)
        3
    """
    if step not in (*BEFORE, *AFTER):
        raise LookupError(f"{step!r} is not a step of an event.")
    return action() if step in BY_THEMSELVES else together(action)
