"""What can't be pruned under: strategies, launchers and callbacks, refused before training begins."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import nn

from lit_prune.common.names import class_names
from lit_prune.errors import UnsupportedError
from lit_prune.surgery.adoption import accepts_pruned
from lit_prune.training._compat import SPAWNING_LAUNCHER

if TYPE_CHECKING:
    from lightning.pytorch import Trainer

# By class name, along the bases: importing them all would cost the packages that they come from.
_CANNOT_STRATEGIES = {
    "FSDPStrategy": "FSDP flattens and shards parameters when it wraps the model",
    "ModelParallelStrategy": "parallelised parameters are DTensors, which can't change their shape",
    "DeepSpeedStrategy": "DeepSpeed partitions parameters when it wraps the model",
    "XLAStrategy": "XLA compiles the step for fixed shapes",
    "XLAFSDPStrategy": "XLA shards parameters when it wraps the model",
    "SingleDeviceXLAStrategy": "XLA compiles the step for fixed shapes",
}


def check_strategy(trainer: Trainer) -> None:
    """Raise an UnsupportedError for a strategy under which parameters can't change their shape."""
    for name in class_names(trainer.strategy):
        if name in _CANNOT_STRATEGIES:
            raise UnsupportedError(
                f"ChannelPruning can't prune during training under {name}, for {_CANNOT_STRATEGIES[name]}. Use "
                "strategy='ddp' or a single device; or prune once with ChannelPruning(epochs='before_wrap')."
            )


def check_callbacks(trainer: Trainer) -> None:
    """Raise an UnsupportedError for callbacks that can't work together with ChannelPruning.

    Masks of weights would come back over the cut ones; and two ChannelPruning would each keep half of one record.
    """
    if sum("ChannelPruning" in class_names(callback) for callback in trainer.callbacks) > 1:  # type: ignore[attr-defined]
        raise UnsupportedError(
            "There are two ChannelPruning in this Trainer, and a network has one record of what was pruned. Give all "
            "`epochs` to one of them; `selection=Weighted(...)` takes more from some layers than from others."
        )
    for callback in trainer.callbacks:  # type: ignore[attr-defined]
        if "ModelPruning" in class_names(callback):
            raise UnsupportedError(
                f"{type(callback).__name__} sets weights to zero behind masks, and ChannelPruning cuts the same "
                "weights away. Take one of them out of the Trainer's callbacks."
            )


def check_launcher(trainer: Trainer, module: nn.Module) -> None:
    """Raise an UnsupportedError where the main process will load shrunk weights and does not know how.

    ``ddp_spawn`` and its kin train in child processes; at the end the weights are loaded into the module of the main
    process, in which no callback ever ran.
    """
    launcher = getattr(trainer.strategy, "launcher", None)
    if SPAWNING_LAUNCHER in class_names(launcher) and not accepts_pruned(module):
        raise UnsupportedError(
            "Under ddp_spawn, ddp_fork and ddp_notebook the main process loads the weights of its children, and here "
            "it would refuse their shapes. Call `lit_prune.accept_pruned(model)` before `fit`, or use strategy='ddp'."
        )
