"""What is private in Lightning, and used nevertheless: the names and the reasons, as in `lit_prune.common._compat`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lightning.pytorch import Callback, LightningModule, Trainer

AVERAGE = "_average_model"
"""Where `WeightAveraging` and `StochasticWeightAveraging` keep their copy; nothing public leads to it."""

SPAWNING_LAUNCHER = "_MultiProcessingLauncher"
"""The class that starts processes for `ddp_spawn` and its kin; a strategy does not say how it was started."""


def loaded_checkpoint(trainer: Trainer) -> dict[str, Any]:
    """The checkpoint that a Trainer is loading; empty where it loads none.

    Callbacks are given it only after the weights are in the network.
    """
    connector = getattr(trainer, "_checkpoint_connector", None)
    return getattr(connector, "_loaded_checkpoint", None) or {}


def expect_first_step_(strategy: Any) -> None:
    """Tell a DDP strategy that its wrapper is a new one: with a static graph, the first step reduces late."""
    strategy._pl_static_graph_delay_done = False


def before_transfer(module: LightningModule, batch: Any) -> Any:
    """Call a module's, or its data module's, `on_before_batch_transfer`: which of them has one, Lightning decides."""
    return module._on_before_batch_transfer(batch, dataloader_idx=0)


def add_task(bar: Any, total: int, text: str) -> Any:
    """A task of a `RichProgressBar`, in its own colours, which only this gives."""
    return bar._add_task(total, text)


def average_of(callback: Callback) -> Any:
    """The `AveragedModel` of a `WeightAveraging`."""
    return getattr(callback, AVERAGE)


def is_new_step_(callback: Any, step: int) -> bool:
    """Whether a `WeightAveraging` has not followed this step yet, and that it has now.

    Its checkpoints keep the number. The public way, `should_update`, leads to its own slow way of following.
    """
    if step <= callback._latest_update_step:
        return False
    callback._latest_update_step = step
    return True
