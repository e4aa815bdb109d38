"""Functions that the tracer hears of before torch does: those that torch would take apart, and the commonest."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from lit_prune.graph.meta_kernels import empty_like
from lit_prune.graph.operation import Operation
from lit_prune.graph.tracer import Tracer

aten = torch.ops.aten


class Composites(TorchFunctionMode):
    """Keeps whole what torch would take apart before the tracer sees it: the parts say less, and cost more.

    The commonest functions are spared the way through torch's dispatcher too, which takes longer than their rules.
    """

    def __init__(self, tracer: Tracer, on_meta: bool) -> None:
        super().__init__()
        self._tracer = tracer
        self._on_meta = on_meta

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        shortcut = _SHORTCUTS.get(func) if self._on_meta else None
        if shortcut is not None and (call := shortcut(*args, **kwargs)) is not None:
            with torch._C._DisableTorchDispatch():
                output = self._tracer.foresee(*call)
            return func(*args, **kwargs) if output is None else output
        known = _COMPOSITES.get(func)
        if known is None:
            if self._on_meta and func in _FACTORIES and kwargs.get("device") is None:
                # What a forward makes anew (grids, masks) must lie where the weights are.
                kwargs = {**kwargs, "device": "meta"}
            return func(*args, **kwargs)
        name, places = known
        arguments = {**dict.fromkeys(places), **dict(zip(places, args, strict=False)), **kwargs}
        source = arguments[places[0]]
        if name != "rms_norm" and not (source.is_meta and _fits(name, arguments)):
            return func(*args, **kwargs)
        with torch._C._DisableTorchDispatch():
            if name == "scaled_dot_product_attention":
                output = source.new_empty((*source.shape[:-1], arguments["value"].shape[-1]))
            else:
                output = _same(source) if source.is_meta else func(*args, **kwargs)
        self._tracer.apply(Operation(name, arguments, output), f"aten::{name}")
        return output


_COMPOSITES: dict[Any, tuple[str, tuple[str, ...]]] = {
    F.rms_norm: ("rms_norm", ("input", "normalized_shape", "weight", "eps")),
    torch.rms_norm: ("rms_norm", ("input", "normalized_shape", "weight", "eps")),
    F.scaled_dot_product_attention: (
        "scaled_dot_product_attention",
        ("query", "key", "value", "attn_mask", "dropout_p", "is_causal", "scale"),
    ),
    F.batch_norm: ("batch_norm", ("input", "running_mean", "running_var", "weight", "bias", "training")),
}

# The operation that a function comes to with its arguments; None where it is called in a rarer way.
Shortcut = Callable[..., "tuple[Any, tuple[Any, ...]] | None"]


def _convolution(*args: Any, **named: Any) -> tuple[Any, tuple[Any, ...]] | None:
    if named or not 2 <= len(args) <= 7:
        return None
    defaults: tuple[Any, ...] = (None, (1,), (0,), (1,), 1)
    *operands, stride, padding, dilation, groups = args + defaults[len(args) - 2 :]
    window = (stride, padding, dilation)
    fits = all(isinstance(given, tuple) for given in window)
    return (aten.convolution.default, (*operands, *window, False, (0,), groups)) if fits else None


def _activation(name: str) -> Shortcut:
    plain, in_place = getattr(aten, name).default, getattr(aten, f"{name}_").default

    def shortcut(*args: Any, inplace: bool = False, **named: Any) -> tuple[Any, tuple[Any, ...]] | None:
        return None if named or len(args) != 1 else (in_place if inplace else plain, args)

    return shortcut


def _cat(*args: Any, dim: int | None = None, **named: Any) -> tuple[Any, tuple[Any, ...]] | None:
    return None if named or not args else (aten.cat.default, args if dim is None else (*args, dim))


def _positional(operation: Any) -> Shortcut:
    def shortcut(*args: Any, **named: Any) -> tuple[Any, tuple[Any, ...]] | None:
        return None if named else (operation, args)

    return shortcut


_SHORTCUTS: dict[Any, Shortcut] = {
    **dict.fromkeys((torch.conv1d, torch.conv2d, torch.conv3d), _convolution),
    F.silu: _activation("silu"),
    F.relu: _activation("relu"),
    F.hardswish: _activation("hardswish"),
    F.gelu: _positional(aten.gelu.default),
    torch.cat: _cat,
    F.linear: _positional(aten.linear.default),
    Tensor.add: _positional(aten.add.Tensor),
    Tensor.mul: _positional(aten.mul.Tensor),
    Tensor.add_: _positional(aten.add_.Tensor),
}

# As `with torch.device("meta")` has them, whose own mode would cost as much again as this one.
_FACTORIES = frozenset(
    getattr(torch, name)
    for name in "empty empty_permuted empty_strided zeros ones full eye arange range linspace logspace rand randn "
    "randint randperm tensor as_tensor scalar_tensor asarray tril_indices triu_indices bartlett_window "
    "blackman_window hamming_window hann_window kaiser_window".split()
)


def _same(source: Tensor) -> Tensor:
    output = empty_like(source)
    return torch.empty_like(source) if output is None else output


def _fits(name: str, arguments: Mapping[str, Any]) -> bool:
    """Whether an operation has what it takes; where not, torch itself shall say so."""
    if name == "batch_norm":
        own = [arguments[key] for key in ("running_mean", "running_var", "weight", "bias")]
        width = arguments["input"].shape[1]
        return not arguments["training"] and all(tensor is None or tensor.numel() == width for tensor in own)
    query, key, value, mask = (arguments[part] for part in ("query", "key", "value", "attn_mask"))
    if not query.dim() == key.dim() == value.dim() == 4 or arguments["is_causal"]:
        return False
    shape = (*query.shape[:3], key.shape[2])
    fitting = mask is None or all(size in (1, want) for size, want in zip(mask.shape[::-1], shape[::-1], strict=False))
    return query.shape[:2] == key.shape[:2] == value.shape[:2] and query.shape[3] == key.shape[3] and fitting
