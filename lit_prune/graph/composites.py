"""Functions that the tracer hears of before torch does: those that torch would take apart, and the commonest."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from lit_prune.common._compat import without_dispatch
from lit_prune.graph.memo import output_of
from lit_prune.graph.operation import Operation, tensors_among
from lit_prune.graph.skeleton import MOST_VALUES, remember
from lit_prune.graph.tracer import Tracer

aten = torch.ops.aten


class Composites(TorchFunctionMode):
    """Keeps whole what torch would take apart before the tracer sees it: the parts say less, and cost more.

    The commonest functions are spared the way through torch's dispatcher, which takes longer than their rules.

    Args:
        tracer: Is told of them.
        on_meta: Whether the network is without values.
        only_recurrent: Whether all but recurrent layers go through the tracer as torch takes them apart.
    """

    def __init__(self, tracer: Tracer, on_meta: bool, only_recurrent: bool = False) -> None:
        super().__init__()
        self._tracer = tracer
        self._on_meta = on_meta
        self._known = {} if only_recurrent else _COMPOSITES

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if self._on_meta and func in _DIRECT:
            output = self._directly(func, args, kwargs)
            return func(*args, **kwargs) if output is None else output
        if func in _RECURRENT:
            return self._recurrent(func, args)
        known = self._known.get(func)
        if known is None:
            if self._on_meta and func in _FACTORIES and kwargs.get("device") is None:
                # What a forward makes itself (grids, masks) must lie where the weights are.
                made = func(*args, **kwargs, device="meta")
                return self._copied(func, args, kwargs, made)
            if self._on_meta and func in _COPYING:
                return self._copied(func, args, kwargs, func(*args, **kwargs))
            return func(*args, **kwargs)
        name, places = known
        arguments = {**dict.fromkeys(places), **dict(zip(places, args, strict=False)), **kwargs}
        source = arguments[places[0]]
        if name != "rms_norm" and not (source.is_meta and _fits(name, arguments)):
            return func(*args, **kwargs)
        with without_dispatch():
            if name == "scaled_dot_product_attention":
                output = source.new_empty((*source.shape[:-1], arguments["value"].shape[-1]))
            else:
                output = _same(source) if source.is_meta else func(*args, **kwargs)
        operation = Operation(name, arguments, output)
        numbers = [float(value) for value in arguments.values() if isinstance(value, (int, float))]
        tensors = operation.tensors()
        self._tracer.note(operation, numbers, True, tensors, [*map(self._tracer.origins.entry, tensors)])
        self._tracer.apply(operation, f"aten::{name}")
        self._tracer.origins.enter(operation.outputs())
        return output

    def _copied(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], made: Tensor) -> Tensor:
        """Remember the numbers that a new tensor stands for: no operation carries them."""
        if func in _COPYING and made.is_meta and made.numel() <= MOST_VALUES and not tensors_among(args[-1:]):
            with without_dispatch():
                value = func(*args, **{**kwargs, "device": torch.device("cpu")})
            remember(made, value)
            self._tracer.origins.begin(made, value)
        return made

    def _recurrent(self, func: Any, args: tuple[Any, ...]) -> Any:
        """A recurrent layer over a batch, or over packed sequences: those have their lengths in the second place."""
        with without_dispatch():
            output = func(*args)
        packed = isinstance(args[3], (list, tuple))
        values = dict(zip(_PACKED if packed else _BATCHED, args, strict=True))
        initial = values["hx"]
        values["hx"] = [initial] if isinstance(initial, Tensor) else list(initial)
        operation = Operation(_RECURRENT[func], values, output)
        self._tracer.apply(operation, f"aten::{_RECURRENT[func]}")
        self._tracer.origins.enter(operation.outputs())
        return output

    def _directly(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        plain, in_place = _DIRECT[func]
        if func in _WEIGHTED and (len(args) < 2 or args[1].dim() != (2 if func is F.linear else args[0].dim())):
            # Without a batch, or onto one row, torch reshapes.
            return None
        if "inplace" in kwargs:
            plain = in_place if kwargs["inplace"] else plain
            kwargs = {key: value for key, value in kwargs.items() if key != "inplace"}
        with without_dispatch():
            return self._tracer.foresee(plain, args, kwargs)


_COMPOSITES: dict[Any, tuple[str, tuple[str, ...]]] = {
    F.rms_norm: ("rms_norm", ("input", "normalized_shape", "weight", "eps")),
    torch.rms_norm: ("rms_norm", ("input", "normalized_shape", "weight", "eps")),
    F.scaled_dot_product_attention: (
        "scaled_dot_product_attention",
        ("query", "key", "value", "attn_mask", "dropout_p", "is_causal", "scale"),
    ),
    F.batch_norm: (
        "batch_norm",
        ("input", "running_mean", "running_var", "weight", "bias", "training", "momentum", "eps"),
    ),
}

_RECURRENT = {getattr(torch, name): name for name in ("lstm", "gru", "rnn_tanh", "rnn_relu")}
_BATCHED = tuple("input hx params has_biases num_layers dropout train bidirectional batch_first".split())
_PACKED = tuple("input batch_sizes hx params has_biases num_layers dropout train bidirectional".split())

_WEIGHTED = frozenset((F.linear, torch.conv1d, torch.conv2d, torch.conv3d))
# The operation of the same arguments, and that which works in place.
_DIRECT: dict[Any, tuple[Any, Any]] = {
    F.linear: (aten.linear.default, None),
    torch.conv1d: (aten.conv1d.default, None),
    torch.conv2d: (aten.conv2d.default, None),
    torch.conv3d: (aten.conv3d.default, None),
    F.silu: (aten.silu.default, aten.silu_.default),
    F.relu: (aten.relu.default, aten.relu_.default),
    F.hardswish: (aten.hardswish.default, aten.hardswish_.default),
    F.gelu: (aten.gelu.default, None),
    torch.cat: (aten.cat.default, None),
    Tensor.add: (aten.add.Tensor, None),
    Tensor.mul: (aten.mul.Tensor, None),
    Tensor.add_: (aten.add_.Tensor, None),
}

# As `with torch.device("meta")` has them, whose own mode would cost as much again as this one.
_FACTORIES = frozenset(
    getattr(torch, name)
    for name in "empty empty_permuted empty_strided zeros ones full eye arange range linspace logspace rand randn "
    "randint randperm tensor as_tensor scalar_tensor asarray tril_indices triu_indices bartlett_window "
    "blackman_window hamming_window hann_window kaiser_window".split()
)


# Those whose numbers no operation carries.
_COPYING = frozenset((torch.tensor, torch.as_tensor, torch.asarray, Tensor.new_tensor))


def _same(source: Tensor) -> Tensor:
    return cast(Tensor, output_of(aten.empty_like.default, (source,), {}))


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
