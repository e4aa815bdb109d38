"""Ultralytics: whether it is there, keeping it quiet, and where its networks carry what we note."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager

from lit_prune.errors import MissingPackageError

STATE = "lit_prune_state"
"""The attribute of a network under which Ultralytics' checkpoints carry the record of what was pruned."""


def require_ultralytics() -> None:
    """Raise a MissingPackageError that says what to install, if Ultralytics can't be imported."""
    try:
        import ultralytics  # noqa: F401
    except ImportError as error:
        raise MissingPackageError(
            f"LitYOLO builds its networks with Ultralytics, which cannot be imported ({error}). Install it with: "
            f"pip install 'lit-prune[yolo]'. Mind that Ultralytics is licensed under AGPL-3.0."
        ) from error


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
