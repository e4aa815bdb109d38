"""Normalisation as if removed channels were not there: what a masked network needs to be a reference.

A LayerNorm or GroupNorm takes its mean and variance over channels. In a shrunk network they are those of the channels
that are left: that is what a norm of that width computes, and what fine-tuning continues from. Zeroed channels would
pull the statistics toward zero, so a masked network leaves them out in the same way. A convolution that standardises
its weight (Qiao et al., "Weight Standardization", 2019) takes them over its inputs: the same holds for these.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from contextvars import ContextVar
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from lit_prune.common._compat import ConvNd, NormBase, remove_forward_hooks_
from lit_prune.common.names import find_module, modules_of
from lit_prune.plan import PruningPlan

_suspended = ContextVar("suspended", default=False)


@contextmanager
def as_it_is() -> Iterator[None]:
    """While open, norms of masked networks look at all channels."""
    token = _suspended.set(True)
    try:
        yield
    finally:
        _suspended.reset(token)


class Masking(ABC):
    """A pair of forward hooks that make a masked network the reference for a shrunk one."""

    network: nn.Module
    plan: PruningPlan

    @abstractmethod
    def enter(self, *_: Any) -> None:
        """Before the forward of a module."""

    @abstractmethod
    def leave(self, *_: Any) -> None:
        """After it."""

    @abstractmethod
    def after(self, plan: PruningPlan) -> Masking | None:
        """The hooks for the network once it is cut to ``plan``; None where it needs none."""

    def register_(self) -> None:
        """Hook every module of the network."""
        for _, module in modules_of(self.network):
            module.register_forward_pre_hook(self.enter)
            module.register_forward_hook(self.leave, always_call=True)


class KeptStatistics:
    """A forward hook pair that has a module's norm look at some of its channels only; the others come out as zero.

    Args:
        kept: Dimension of the norm's weight to the indices that count.
    """

    def __init__(self, kept: Mapping[int, Tensor]) -> None:
        self.kept = dict(kept)
        self._open: list[ExitStack] = []

    def enter(self, module: nn.Module, _: Any) -> None:
        """Before the forward."""
        stack = ExitStack()
        if not _suspended.get():
            stack.enter_context(_KeptNorm(module.get_parameter("weight"), self.kept))
        self._open.append(stack)

    def leave(self, *_: Any) -> None:
        """After the forward, also one that failed."""
        self._open.pop().close()


def keep_statistics_(module: nn.Module, plan: PruningPlan) -> None:
    """Have every norm whose weight ``plan`` cuts take its statistics from what is kept."""
    for child, dims in _norms(module, plan):
        before = _release_(child)
        _register_(child, {dim: _intersection(indices, before.get(dim)) for dim, indices in dims.items()})


def shrink_statistics_(module: nn.Module, plan: PruningPlan) -> None:
    """Bring what :func:`keep_statistics_` did in line with a cut: what is gone need not be left out any more."""
    for masking in release_maskings_(module):
        remaining = masking.after(plan)
        if remaining is not None:
            remaining.register_()
    for child, dims in _norms(module, plan):
        before = _release_(child)
        left = {dim: torch.isin(dims[dim], kept).nonzero().flatten() for dim, kept in before.items() if dim in dims}
        if any(len(indices) < len(dims[dim]) for dim, indices in left.items()):
            _register_(child, left)


def release_maskings_(module: nn.Module) -> list[Masking]:
    """Take the hooks of :class:`Masking` off a network, and return what they were of."""
    found: dict[int, Masking] = {}
    for _, child in modules_of(module):
        for hook in remove_forward_hooks_(child, lambda hook: isinstance(getattr(hook, "__self__", None), Masking)):
            found[id(hook.__self__)] = hook.__self__
    return [*found.values()]


def _norms(module: nn.Module, plan: PruningPlan) -> Iterator[tuple[nn.Module, Mapping[int, Tensor]]]:
    """Whatever may normalise over channels by a weight that the plan cuts."""
    for name, dims in plan.kept.items():
        path, _, own = name.rpartition(".")
        child = find_module(module, path) if own == "weight" else None
        if child is None or isinstance(child, (NormBase, nn.Linear, nn.Embedding, torch.jit.ScriptModule)):
            continue
        if not isinstance(child, ConvNd):
            yield child, dims
        elif 1 in dims and not type(child).forward.__module__.startswith("torch."):
            # Outputs are standardised each by itself.
            yield child, {1: dims[1]}


def _register_(module: nn.Module, kept: Mapping[int, Tensor]) -> None:
    statistics = KeptStatistics(kept)
    module.register_forward_pre_hook(statistics.enter)
    module.register_forward_hook(statistics.leave, always_call=True)


def _release_(module: nn.Module) -> Mapping[int, Tensor]:
    """Take the hooks off one module (not its children), and return what they kept."""
    kept: Mapping[int, Tensor] = {}
    for hook in remove_forward_hooks_(module, lambda hook: isinstance(getattr(hook, "__self__", None), KeptStatistics)):
        kept = hook.__self__.kept
    return kept


def _intersection(indices: Tensor, others: Tensor | None) -> Tensor:
    return indices if others is None else indices[torch.isin(indices, others)]


class _KeptNorm(TorchFunctionMode):
    """While open, norms by one weight run over the kept indices."""

    def __init__(self, weight: Tensor, kept: Mapping[int, Tensor]) -> None:
        super().__init__()
        self._weight = weight
        self._kept = {dim: indices.to(weight.device) for dim, indices in kept.items()}

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        places = _PLACES.get(func)
        if func is F.batch_norm:
            return self._standardised(dict(zip(_BATCH_NORM, args, strict=False)) | kwargs)
        if places is None:
            return func(*args, **kwargs)
        arguments = {**dict(zip(places, args, strict=False)), **kwargs}
        if arguments.get("weight") is not self._weight:
            return func(*args, **kwargs)
        source = arguments["input"]
        first = 1 if "num_groups" in places else source.dim() - len(arguments["normalized_shape"])
        over = {first + dim: indices for dim, indices in self._kept.items()}
        arguments["input"] = _select(source, over)
        for name in ("weight", "bias"):
            if arguments.get(name) is not None:
                arguments[name] = _select(arguments[name], self._kept)
        if arguments.get("num_groups") == source.shape[1]:
            arguments["num_groups"] = len(self._kept[0])
        if "normalized_shape" in arguments:
            arguments["normalized_shape"] = tuple(arguments["weight"].shape)
        return _spread(func(**arguments), over, source.shape)

    def _standardised(self, arguments: dict[str, Any]) -> Tensor:
        """A batch norm; of the weight itself, shaped ``(1, outputs, inputs and kernel)``, over the kept inputs."""
        source, weight = arguments["input"], self._weight
        own = source.untyped_storage().data_ptr() == weight.untyped_storage().data_ptr()
        if own and arguments.get("training") and source.shape == (1, len(weight), weight[0].numel()):
            inside = torch.zeros_like(weight[0], dtype=torch.bool)
            inside[self._kept[1]] = True
            over = {2: inside.flatten().nonzero().flatten()}
            return _spread(F.batch_norm(**arguments | {"input": _select(source, over)}), over, source.shape)
        return F.batch_norm(**arguments)


_BATCH_NORM = ("input", "running_mean", "running_var", "weight", "bias", "training", "momentum", "eps")
_PLACES: dict[Callable[..., Any], tuple[str, ...]] = {
    F.layer_norm: ("input", "normalized_shape", "weight", "bias", "eps"),
    F.rms_norm: ("input", "normalized_shape", "weight", "eps"),
    F.group_norm: ("input", "num_groups", "weight", "bias", "eps"),
    torch.layer_norm: ("input", "normalized_shape", "weight", "bias", "eps", "cudnn_enable"),
    torch.rms_norm: ("input", "normalized_shape", "weight", "eps"),
    torch.group_norm: ("input", "num_groups", "weight", "bias", "eps", "cudnn_enabled"),
}


def _select(tensor: Tensor, dims: Mapping[int, Tensor]) -> Tensor:
    for dim, indices in dims.items():
        tensor = tensor.index_select(dim, indices)
    return tensor


def _spread(tensor: Tensor, dims: Mapping[int, Tensor], shape: torch.Size) -> Tensor:
    for dim, indices in dims.items():
        wide = [*tensor.shape[:dim], shape[dim], *tensor.shape[dim + 1 :]]
        tensor = tensor.new_zeros(wide).index_copy(dim, indices, tensor)
    return tensor
