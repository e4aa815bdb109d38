"""What enters the network: from the user's example, or from the first batch that passes through it."""

from __future__ import annotations

import inspect
import math
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from lit_prune.common._compat import in_backward, tree_flatten, tree_map_only
from lit_prune.common.running import eagerly
from lit_prune.errors import ArgumentTypeError
from lit_prune.graph import Call
from lit_prune.graph.skeleton import made_up
from lit_prune.training.entry import Entry
from lit_prune.training.step import StepCall

# Larger tensors are images and the like: of these the shape tells enough.
FEW = 1024
# A step that enters more submodules than this one by one calls layers, not networks.
_MOST_CALLS = 64
# A forward that goes through its batch in parts, of so many at most, shows all that it does with so many examples.
_MOST_PARTS, _FEW_EXAMPLES = 5, 8


class CallRecorder:
    """Records how a module, or its submodules, are entered from outside, until it is closed.

    A step of a LightningModule may call the module itself (``self(x)``) or the networks that it holds
    (``self.generator(z)``, ``self.encoder(x)``). Each call that is not inside of another one is recorded, once for
    every combination of shapes; of each batch the first example counts, and of that only shapes and types are kept.
    Until then nothing is compiled: it would be with the hooks of this, and once more without.

    Args:
        module: The module whose names the calls carry.

    Attributes:
        batch: What the step is made with.
        entries: What of it enters.

    Example:
        >>> net = nn.ModuleDict({"encoder": nn.Linear(4, 2), "head": nn.Linear(2, 1)})
        >>> recorder = CallRecorder(net)
        >>> _ = net["head"](net["encoder"](torch.rand(8, 4)))
        >>> [(call.module, call.args[0].shape) for call in recorder.close()]
        [('encoder', torch.Size([1, 4])), ('head', torch.Size([1, 2]))]
    """

    def __init__(self, module: nn.Module) -> None:
        self.batch: Any = None
        self.entries: list[Entry] = []
        self._calls: dict[Any, Call] = {}
        self._inside = 0
        self._handles: list[Any] = []
        self._open = ExitStack()
        self._open.enter_context(eagerly())
        for name, child in module.named_modules():
            # What is inside of a script calls no hook.
            if any(True for _ in child.parameters()) and not isinstance(child, torch.jit.ScriptModule):
                self._handles.append(child.register_forward_pre_hook(self._entering(name), with_kwargs=True))
                self._handles.append(child.register_forward_hook(self._leaving, always_call=True))

    @property
    def is_empty(self) -> bool:
        """Whether nothing was entered so far."""
        return not self._calls

    def close(self) -> list[Call]:
        """Remove all hooks; the calls, in the order in which they came."""
        for handle in self._handles:
            handle.remove()
        self._handles = []
        self._open.close()
        self.batch = None
        return list(self._calls.values())

    def _entering(self, name: str) -> Any:
        def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            # What checkpointing computes again is no call.
            if in_backward() or (not name and self._is_redirected(module)):
                return
            self._inside += 1
            if self._inside == 1 and len(self._calls) < _MOST_CALLS:
                call = first_example(Call(name, args, kwargs))
                self._calls.setdefault(_signature(call), call)
                entry = Entry.of(name, args, kwargs, self.batch)
                if self.batch is not None and entry not in self.entries:
                    self.entries.append(entry)

        return hook

    def _leaving(self, module: nn.Module, *_: Any) -> None:
        if not in_backward():
            self._inside = max(0, self._inside - 1)

    @staticmethod
    def _is_redirected(module: nn.Module) -> bool:
        """Whether ``forward`` stands for something else now: strategies send a whole training step through it."""
        own = vars(module).get("forward")
        return own is not None and getattr(own, "__func__", own) is not type(module).forward


def first_example(call: Call) -> Call:
    """A call with one example of made-up values; of the whole batch where its tensors share no first size.

    What channels are coupled does not depend on values, and made-up ones are the same in a resumed run.
    """
    leaves = [leaf for leaf in tree_flatten((call.args, dict(call.kwargs)))[0] if isinstance(leaf, Tensor)]
    sizes = {leaf.shape[0] if leaf.dim() else None for leaf in leaves}
    batched = len(sizes) == 1 and sizes != {None}

    (size,) = sizes if batched else {1}
    return _standing_in(replace(call, examples=size or 1), 1 if batched else None)


def several_examples(call: Call) -> Call:
    """The call with some examples that can be divided as those of its batch can; itself where it had one alone.

    Example:
        >>> call = first_example(Call("", (torch.zeros(96, 3),)))
        >>> call.args[0].shape, several_examples(call).args[0].shape
        (torch.Size([1, 3]), torch.Size([12, 3]))
    """
    if call.is_step or call.examples == 1:
        return call
    parts = math.lcm(*(part for part in range(2, _MOST_PARTS + 1) if not call.examples % part))
    sizes = range(parts, call.examples + 1, parts)
    return _standing_in(call, next(size for size in sizes if size >= _FEW_EXAMPLES or size == call.examples))


def _standing_in(call: Call, examples: int | None) -> Call:
    """A call with made-up values, of so many examples; ``None`` leaves the shapes."""

    def stand_in(tensor: Tensor) -> Tensor:
        shape = tuple(tensor.shape) if examples is None else (examples, *tensor.shape[1:])
        return made_up(shape, tensor.dtype, tensor.device)

    args, kwargs = tree_map_only(Tensor, stand_in, (tuple(call.args), dict(call.kwargs)))
    return replace(call, args=args, kwargs=kwargs)


def step_of(module: Any, batch: Any, batch_idx: int | None, name: str = "training_step") -> StepCall | None:
    """The step that a Trainer has just made, with a batch of the same shapes; None where that can't be made again.

    Small tensors keep their values: lengths, classes and boxes decide what a step does.

    Args:
        module: Makes the step.
        batch: Its batch.
        batch_idx: The number of the batch; ``None`` where the step takes none.
        name: The method that makes it.
    """
    parameters = inspect.signature(getattr(module, name)).parameters
    if "dataloader_iter" in parameters:
        return None

    def stand_in(tensor: Tensor) -> Tensor:
        few = tensor.numel() <= FEW
        return tensor.detach().clone() if few else torch.empty(tensor.shape, dtype=tensor.dtype, device="meta")

    # As Lightning does it: the second argument may have any name.
    arguments = (batch, batch_idx) if len(parameters) > 1 and batch_idx is not None else (batch,)
    call = StepCall("", tree_map_only(Tensor, stand_in, arguments), {}, name)
    if len(parameters) > 2 and name != "training_step":
        return replace(call, kwargs={"dataloader_idx": 0} if "dataloader_idx" in parameters else {})
    return call


def calls_to_state(calls: Sequence[Call]) -> list[dict[str, Any]] | None:
    """Calls as plain data, tensors by shape and type; ``None`` where they hold something that is not plain.

    Example:
        >>> state = calls_to_state([Call("", (torch.zeros(1, 3),), {"scale": 2.0})])
        >>> calls_from_state(state, torch.device("cpu"))[0].args[0].shape
        torch.Size([1, 3])
    """
    try:
        return [
            {
                "module": call.module,
                "args": _pack(call.args),
                "kwargs": _pack(dict(call.kwargs)),
                "examples": call.examples,
                **({"step": call.name} if isinstance(call, StepCall) else {}),
            }
            for call in calls
        ]
    except TypeError:
        return None


def calls_from_state(state: Sequence[Mapping[str, Any]], device: torch.device) -> list[Call]:
    """The calls that :func:`calls_to_state` wrote, on a device."""
    return [_call_from_state(each, device) for each in state]


def _call_from_state(state: Mapping[str, Any], device: torch.device) -> Call:
    # Of a step only what is small has values.
    place = torch.device("meta") if "step" in state else device
    parts = state["module"], _unpack(state["args"], place), _unpack(state["kwargs"], place)
    # Checkpoints of earlier releases do not tell.
    examples = state.get("examples", 1)
    return StepCall(*parts, name=state["step"]) if "step" in state else Call(*parts, examples=examples)


def _pack(value: Any) -> Any:
    if isinstance(value, Tensor) and not value.is_meta and value.numel() <= FEW:
        return {"values": value.detach().cpu()}
    if isinstance(value, Tensor):
        return {"tensor": list(value.shape), "dtype": value.dtype}
    if type(value) in (tuple, list):
        return {type(value).__name__: [_pack(item) for item in value]}
    if type(value) is dict:
        return {"dict": {key: _pack(item) for key, item in value.items()}}
    if value is None or type(value) in (bool, int, float, str):
        return {"value": value}
    raise ArgumentTypeError(f"{type(value).__name__} is not plain data")


def _unpack(packed: Mapping[str, Any], device: torch.device) -> Any:
    if "values" in packed:
        return packed["values"] if device.type == "meta" else packed["values"].to(device)
    if "tensor" in packed:
        return made_up(packed["tensor"], packed["dtype"], device)
    if "dict" in packed:
        return {key: _unpack(item, device) for key, item in packed["dict"].items()}
    for kind in (tuple, list):
        if kind.__name__ in packed:
            return kind(_unpack(item, device) for item in packed[kind.__name__])
    return packed["value"]


def call_of_example(example: Any, device: torch.device) -> Call:
    """How Lightning calls a module with its ``example_input_array``: a dict by keywords, a tuple by position."""
    example = tree_map_only(Tensor, lambda tensor: tensor.to(device), example)
    if isinstance(example, Mapping):
        return Call("", (), dict(example))
    return Call("", example if isinstance(example, tuple) else (example,))


def _signature(call: Call) -> Any:
    leaves, structure = tree_flatten((call.args, dict(call.kwargs)))
    shapes = tuple((tuple(leaf.shape), leaf.dtype) if isinstance(leaf, Tensor) else repr(leaf)[:80] for leaf in leaves)
    return call.module, str(structure), shapes
