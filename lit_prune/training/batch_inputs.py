"""What of a batch enters the network, where nobody says it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from lit_prune.common._compat import tree_flatten
from lit_prune.common.signatures import by_position
from lit_prune.graph import Call
from lit_prune.training.batch_parts import parts


def inputs_like(module: nn.Module, calls: Sequence[Call], batch: Any) -> tuple[Any, ...] | None:
    """What of a batch is like what a step enters the network with: by its name, or else by place, shape and type.

    Args:
        module: The module whose names the calls carry.
        calls: How a step enters it.
        batch: Tensors in tuples, lists, dicts, dataclasses.

    Returns:
        Positional inputs; ``None`` where the batch has not all of them, or the network is entered in several ways.

    Example:
        >>> import torch
        >>> call = Call("", (torch.zeros(1, 3), torch.zeros(1, 5)))
        >>> batch = {"y": torch.zeros(8), "other": torch.zeros(8, 5), "input": torch.zeros(8, 3)}
        >>> [each.shape for each in inputs_like(nn.Bilinear(3, 5, 1), [call], batch)]
        [torch.Size([8, 3]), torch.Size([8, 5])]
    """
    if len(calls) != 1:
        return None
    named = by_position(module.get_submodule(calls[0].module), calls[0].args, calls[0].kwargs) or []
    rest = _tensors_by_name(batch)
    inputs = [value for _, value in named]
    # What has a name of its own is not taken for another input.
    for place in sorted(range(len(named)), key=lambda place: all(named[place][0] != key for key, _ in rest)):
        name, entered = named[place]
        if isinstance(entered, Tensor):
            shape, dtype = entered.shape[1:], entered.dtype
            alike = [each for each in rest if each[1].dim() and each[1].shape[1:] == shape and each[1].dtype == dtype]
            if not alike:
                return None
            inputs[place] = next((leaf for key, leaf in alike if key == name), alike[0][1])
            rest = [each for each in rest if each[1] is not inputs[place]]
        elif any(isinstance(leaf, Tensor) for leaf in tree_flatten(entered)[0]):
            return None
    return tuple(inputs) or None


def _tensors_by_name(batch: Any) -> list[tuple[str, Tensor]]:
    """The tensors of a batch in their order, each with the key or field that it is under, if there is one."""
    return [(str(place[-1]) if place else "", part) for place, part in parts(batch) if isinstance(part, Tensor)]
