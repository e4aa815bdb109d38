"""Checkpoints of pruned networks: their record, and loading them without a Trainer."""

from __future__ import annotations

import inspect
import sys
import threading
from collections.abc import Container, Iterator, Mapping, MutableMapping
from contextlib import contextmanager
from os import PathLike
from typing import Any, TypeVar

from torch import Tensor, nn

from lit_prune.common._compat import CLASS_PATH, EXTRA_STATE
from lit_prune.common.names import names_of_tensors, tensors_of
from lit_prune.common.reading import read_checkpoint
from lit_prune.errors import CheckpointError
from lit_prune.plan import PruningPlan
from lit_prune.surgery.adoption import adopt_shapes_
from lit_prune.surgery.shrink import is_cut_to, select, shrink_

ModuleT = TypeVar("ModuleT", bound=nn.Module)
Shapes = Mapping[str, tuple[int, ...]]

RECORD_KEY = "ChannelPruning"
"""Under this key a checkpoint's ``callbacks`` have the record of what was pruned."""

# One load at a time; a load within a load, in the same thread, goes on.
_ADOPTING = threading.RLock()


def load_pruned(
    cls: type[ModuleT],
    path: str | PathLike[str],
    map_location: Any = None,
    *,
    weights_only: bool = True,
    **kwargs: Any,
) -> ModuleT:
    """Load a checkpoint of a pruned network into a class that knows nothing of pruning.

    Args:
        cls: A LightningModule, built as by its ``load_from_checkpoint``; or another module, built from ``kwargs``.
        path: A checkpoint of a Trainer, or a file with a state dict.
        map_location: As for :func:`torch.load`; by default the CPU where a device of the file is missing.
        weights_only: As for :func:`torch.load`. Hyperparameters that are not plain data (paths, NumPy scalars, classes
            of your own) take ``False``, which lets the file run code: only for files that you trust.
        **kwargs: Arguments of ``cls``; they override those of the checkpoint.

    Returns:
        The network as it was saved, in eval mode unless it is a LightningModule.

    Raises:
        CheckpointError: If the file is damaged, holds what ``weights_only`` refuses or no weights, or its record and
            tensors disagree.
        MissingFileError: If there is no such file.

    Example:
        >>> import tempfile, torch
        >>> class Net(nn.Module):
        ...     def __init__(self, width=8):
        ...         super().__init__()
        ...         self.layer = nn.Linear(4, width)
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     torch.save(Net(6).state_dict(), f"{folder}/net.pt")
        ...     load_pruned(Net, f"{folder}/net.pt").layer.out_features
        6
    """
    checkpoint = read_checkpoint(path, "cpu", weights_only, "call load_pruned(..., weights_only=False)")
    # Both names of Lightning have such modules, and neither is a class of the other.
    lightning = hasattr(cls, "load_from_checkpoint")
    state = weights_of(checkpoint, path, whole=not lightning)
    if not lightning:
        module = cls(**kwargs)
        adopt_shapes_(module, state)
        module.load_state_dict(state)
        return module.eval()
    load: Any = getattr(cls, "load_from_checkpoint")  # noqa: B009 - no attribute of every module
    # Before Lightning 2.6 it would go to the class as an argument, and was False.
    options = {"weights_only": weights_only} if "weights_only" in inspect.signature(load).parameters else {}
    with _adopting(_built(cls, checkpoint), set(state), kwargs.get("strict"), str(path)):
        return load(path, map_location=map_location, **options, **kwargs)  # type: ignore[no-any-return]


def weights_of(checkpoint: Mapping[str, Any], path: str | PathLike[str], whole: bool = True) -> Mapping[str, Tensor]:
    """The state dict in a Trainer's checkpoint, or the one that a file is; its tensors are checked against its record.

    Args:
        checkpoint: What is in the file.
        path: Of the file, for messages.
        whole: Whether all that the record tells of must be there.

    Raises:
        CheckpointError: If it is neither, or record and tensors disagree.
    """
    state: Mapping[str, Any] = checkpoint.get("state_dict", checkpoint)
    for name, value in state.items():
        if not isinstance(value, Tensor) and not name.endswith(EXTRA_STATE):
            raise CheckpointError(
                f"{path} holds neither a checkpoint of a Trainer nor a state dict: {name!r} is a "
                f"{type(value).__name__}, where a tensor belongs."
            )
    plan = plan_of(checkpoint)
    check_record(plan if whole else plan.only(state), _shapes(state), str(path))
    return state


def _built(cls: type[ModuleT], checkpoint: Mapping[str, Any]) -> type[ModuleT]:
    """The class that Lightning builds: ``cls``, or the one that its command line has noted."""
    hyperparameters = checkpoint.get("hyper_parameters")
    noted = hyperparameters.get(CLASS_PATH) if isinstance(hyperparameters, dict) else None
    module, _, name = str(noted).rpartition(".")
    named = getattr(sys.modules.get(module), name, None)
    return named if isinstance(named, type) and issubclass(named, cls) else cls


@contextmanager
def _adopting(cls: type[nn.Module], brought: Container[str], strict: bool | None, source: str) -> Iterator[None]:
    """Have modules of a class take a checkpoint's shapes between being built and being loaded.

    Not by a subclass: checkpoints of Lightning's command line ask for the very class, classes may keep lists of their
    subclasses, and errors would name one that the user has never seen.
    """
    name = "on_load_checkpoint"
    with _ADOPTING:
        own, before = vars(cls).get(name), getattr(cls, name)

        def adopt_first(self: nn.Module, checkpoint: dict[str, Any]) -> None:
            adopt_shapes_(self, checkpoint["state_dict"])
            before(self, checkpoint)
            settle_(self, checkpoint["state_dict"], plan_of(checkpoint), brought, source, strict)
            adopt_shapes_(self, checkpoint["state_dict"])

        setattr(cls, name, adopt_first)
        try:
            yield
        finally:
            if own is None:
                delattr(cls, name)
            else:
                setattr(cls, name, own)


def plan_of(checkpoint: Mapping[str, Any]) -> PruningPlan:
    """The plan in a checkpoint's record; an empty one where nothing was pruned.

    Raises:
        CheckpointError: If the record can't be read.
    """
    callbacks = checkpoint.get("callbacks", {})
    if RECORD_KEY not in callbacks:
        return PruningPlan({})
    try:
        return PruningPlan.from_state_dict(callbacks[RECORD_KEY]["plan"])
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(f"The record of what was pruned is damaged: {error}") from error


def settle_(
    module: nn.Module,
    state: MutableMapping[str, Any],
    plan: PruningPlan,
    brought: Container[str],
    source: str,
    strict: bool | None = None,
    before: PruningPlan | None = None,
) -> None:
    """Bring in line with a record what its file leaves out, just before a module is loaded.

    What was filled in by the module's own ``on_load_checkpoint`` is cut in the state dict, what is not there at all in
    the module.

    Args:
        module: That will be loaded.
        state: The state dict that it will be given.
        plan: The record's.
        brought: The names that the file has.
        source: Where the checkpoint comes from, for messages.
        strict: Whether all must be there; ``None`` leaves it to the module.
        before: What was pruned of the module so far.

    Raises:
        CheckpointError: If tensors are not as the record says, or missing; then nothing has changed.
    """
    names = names_of_tensors(module)
    plan, before = plan.under(names), (before or PruningPlan({})).under(names)
    shapes, mine = _shapes(state), {name: tensor.shape for name, tensor in tensors_of(module)}
    filled = [name for name in plan.kept if name in shapes and name not in brought and _is_dense(name, shapes, plan)]
    left_out = [group[0] for group in names if group[0] in plan.kept and not any(name in shapes for name in group)]
    whole = _wants_all(module) if strict is None else strict
    # What a module does not save can't be missing.
    excused = {*left_out} - module.state_dict().keys() if whole else plan.kept.keys() - shapes.keys()
    check_record(plan.only(plan.kept.keys() - {*filled, *excused}), shapes, source)
    cut = [name for name in left_out if not is_cut_to(module, plan.only([name]))]
    for name in left_out:
        known = before.only([name])
        if not _is_dense(name, mine, plan) if name in cut else known and known != plan.only([name]):
            raise CheckpointError(
                f"{source} leaves {name} out, which is pruned in the network in another way than by its record. Build "
                "the network again before it is loaded."
            )
    for name in filled:
        state[name] = select(state[name], plan.kept[name])
    shrink_(module, plan.only(cut))


def _wants_all(module: nn.Module) -> bool:
    # A `load_state_dict` of its own passes what it likes.
    own = type(module).load_state_dict is not nn.Module.load_state_dict
    return bool(getattr(module, "strict_loading", True)) and not own


def _is_dense(name: str, shapes: Shapes, plan: PruningPlan) -> bool:
    sizes, shape = plan.sizes.get(name, {}), shapes[name]
    return all(dim < len(shape) and shape[dim] == sizes.get(dim) for dim in plan.kept[name])


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


def check_same_network(module: nn.Module, plan_before: PruningPlan, after: Shapes, plan_after: PruningPlan) -> None:
    """Raise a CheckpointError unless the shapes of a module and others, unpruned, are those of one network.

    Shapes are taken over from a checkpoint; what pruning does not explain, such as another number of classes, must not
    pass in its wake.
    """
    names = names_of_tensors(module)
    plan_before, plan_after = plan_before.under(names), plan_after.under(names)
    for name, shape in _shapes(module.state_dict()).items():
        if (
            name in after
            and shape != after[name]
            and (_dense(name, shape, plan_before) != _dense(name, after[name], plan_after))
        ):
            raise CheckpointError(
                f"{name} has shape {shape} in the network and {after[name]} in the checkpoint, and no pruning on "
                "record explains that: the checkpoint is of a network with other widths or classes."
            )


def _shapes(state: Mapping[str, Tensor]) -> dict[str, tuple[int, ...]]:
    # Modules keep other things there, too: `get_extra_state`.
    return {name: tuple(tensor.shape) for name, tensor in state.items() if isinstance(tensor, Tensor)}


def _dense(name: str, shape: tuple[int, ...], plan: PruningPlan) -> tuple[int, ...]:
    sizes = plan.sizes.get(name, {})
    return tuple(sizes.get(dim, size) for dim, size in enumerate(shape))
