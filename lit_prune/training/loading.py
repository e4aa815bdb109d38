"""The guard around a Trainer's reading of checkpoints."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from torch import nn

from lit_prune.checkpoint import Shapes, _shapes, check_record, check_same_network, plan_of
from lit_prune.common._compat import load_hooks
from lit_prune.common.reading import unreadable
from lit_prune.plan import PruningPlan
from lit_prune.training._compat import loaded_checkpoint

if TYPE_CHECKING:
    from lightning.pytorch import Trainer


_REMEDY = "give the Trainer's fit, validate, test or predict weights_only=False"


class LoadGuard:
    """Refuses a Trainer's checkpoint before it has changed anything.

    A callback is asked only after the weights are loaded; this ``load_state_dict`` pre-hook comes first.

    Args:
        trainer: The Trainer that loads.
        plan: What was pruned of the network so far.
    """

    def __init__(self, trainer: Trainer, plan: PruningPlan) -> None:
        self._trainer = trainer
        self._plan = plan
        self._shapes: Shapes = {}

    def register_on(self, module: nn.Module) -> Any:
        """Register on a module before all its other hooks; the handle to remove it by."""
        self._shapes = _shapes(module.state_dict())
        handle = module.register_load_state_dict_pre_hook(self)  # type: ignore[no-untyped-call]
        load_hooks(module).move_to_end(handle.id, last=False)
        return handle

    def __call__(self, module: nn.Module, *_: object) -> None:
        """Check the checkpoint that is being loaded.

        Raises:
            CheckpointError: If its tensors are not those of its record, or its network is another one.
        """
        checkpoint = loaded_checkpoint(self._trainer)
        if "state_dict" not in checkpoint:
            # Not a checkpoint of a Trainer, but a state dict that the user loads.
            return
        plan, shapes = plan_of(checkpoint), _shapes(checkpoint["state_dict"])
        check_record(plan, shapes, str(self._trainer.ckpt_path))
        check_same_network(self._shapes, self._plan, shapes, plan)

    def __reduce__(self) -> tuple[Any, ...]:
        # A copy of the module, or one on disk, has no Trainer that loads it.
        return _no_guard, ()


def _no_guard() -> Any:
    return _accept_all


def _accept_all(*_: object) -> None:
    """Stands where a guard stood, in a copy."""


class NamedReading:
    """Has a Trainer name a file that it can't read, and why, until it is removed; torch's own error names none."""

    def __init__(self, trainer: Trainer) -> None:
        self._strategy: Any = trainer.strategy
        # On this one strategy, not on its class.
        vars(self._strategy)["load_checkpoint"] = self._wrapped(self._strategy.load_checkpoint)

    def remove(self) -> None:
        """Let the strategy load as it did."""
        vars(self._strategy).pop("load_checkpoint", None)

    @staticmethod
    def _wrapped(load: Callable[..., Any]) -> Callable[..., Any]:
        def load_checkpoint(checkpoint_path: Any, *args: Any, **kwargs: Any) -> Any:
            try:
                return load(checkpoint_path, *args, **kwargs)
            except Exception as error:
                reason = unreadable(checkpoint_path, error, _REMEDY) if os.path.isfile(checkpoint_path) else None
                if reason is None:
                    raise
                raise reason from error

        return load_checkpoint
