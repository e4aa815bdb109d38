"""What enters the network: from the user's example, or from the first batch that passes through it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn
from torch.utils._pytree import tree_flatten, tree_map_only

from lit_prune.graph import Call

# A step that enters more submodules than this one by one calls layers, not networks.
_MOST_CALLS = 64


class CallRecorder:
    """Records how a module, or its submodules, are entered from outside, until it is closed.

    A step of a LightningModule may call the module itself (``self(x)``) or the networks that it holds
    (``self.generator(z)``, ``self.encoder(x)``). Each call that is not inside of another one is recorded, once for
    every combination of shapes; of each batch the first example is kept.

    Args:
        module: The module whose names the calls carry.

    Example:
        >>> import torch
        >>> net = nn.ModuleDict({"encoder": nn.Linear(4, 2), "head": nn.Linear(2, 1)})
        >>> recorder = CallRecorder(net)
        >>> _ = net["head"](net["encoder"](torch.rand(8, 4)))
        >>> [(call.module, call.args[0].shape) for call in recorder.close()]
        [('encoder', torch.Size([1, 4])), ('head', torch.Size([1, 2]))]
    """

    def __init__(self, module: nn.Module) -> None:
        self._calls: dict[Any, Call] = {}
        self._inside = 0
        self._handles: list[Any] = []
        for name, child in module.named_modules():
            if any(True for _ in child.parameters()):
                self._handles.append(child.register_forward_pre_hook(self._entering(name), with_kwargs=True))
                self._handles.append(child.register_forward_hook(self._leaving, always_call=True))

    def close(self) -> list[Call]:
        """Remove all hooks; the calls, in the order in which they came."""
        for handle in self._handles:
            handle.remove()
        self._handles = []
        return list(self._calls.values())

    def _entering(self, name: str) -> Any:
        def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            if self._is_redirected(module):
                return
            self._inside += 1
            if self._inside == 1 and len(self._calls) < _MOST_CALLS:
                call = first_example(Call(name, args, kwargs))
                self._calls.setdefault(_signature(call), call)

        return hook

    def _leaving(self, module: nn.Module, *_: Any) -> None:
        self._inside = max(0, self._inside - 1)

    @staticmethod
    def _is_redirected(module: nn.Module) -> bool:
        """Whether ``forward`` stands for something else now: strategies send a whole training step through it."""
        own = vars(module).get("forward")
        return own is not None and getattr(own, "__func__", own) is not type(module).forward


def first_example(call: Call) -> Call:
    """The call with the first example of its batch alone, detached; as it is where its tensors share no first size."""
    leaves = [leaf for leaf in tree_flatten((call.args, dict(call.kwargs)))[0] if isinstance(leaf, Tensor)]
    sizes = {leaf.shape[0] if leaf.dim() else None for leaf in leaves}
    batched = len(sizes) == 1 and sizes != {None}

    def cut(tensor: Tensor) -> Tensor:
        return (tensor[:1] if batched else tensor).detach().clone()

    return Call(
        call.module, tree_map_only(Tensor, cut, tuple(call.args)), tree_map_only(Tensor, cut, dict(call.kwargs))
    )


def call_of_example(example: Any) -> Call:
    """How Lightning calls a module with its ``example_input_array``: a dict by keywords, a tuple by position."""
    if isinstance(example, Mapping):
        return first_example(Call("", (), dict(example)))
    return first_example(Call("", example if isinstance(example, tuple) else (example,)))


def _signature(call: Call) -> Any:
    leaves, structure = tree_flatten((call.args, dict(call.kwargs)))
    shapes = tuple((tuple(leaf.shape), leaf.dtype) if isinstance(leaf, Tensor) else repr(leaf)[:80] for leaf in leaves)
    return call.module, str(structure), shapes
