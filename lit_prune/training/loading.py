"""The guard around a Trainer's reading of checkpoints."""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Mapping
from typing import TYPE_CHECKING, Any

from torch import nn

from lit_prune.checkpoint import _shapes, check_record, check_same_network, plan_of, settle_
from lit_prune.common._compat import load_hooks
from lit_prune.common.reading import unreadable
from lit_prune.plan import PruningPlan
from lit_prune.surgery.shrink import is_cut_to
from lit_prune.training._compat import loaded_checkpoint

if TYPE_CHECKING:
    from lightning.pytorch import Trainer


_REMEDY = "give the Trainer's fit, validate, test or predict weights_only=False"


class LoadGuard:
    """Refuses a Trainer's checkpoint before it has changed anything, and brings in line what the file leaves out.

    A callback is asked only after the weights are loaded; this ``load_state_dict`` pre-hook comes first.

    Args:
        trainer: The Trainer that loads.
        plan: What was pruned of the network so far; it is ignored where the network is another one.
    """

    def __init__(self, trainer: Trainer, plan: PruningPlan) -> None:
        self._trainer = trainer
        self._plan = plan
        self._brought: Collection[str] | None = None

    def register_on(self, module: nn.Module) -> Any:
        """Register on a module before all its other hooks; the handle to remove it by."""
        handle = module.register_load_state_dict_pre_hook(self)  # type: ignore[no-untyped-call]
        load_hooks(module).move_to_end(handle.id, last=False)
        return handle

    def note(self, checkpoint: Mapping[str, Any]) -> None:
        """Note what a file has, before hooks of the module may fill in what it left out."""
        self._brought = frozenset(checkpoint.get("state_dict", ()))

    def __call__(self, module: nn.Module, state: dict[str, Any], *_: object) -> None:
        """Check the checkpoint that is being loaded, and the state dict that the module is given of it.

        Raises:
            CheckpointError: If its tensors are not those of its record, or its network is another one.
        """
        checkpoint = loaded_checkpoint(self._trainer)
        if "state_dict" not in checkpoint:
            # Not a checkpoint of a Trainer, but a state dict that the user loads.
            return
        plan, shapes, source = plan_of(checkpoint), _shapes(state), str(self._trainer.ckpt_path)
        brought = shapes.keys() if self._brought is None else self._brought
        before = self._plan if is_cut_to(module, self._plan) else PruningPlan({})
        check_record(plan.only(brought), shapes, source)
        check_same_network(module, before, {name: shapes[name] for name in brought if name in shapes}, plan)
        settle_(module, state, plan, brought, source, before=before)

    def __reduce__(self) -> tuple[Any, ...]:
        # A copy of the module, or one on disk, has no Trainer that loads it.
        return _no_guard, ()


def _no_guard() -> Any:
    return _accept_all


def _accept_all(*_: object) -> None:
    """Stands where a guard stood, in a copy."""


class NamedReading:
    """Has a Trainer name a file that it can't read, and why, until it is removed; torch's own error names none.

    Args:
        trainer: The Trainer.
        read: Called with each checkpoint that was read.
    """

    def __init__(self, trainer: Trainer, read: Callable[[Any], None]) -> None:
        self._strategy: Any = trainer.strategy
        # On this one strategy, not on its class.
        vars(self._strategy)["load_checkpoint"] = self._wrapped(self._strategy.load_checkpoint, read)

    def remove(self) -> None:
        """Let the strategy load as it did."""
        vars(self._strategy).pop("load_checkpoint", None)

    @staticmethod
    def _wrapped(load: Callable[..., Any], read: Callable[[Any], None]) -> Callable[..., Any]:
        def load_checkpoint(checkpoint_path: Any, *args: Any, **kwargs: Any) -> Any:
            try:
                checkpoint = load(checkpoint_path, *args, **kwargs)
            except Exception as error:
                reason = unreadable(checkpoint_path, error, _REMEDY) if os.path.isfile(checkpoint_path) else None
                if reason is None:
                    raise
                raise reason from error
            read(checkpoint)
            return checkpoint

        return load_checkpoint
