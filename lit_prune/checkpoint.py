"""Checkpoints of pruned networks: their record, and loading them without a Trainer."""

from __future__ import annotations

import os
import zipfile
from collections.abc import Callable, Mapping
from os import PathLike
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from torch import Tensor, nn

from lit_prune.plan import PruningPlan
from lit_prune.surgery import adopt_shapes_

if TYPE_CHECKING:
    from lightning.pytorch import Trainer

ModuleT = TypeVar("ModuleT", bound=nn.Module)
Shapes = Mapping[str, tuple[int, ...]]

RECORD = "ChannelPruning"
"""Under this key a checkpoint's ``callbacks`` have the record of what was pruned."""


class CheckpointError(ValueError):
    """A checkpoint can't be read, or its tensors are not those that its record tells of."""


def load_pruned(cls: type[ModuleT], path: str | PathLike[str], map_location: Any = None, **kwargs: Any) -> ModuleT:
    """Load a checkpoint of a pruned network into a class that knows nothing of pruning.

    Args:
        cls: A LightningModule, built as by its ``load_from_checkpoint``; or another module, built from ``kwargs``.
        path: A checkpoint of a Trainer, or a file with a state dict.
        map_location: As for :func:`torch.load`.
        **kwargs: Arguments of ``cls``; they go before those that the checkpoint has.

    Returns:
        The network as it was saved, in eval mode if it is no LightningModule.

    Raises:
        CheckpointError: If the file can't be read, is cut short, or its record and tensors disagree.
        FileNotFoundError: If there is no such file.

    Example:
        >>> import tempfile
        >>> class Net(nn.Module):
        ...     def __init__(self, width=8):
        ...         super().__init__()
        ...         self.layer = nn.Linear(4, width)
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     torch.save(Net(6).state_dict(), f"{folder}/net.pt")
        ...     load_pruned(Net, f"{folder}/net.pt").layer.out_features
        6
    """
    checkpoint = _read(path, map_location)
    state = checkpoint.get("state_dict", checkpoint)
    check_record(plan_of(checkpoint), _shapes(state), str(path))
    # Both names of Lightning have such modules, and neither is a class of the other.
    if not hasattr(cls, "load_from_checkpoint"):
        module = cls(**kwargs)
        adopt_shapes_(module, state)
        module.load_state_dict(state)
        return module.eval()

    class Adopting(cls):  # type: ignore[valid-type, misc]
        """``cls`` that takes the checkpoint's shapes between being built and being loaded."""

        def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
            adopt_shapes_(self, checkpoint["state_dict"])
            super().on_load_checkpoint(checkpoint)

    # Not with `weights_only`, which Lightning before 2.6 would hand to `cls`; the file has been read so above.
    loaded = Adopting.load_from_checkpoint(path, map_location=map_location, **kwargs)
    loaded.__class__ = cls
    return loaded  # type: ignore[no-any-return]


def plan_of(checkpoint: Mapping[str, Any]) -> PruningPlan:
    """The plan in a checkpoint's record; an empty one where nothing was pruned.

    Raises:
        CheckpointError: If there is a record that is none.
    """
    callbacks = checkpoint.get("callbacks", {})
    if RECORD not in callbacks:
        return PruningPlan({})
    try:
        return PruningPlan.from_state_dict(callbacks[RECORD]["plan"])
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(f"The record of what was pruned is damaged: {error}") from error


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

    def stand_before(self, module: nn.Module) -> Any:
        """Register on a module before all its other hooks; the handle to remove it by."""
        self._shapes = _shapes(module.state_dict())
        handle = module.register_load_state_dict_pre_hook(self)  # type: ignore[no-untyped-call]
        # torch can't register one before others; the table is an ordered dict, whatever its annotation says.
        hooks: Any = module._load_state_dict_pre_hooks
        hooks.move_to_end(handle.id, last=False)
        return handle

    def __call__(self, module: nn.Module, *_: object) -> None:
        """Check the checkpoint that is being loaded.

        Raises:
            CheckpointError: If its tensors are not those of its record, or its network is another one.
        """
        connector = getattr(self._trainer, "_checkpoint_connector", None)
        checkpoint = getattr(connector, "_loaded_checkpoint", None) or {}
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


def check_record(plan: PruningPlan, shapes: Shapes, source: str) -> None:
    """Raise a CheckpointError unless every tensor has the sizes that ``plan`` leaves.

    Args:
        plan: The record's.
        shapes: Of the tensors, by name.
        source: Where they come from, for the message.
    """
    for name, dims in plan.kept.items():
        for dim, kept in dims.items():
            shape = shapes.get(name)
            if shape is None or dim >= len(shape) or shape[dim] != len(kept):
                raise CheckpointError(
                    f"{source}: by its record {name} has {len(kept)} channels in dim {dim}, but its tensor has "
                    f"{'gone missing' if shape is None else f'shape {shape}'}. The file is damaged, or made of two "
                    "runs."
                )


def check_same_network(before: Shapes, plan_before: PruningPlan, after: Shapes, plan_after: PruningPlan) -> None:
    """Raise a CheckpointError unless two sets of shapes, unpruned, are those of one network.

    Shapes are taken over from a checkpoint; what pruning does not explain, such as another number of classes, must not
    pass in its wake.
    """
    for name, shape in before.items():
        if name in after and _dense(name, shape, plan_before) != _dense(name, after[name], plan_after):
            raise CheckpointError(
                f"{name} has shape {shape} in the network and {after[name]} in the checkpoint, and no pruning on "
                "record explains that: the checkpoint is of a network with other widths or classes."
            )


def _shapes(state: Mapping[str, Tensor]) -> dict[str, tuple[int, ...]]:
    return {name: tuple(tensor.shape) for name, tensor in state.items()}


def _dense(name: str, shape: tuple[int, ...], plan: PruningPlan) -> tuple[int, ...]:
    sizes = plan.sizes.get(name, {})
    return tuple(sizes.get(dim, size) for dim, size in enumerate(shape))


class NamedReading:
    """Has a Trainer name a file that it can't read, until it is removed; torch's own error names none."""

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
                if os.path.isfile(checkpoint_path) and not _is_whole(checkpoint_path, error):
                    raise _unreadable(checkpoint_path, error) from error
                raise

        return load_checkpoint


def _is_whole(path: str | PathLike[str], error: Exception) -> bool:
    """Whether a file is an archive to its end, and nothing in it is broken; then ``error`` is about something else."""
    return zipfile.is_zipfile(path) and "PytorchStreamReader" not in str(error)


def _unreadable(path: str | PathLike[str], error: Exception) -> CheckpointError:
    return CheckpointError(
        f"{path} can't be read as a checkpoint: it is cut short, damaged, or of another kind ({error})."
    )


def _read(path: str | PathLike[str], map_location: Any) -> dict[str, Any]:
    try:
        checkpoint = torch.load(path, map_location=map_location, weights_only=True)
    except FileNotFoundError:
        raise
    except Exception as error:
        raise _unreadable(path, error) from error
    if not isinstance(checkpoint, dict):
        raise CheckpointError(f"{path} holds a {type(checkpoint).__name__}, where a checkpoint or state dict belongs.")
    return checkpoint
