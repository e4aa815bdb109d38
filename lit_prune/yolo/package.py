"""Ultralytics: whether it is there, keeping it quiet, and where its networks carry what we note."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager

from lit_prune.common.packages import require

STATE = "lit_prune_state"
"""The attribute of a network under which Ultralytics' checkpoints carry the record of what was pruned."""


def require_ultralytics(purpose: str = "lit_prune.yolo", *others: str) -> None:
    """Raise a MissingPackageError that says what to install, if Ultralytics can't be imported.

    Args:
        purpose: What needs it.
        *others: What else of the extra `yolo` is needed, as for `require`.
    """
    remark = "Mind that Ultralytics is licensed under AGPL-3.0."
    require(purpose, "ultralytics:ultralytics", *others, extra="yolo", remark=remark)


@contextmanager
def quiet_ultralytics() -> Iterator[None]:
    """Keep Ultralytics' notes about building a network from the console."""
    from ultralytics.utils import LOGGER

    level = LOGGER.level
    LOGGER.setLevel(logging.ERROR)
    try:
        yield
    finally:
        LOGGER.setLevel(level)
