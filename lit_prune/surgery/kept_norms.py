"""Normalisation as if removed channels were not there: what a masked network needs to be a reference.

A LayerNorm or GroupNorm takes its mean and variance over channels. In a shrunk network they are those of the channels
that are left: that is what a norm of that width computes, and what fine-tuning continues from. Zeroed channels would
pull the statistics toward zero, so a masked network leaves them out in the same way. A convolution that standardises
its weight (Qiao et al., "Weight Standardization", 2019) takes them over its inputs: the same holds for these.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from contextvars import ContextVar
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from lit_prune.common._compat import ConvNd, NormBase, remove_forward_hooks_
from lit_prune.common.names import find_module, find_tensor, modules_of
from lit_prune.plan import PruningPlan

Kept = Mapping[str, Mapping[int, Tensor]]
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
    """A forward hook pair that has norms look at some of their channels only; the others come out as zero.

    Args:
        kept: For each weight or bias of a norm, by its name in the module, dimension to the indices that count.
    """

    def __init__(self, kept: Kept) -> None:
        self.kept = kept
        self._open: list[ExitStack] = []

    def enter(self, module: nn.Module, _: Any) -> None:
        """Before the forward."""
        stack = ExitStack()
        if not _suspended.get():
            tensors = [(find_tensor(module, name), dims) for name, dims in self.kept.items()]
            stack.enter_context(_KeptNorm([(tensor, dims) for tensor, dims in tensors if tensor is not None]))
        self._open.append(stack)

    def leave(self, *_: Any) -> None:
        """After the forward, also one that failed."""
        self._open.pop().close()


def keep_statistics_(module: nn.Module, plan: PruningPlan) -> None:
    """Have every norm whose weight or bias ``plan`` cuts take its statistics from what is kept."""
    for child, cuts in _norms(module, plan):
        kept = _release_(child)
        for name, dims in cuts.items():
            before = kept.get(name, {})
            kept[name] = {dim: _intersection(indices, before.get(dim)) for dim, indices in dims.items()}
        _register_(child, kept)


def shrink_statistics_(module: nn.Module, plan: PruningPlan) -> None:
    """Bring what :func:`keep_statistics_` did in line with a cut: what is gone need not be left out any more."""
    for masking in release_maskings_(module):
        remaining = masking.after(plan)
        if remaining is not None:
            remaining.register_()
    for child, cuts in _norms(module, plan):
        left = {}
        for name, before in _release_(child).items():
            dims = cuts.get(name, {})
            now = {dim: torch.isin(dims[dim], kept).nonzero().flatten() for dim, kept in before.items() if dim in dims}
            if any(len(indices) < len(dims[dim]) for dim, indices in now.items()):
                left[name] = now
        if left:
            _register_(child, left)


def release_maskings_(module: nn.Module) -> list[Masking]:
    """Take the hooks of :class:`Masking` off a network, and return what they were of."""
    found: dict[int, Masking] = {}
    for _, child in modules_of(module):
        for hook in remove_forward_hooks_(child, lambda hook: isinstance(getattr(hook, "__self__", None), Masking)):
            found[id(hook.__self__)] = hook.__self__
    return [*found.values()]


def _norms(module: nn.Module, plan: PruningPlan) -> Iterator[tuple[nn.Module, Kept]]:
    """Each module that may normalise over channels, with its tensors that the plan cuts.

    ``module`` itself comes with those of all others: a forward may use what belongs to one of its children.
    """
    found: dict[str, dict[str, Mapping[int, Tensor]]] = {}
    for name, dims in plan.kept.items():
        path, _, own = name.rpartition(".")
        child = find_module(module, path)
        if child is None or isinstance(child, (NormBase, nn.Linear, nn.Embedding, torch.jit.ScriptModule)):
            continue
        plain = isinstance(child, ConvNd) and type(child).forward.__module__.startswith("torch.")
        if plain or (isinstance(child, ConvNd) and (own != "weight" or 1 not in dims)):
            continue
        # Outputs of a convolution are standardised each by itself.
        meant = {1: dims[1]} if isinstance(child, ConvNd) else dims
        found.setdefault(path, {})[own] = meant
        if path:
            found.setdefault("", {})[name] = meant
    for path, cuts in found.items():
        child = find_module(module, path)
        if child is not None:
            yield child, cuts


def _register_(module: nn.Module, kept: Kept) -> None:
    statistics = KeptStatistics(kept)
    module.register_forward_pre_hook(statistics.enter)
    module.register_forward_hook(statistics.leave, always_call=True)


def _release_(module: nn.Module) -> dict[str, Mapping[int, Tensor]]:
    """Take the hooks off one module (not its children), and return what they kept."""
    kept: Kept = {}
    for hook in remove_forward_hooks_(module, lambda hook: isinstance(getattr(hook, "__self__", None), KeptStatistics)):
        kept = hook.__self__.kept
    return dict(kept)


def _intersection(indices: Tensor, others: Tensor | None) -> Tensor:
    return indices if others is None else indices[torch.isin(indices, others)]


class _KeptNorm(TorchFunctionMode):
    """While open, norms by some weights and biases run over the kept indices."""

    def __init__(self, own: Sequence[tuple[Tensor, Mapping[int, Tensor]]]) -> None:
        super().__init__()
        self._own = own

    def _kept(self, tensor: Tensor | None) -> dict[int, Tensor] | None:
        """The indices that count of a tensor, if it is one of these."""
        for own, kept in self._own:
            if own is tensor:
                return {dim: indices.to(own.device) for dim, indices in kept.items()}
        return None

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
        kept = self._kept(arguments.get("weight")) or self._kept(arguments.get("bias"))
        if kept is None:
            return func(*args, **kwargs)
        source = arguments["input"]
        first = 1 if "num_groups" in places else source.dim() - len(arguments["normalized_shape"])
        over = {first + dim: indices for dim, indices in kept.items()}
        arguments["input"] = _select(source, over)
        for name in ("weight", "bias"):
            if arguments.get(name) is not None:
                arguments[name] = _select(arguments[name], kept)
        if arguments.get("num_groups") == source.shape[1]:
            arguments["num_groups"] = len(kept[0])
        if "normalized_shape" in arguments:
            arguments["normalized_shape"] = tuple(arguments["input"].shape[first:])
        return _spread(func(**arguments), over, source.shape)

    def _standardised(self, arguments: dict[str, Any]) -> Tensor:
        """A batch norm; of the weight itself, shaped ``(1, outputs, inputs and kernel)``, over the kept inputs."""
        source = arguments["input"]
        for weight, kept in self._own:
            own = source.untyped_storage().data_ptr() == weight.untyped_storage().data_ptr()
            if own and arguments.get("training") and source.shape == (1, len(weight), weight[0].numel()):
                inside = torch.zeros_like(weight[0], dtype=torch.bool)
                inside[kept[1]] = True
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
