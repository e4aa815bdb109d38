"""Remove the channels of a network while it trains."""

import sys
from typing import TYPE_CHECKING

from lit_prune.common.deprecated import find_moved_modules
from lit_prune.common.lazy import lazily

if TYPE_CHECKING:
    from lit_prune.callback import ChannelPruning
    from lit_prune.checkpoint import load_pruned
    from lit_prune.errors import (
        ArgumentError,
        ArgumentTypeError,
        CalibrationError,
        CheckpointError,
        ExistingFileError,
        HalfPrunedError,
        LitPruneError,
        MissingFileError,
        MissingPackageError,
        NoObjectsError,
        PruningError,
        RanksError,
        RehearsalError,
        SelectionError,
        TraceError,
        UnknownNameError,
        UnsupportedError,
    )
    from lit_prune.graph import ChannelGraph, mask_
    from lit_prune.plan import PruningPlan
    from lit_prune.policy.once import plan_pruning
    from lit_prune.repair import Repair, prune_
    from lit_prune.surgery import accept_pruned, shrink_
    from lit_prune.training.distillation import Distillation
    from lit_prune.training.recovery import Recovery
    from lit_prune.training.scale_sparsity import ScaleSparsity

__all__ = [
    "ArgumentError",
    "ArgumentTypeError",
    "CalibrationError",
    "ChannelGraph",
    "ChannelPruning",
    "CheckpointError",
    "Distillation",
    "ExistingFileError",
    "HalfPrunedError",
    "LitPruneError",
    "MissingFileError",
    "MissingPackageError",
    "NoObjectsError",
    "PruningError",
    "PruningPlan",
    "RanksError",
    "Recovery",
    "RehearsalError",
    "Repair",
    "ScaleSparsity",
    "SelectionError",
    "TraceError",
    "UnknownNameError",
    "UnsupportedError",
    "accept_pruned",
    "load_pruned",
    "mask_",
    "plan_pruning",
    "prune_",
    "shrink_",
]

__getattr__, __dir__ = lazily(__name__, __file__)
find_moved_modules()


def known_by_short_names() -> None:
    """Import all of it, so that a `LightningCLI` knows `ChannelPruning` and the others without their package."""
    for name in __all__:
        __getattr__(name)


if "lightning.pytorch" in sys.modules or "pytorch_lightning" in sys.modules:
    # Torch is there already, so that nothing is won by waiting.
    known_by_short_names()
