"""A Trainer that trains and does nothing else, for tests and benchmarks."""

from __future__ import annotations

import os
from typing import Any

import lightning.pytorch as pl

ACCELERATOR = os.environ.get("TEST_ACCELERATOR", "cpu")
"""Where tests train that do not say: with `gpu`, what they hold is to hold there, too."""


def quiet_trainer(*callbacks: pl.Callback, **options: Any) -> pl.Trainer:
    """On the CPU by default, and without logs, files, progress or checks before it; ``options`` say otherwise."""
    quiet = {
        "accelerator": ACCELERATOR,
        "devices": 1,
        "logger": False,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "num_sanity_val_steps": 0,
    }
    return pl.Trainer(callbacks=list(callbacks), **{**quiet, **options})
