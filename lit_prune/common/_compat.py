"""Private names of torch, torchmetrics and Python that are used nevertheless, each with the reason.

Such names may go or change with any release; `tests/common/test_compat.py` tells when one has. Those of Lightning,
scikit-learn and Ultralytics have a `_compat.py` where they are used.
"""

from __future__ import annotations

import copyreg
import sys
from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

# The common bases of torch's layers have no public name, and lists of their children would lack those of a user.
from torch.nn.modules.batchnorm import _NormBase as NormBase
from torch.nn.modules.conv import _ConvNd as ConvNd
from torch.nn.modules.conv import _ConvTransposeNd as ConvTransposeNd
from torch.optim import Optimizer
from torch.utils._python_dispatch import TorchDispatchMode

# What torch itself walks nested arguments by; the public torch.utils.pytree is younger than the oldest torch here.
from torch.utils._pytree import tree_flatten, tree_map_only, tree_unflatten

__all__ = ["ConvNd", "ConvTransposeNd", "NormBase", "tree_flatten", "tree_map_only", "tree_unflatten"]

RUN_HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
"""Attributes in which a module keeps what runs with it; there is no public way to list hooks."""

STATE_HOOKS = ("_state_dict_hooks", "_state_dict_pre_hooks", "_load_state_dict_pre_hooks")
"""Attributes in which a module keeps what runs when it is saved or loaded."""

OPTIMIZER_HOOKS = "_optimizer_"
"""How attributes begin in which an optimizer keeps hooks; a copy that is only tried must not run them."""

COMPILED_CALL = "_compiled_call_impl"
"""The attribute under which `module.compile()` keeps compiled code: that of a copy would run the original."""

COMPILED = "_orig_mod"
"""The name under which what `torch.compile` returns holds its module; it is in the names of all below."""

EXTRA_STATE = "_extra_state"
"""How the names of what `get_extra_state` returns end in a state dict: they alone need not be tensors."""

CLASS_PATH, INSTANTIATOR = "_class_path", "_instantiator"
"""What Lightning's command line notes in a checkpoint among the arguments of the model: which class, and by whom."""

# Without it each operation of a tracer would come back to the tracer. Public modes only add to what is seen.
without_dispatch = torch._C._DisableTorchDispatch

# Where products run, each with its settings.
_PRODUCTS: list[Any] = [torch.backends.cuda.matmul, getattr(torch.backends.mkldnn, "matmul", None)]

_CYCLES = 2e9
"""Of a GPU in a second."""

# What `Tensor.item()` does; as an operator it has no public name.
ITEM = torch.ops.aten._local_scalar_dense.default

# One kernel for all tensors of an average; torch's own `AveragedModel` uses it, and there is no public one.
lerp_all_ = torch._foreach_lerp_


@contextmanager
def full_products() -> Iterator[None]:
    """Within, products of float32 are not rounded to fewer bits; `torch.set_float32_matmul_precision` may have said so.

    Releases up to 2.8 have one setting for all devices; asked for it, later ones fail where each has its own.
    """
    settings = [backend for backend in _PRODUCTS if hasattr(backend, "fp32_precision")]
    if settings:
        before = [backend.fp32_precision for backend in settings]
        for backend in settings:
            backend.fp32_precision = "ieee"
    else:
        precision = torch.get_float32_matmul_precision()
        torch.set_float32_matmul_precision("highest")
    try:
        yield
    finally:
        if settings:
            for backend, value in zip(settings, before, strict=True):
                backend.fp32_precision = value
        else:
            torch.set_float32_matmul_precision(precision)


def hold_device(seconds: float) -> None:
    """Keep the current GPU busy for about so long; nothing public does so without work."""
    if seconds > 0:
        torch.cuda._sleep(int(seconds * _CYCLES))  # type: ignore[no-untyped-call]


class DispatchMode(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Sees every operation: the documented way to do so, though its module is private."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        # Otherwise torch imports its whole compiler when the first operation arrives: one to two seconds.
        return False


def schema_of(operator: Any) -> Any:
    """Names, defaults and aliases of an operator's arguments, which nothing public tells."""
    return operator._schema


def memory_of(tensor: Tensor) -> int:
    """A number that a tensor and its views have in common; the public `data_ptr` of all meta tensors is 0."""
    return int(tensor.untyped_storage()._cdata)


def load_hooks(module: nn.Module) -> OrderedDict[int, Any]:
    """What runs before a module is loaded, in order and to be reordered: torch can only register a last one."""
    # An ordered dict, whatever its annotation says.
    hooks: Any = module._load_state_dict_pre_hooks
    return hooks  # type: ignore[no-any-return]


def clear_hooks_(module: nn.Module) -> None:
    """Take all hooks off one module, whoever registered them; the public way takes a handle for each."""
    for name in (*RUN_HOOKS, *STATE_HOOKS):
        vars(module)[name].clear()


def forward_hooks(module: nn.Module) -> list[Any]:
    """What runs before and after the forward of one module."""
    return [*module._forward_pre_hooks.values(), *module._forward_hooks.values()]


def weight_hooks(module: nn.Module) -> list[Callable[[nn.Module, Any], Any]]:
    """Torch's own hooks that compute a weight before each forward (weight_norm, spectral_norm, prune)."""
    hooks = module._forward_pre_hooks.values()
    return [hook for hook in hooks if type(hook).__module__.startswith("torch.nn.utils.")]


def remove_forward_hooks_(module: nn.Module, is_meant: Callable[[Any], bool]) -> list[Any]:
    """Take forward hooks and pre-hooks off one module, those of a copy too, to which no handle leads; return them."""
    removed = []
    for table in (module._forward_pre_hooks, module._forward_hooks):
        for key, hook in list(table.items()):
            if is_meant(hook):
                removed.append(table.pop(key))
                module._forward_hooks_always_called.pop(key, None)
    return removed


def in_backward() -> bool:
    """Whether this thread is computing gradients: what runs then was run before."""
    return int(torch._C._current_graph_task_id()) != -1


def comm_hooks(wrapper: Any) -> list[tuple[Any, Any]]:
    """Communication hooks of DDP's wrapper, each with its state: they are registered, but can't be asked for."""
    return list(getattr(wrapper, "_comm_hooks", ()))


def compiler_is_loaded() -> bool:
    """Whether anything can have been compiled: to ask the compiler imports all of it, one to two seconds."""
    return "torch._dynamo" in sys.modules


def is_compiled(kind: type) -> bool:
    """Whether a class is that of what `torch.compile` returns, by name: to import it is to import the compiler."""
    names = [(base.__module__, base.__name__) for base in kind.__mro__]
    return ("torch._dynamo.eval_frame", "OptimizedModule") in names


def runs_compiled(module: nn.Module) -> bool:
    """Whether a module itself was compiled: for a hook that comes later it would be once more."""
    return hasattr(module, COMPILED) or getattr(module, COMPILED_CALL, None) is not None


def has_slots(kind: type) -> bool:
    """Whether instances hold anything besides their `__dict__`, as `copy` finds out."""
    return bool(copyreg._slotnames(kind))  # type: ignore[attr-defined]


def take_count_(metric: Any, other: Any) -> None:
    """Count the updates of another metric as this one's, so that torchmetrics does not warn that it has none."""
    metric._update_count = other.update_count


def unscales_itself(optimizer: Optimizer) -> bool:
    """Whether an optimizer takes gradients as a scaler leaves them, as fused ones do; only this attribute says so."""
    return bool(getattr(optimizer, "_step_supports_amp_scaling", False))
