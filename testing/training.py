"""A Trainer that trains and does nothing else, for tests and benchmarks."""

from __future__ import annotations

from typing import Any

import lightning.pytorch as pl


def quiet_trainer(*callbacks: pl.Callback, **options: Any) -> pl.Trainer:
    """On the CPU, and without logs, files, progress or checks before it; ``options`` say otherwise."""
    quiet = {
        "accelerator": "cpu",
        "devices": 1,
        "logger": False,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "num_sanity_val_steps": 0,
    }
    return pl.Trainer(callbacks=list(callbacks), **{**quiet, **options})
