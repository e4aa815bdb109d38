"""What a shrunk network computes, by a masked one: statistics over channels leave out those that are gone.

Zeros are no absent channels: a mean would divide by their number, and what a norm subtracts from zero is no zero. So a
masked network that takes statistics by operations of its own follows its labels while it runs. Where values are mixed
along channels that are gone, these are left out (of statistics) or zero (in products).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from lit_prune.common.arguments import check_kind
from lit_prune.common.initialized import check_network
from lit_prune.graph.composites import Composites
from lit_prune.graph.operation import Operation, signature
from lit_prune.graph.recording import Recording
from lit_prune.graph.rules import RULES
from lit_prune.graph.rules.reductions import STATISTICS, reduced_dims
from lit_prune.graph.tracer import Tracer
from lit_prune.plan import PruningPlan
from lit_prune.surgery.kept_norms import Masking, as_it_is, release_maskings_
from lit_prune.surgery.mask import zero_
from lit_prune.surgery.shrink import ModuleT

_PRODUCTS = frozenset(
    "convolution conv1d conv2d conv3d cudnn_convolution mkldnn_convolution mm addmm bmm baddbmm linear mv trilinear "
    "cdist_forward euclidean_dist scaled_dot_product_attention_math scaled_dot_product_flash_attention "
    "scaled_dot_product_flash_attention_for_cpu scaled_dot_product_efficient_attention "
    "scaled_dot_product_cudnn_attention torchvision::deform_conv2d".split()
)


def mask_(module: ModuleT, plan: PruningPlan) -> ModuleT:
    """Set to zero, in place, all that :func:`shrink_` would remove: the reference for it.

    Running variances stay, for a zero there would be divided by. Norms over channels (LayerNorm, GroupNorm, RMSNorm)
    and statistics that a forward takes itself (a mean, a norm by hand) are those of the kept channels, as they are in a
    shrunk network. The gradients of the latter are those of all channels.

    Args:
        module: The network that the plan was made for.
        plan: As for :func:`shrink_`.

    Returns:
        The same module.

    Raises:
        ArgumentTypeError: If the module or the plan is none.
        ArgumentError: If the plan does not fit the module; then nothing has changed.
    """
    check_network("module", module)
    check_kind("plan", plan, PruningPlan)
    zero_(module, plan)
    before = release_maskings_(module)
    if plan.reduced_in or before:
        for reference in before:
            plan = _both(plan, reference.plan)
        Reference(module, plan).register_()
    return module


def _both(plan: PruningPlan, other: PruningPlan) -> PruningPlan:
    """What both plans, of one network, keep."""
    kept = {name: dict(dims) for name, dims in plan.kept.items()}
    for name, dims in other.kept.items():
        mine = kept.setdefault(name, {})
        for dim, indices in dims.items():
            mine[dim] = indices if dim not in mine else mine[dim][torch.isin(mine[dim], indices)]
    return PruningPlan(kept, {}, plan.reduced_in | other.reduced_in)


class Reference(Masking):
    """Forward hooks that have a masked network follow its labels, however it is entered.

    Args:
        network: Masked by ``plan``.
        plan: What is kept of it.
    """

    def __init__(self, network: nn.Module, plan: PruningPlan) -> None:
        self.network = network
        self.plan = plan
        self._open = ExitStack()
        self._path: list[str] = []
        self._names: dict[nn.Module, str] = {}

    def enter(self, module: nn.Module, *_: Any) -> None:
        """Before the forward of any module of the network: the outermost counts."""
        if not self._path:
            tracer = _LeavingOut(self.network, self.plan)
            self._names, self._path = tracer.modules, tracer.path
            self._open.enter_context(as_it_is())
            self._open.enter_context(tracer)
            # Step by step, the layers of a recurrent one would be seen to share what is stacked at the end.
            self._open.enter_context(Composites(tracer, on_meta=False, only_recurrent=True))
        self._path.append(self._names[module])

    def leave(self, *_: Any) -> None:
        """After the forward, also one that failed."""
        self._path.pop()
        if not self._path:
            self._open.close()
            self._names = {}

    def after(self, plan: PruningPlan) -> Reference | None:
        """What is left to mask once the network was cut to ``plan``; None where nothing is."""
        kept: dict[str, dict[int, Tensor]] = {}
        for name, dims in self.plan.kept.items():
            for dim, indices in dims.items():
                cut = plan.kept.get(name, {}).get(dim)
                size = self.plan.sizes.get(name, {}).get(dim)
                left = indices if cut is None else torch.isin(cut, indices).nonzero().flatten()
                if len(left) < (len(cut) if cut is not None else size or len(left) + 1):
                    kept.setdefault(name, {})[dim] = left
        return Reference(self.network, replace(self.plan, kept=kept, sizes={})) if kept else None


class _LeavingOut(Tracer):  # type: ignore[no-untyped-call]
    """Runs operations on real values, and leaves out of them what is gone."""

    def __init__(self, network: nn.Module, plan: PruningPlan) -> None:
        super().__init__(network, Recording(), RULES)
        self._plan = plan

    def result_of(self, func: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
        """What an operation returns once the channels that are gone are left out of it."""
        operation = signature(func).operation(args, kwargs, None)
        if operation.name in _PRODUCTS:
            args = tuple(self._zeroed(value) if isinstance(value, Tensor) else value for value in args)
        elif operation.name in STATISTICS and len(operation.tensors()) == 1:
            source = operation.tensors()[0]
            keep = self._kept(source, reduced_dims(operation, source))
            if keep is not None:
                return _reduced(func, operation, source, keep)
        elif operation.name == "fused_moving_avg_obs_fq_helper":
            return self._observed(func, operation)
        elif operation.name in _NORMS:
            over, normalise = _NORMS[operation.name]
            keep = self._kept(operation["input"], over(operation))
            if keep is not None:
                return normalise(operation, keep)
        return super().result_of(func, args, kwargs)

    def _observed(self, func: Any, operation: Operation) -> Any:
        """Values quantised to the range of those that are kept."""
        source = operation["self"]
        keep = self._kept(source, set(range(source.dim())))
        if keep is None:
            return func(**operation.arguments)
        axis = operation["ch_axis"] % source.dim() if operation["per_row_fake_quant"] else None
        over = [dim for dim in range(source.dim()) if dim != axis]
        least = source.masked_fill(~keep, torch.inf).amin(over, keepdim=True)
        output, mask = func(**{**operation.arguments, "self": torch.where(keep, source, least.nan_to_num(posinf=0))})
        return output.masked_fill(~keep, 0), mask

    def _gone(self) -> np.ndarray[Any, np.dtype[np.bool_]]:
        """``(labels,)`` which are gone, by what is coupled with them so far."""
        components = self.labels.components()
        gone = np.zeros(len(components.reason), dtype=np.bool_)
        for (name, dim), row in self.recording.slots.items():
            kept = self._plan.kept.get(name, {}).get(dim)
            if kept is not None:
                gone[components.of[np.delete(row, kept.numpy())]] = True
        return gone[components.of]

    def _kept(self, source: Tensor, over: set[int]) -> Tensor | None:
        """Which values of a tensor are left, of size one along dimensions where none is gone; None where all are."""
        blocks = [block for block in self.blocks(source) if not over.isdisjoint(block.dims)]
        gone = self._gone() if blocks else np.empty(0, dtype=np.bool_)
        keep = torch.ones([1] * source.dim(), dtype=torch.bool, device=source.device)
        for block in blocks:
            lost = gone[block.over(range(source.dim()))]
            if lost.any():
                keep = keep & torch.from_numpy(~lost).to(source.device)
        return None if keep.all() else keep

    def _zeroed(self, tensor: Tensor) -> Tensor:
        if id(tensor) in self._names:
            return tensor
        keep = self._kept(tensor, set(range(tensor.dim())))
        return tensor if keep is None else tensor.masked_fill(~keep, 0)


def _reduced(func: Any, operation: Operation, source: Tensor, keep: Tensor) -> Any:
    """A reduction of the kept values alone."""
    over = sorted(reduced_dims(operation, source))
    rest = [dim for dim in range(source.dim()) if dim not in over]
    order = [*rest, *over]
    lines = source.permute(order).reshape([source.shape[dim] for dim in rest] + [-1])
    wide = keep.permute(order).expand([keep.shape[dim] for dim in rest] + [source.shape[dim] for dim in over])
    inside = wide.reshape([keep.shape[dim] for dim in rest] + [-1])
    # Pieces keep equally many, or none: of those that are gone it does not matter what comes out.
    places = inside.to(torch.uint8).argsort(dim=-1, descending=True, stable=True)[..., : int(inside.sum(-1).max())]
    places = places.expand([*lines.shape[:-1], places.shape[-1]])
    kept = lines.gather(-1, places)
    arguments: dict[str, Any] = {**operation.arguments, "self": kept}
    if operation.get("dim") is not None or "norm" in operation.name:
        arguments["dim"] = -1 if isinstance(operation.get("dim"), int) else [-1]
    if "keepdim" in arguments:
        arguments["keepdim"] = False
    output = func(**arguments)
    if operation.get("keepdim"):
        shape = [1 if dim in over else size for dim, size in enumerate(source.shape)]
        return (
            type(output)(part.reshape(shape) for part in output) if isinstance(output, tuple) else output.reshape(shape)
        )
    return output


def _moments(source: Tensor, dims: list[int], keep: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and variance of the kept values along ``dims``."""
    weight = keep.to(source.dtype).expand(source.shape)
    number = weight.sum(dims, keepdim=True).clamp(min=1)
    values = source.masked_fill(~keep, 0)
    mean = values.sum(dims, keepdim=True) / number
    return mean, ((values - mean).square() * weight).sum(dims, keepdim=True) / number


def _layer_norm(operation: Operation, keep: Tensor) -> tuple[Tensor, ...]:
    source = operation["input"]
    mean, variance = _moments(source, sorted(_last(operation)), keep)
    scale = (variance + operation["eps"]).rsqrt()
    return _affine((source - mean) * scale, operation), mean, scale


def _rms_norm(operation: Operation, keep: Tensor) -> tuple[Tensor, ...]:
    source = operation["input"]
    square, _ = _moments(source.square(), sorted(_last(operation)), keep)
    scale = (square + (torch.finfo(source.dtype).eps if operation["eps"] is None else operation["eps"])).rsqrt()
    return _affine(source * scale, operation), scale


def _group_norm(operation: Operation, keep: Tensor) -> tuple[Tensor, ...]:
    source, groups = operation["input"], operation["group"]
    inside = keep.expand(source.shape).reshape(len(source), groups, -1)
    mean, variance = _moments(source.reshape(len(source), groups, -1), [2], inside)
    scale = (variance + operation["eps"]).rsqrt()
    values = ((source.reshape(len(source), groups, -1) - mean) * scale).reshape(source.shape)
    return _affine(values, operation, _aside(source)), mean.squeeze(-1), scale.squeeze(-1)


def _batch_norm(operation: Operation, keep: Tensor) -> tuple[Tensor, ...]:
    source = operation["input"]
    mean, variance = _moments(source, [dim for dim in range(source.dim()) if dim != 1], keep)
    scale = (variance + operation["eps"]).rsqrt()
    return _affine((source - mean) * scale, operation, _aside(source)), mean.flatten(), scale.flatten()


def _affine(values: Tensor, operation: Operation, shape: list[int] | None = None) -> Tensor:
    for name, combine in (("weight", torch.mul), ("bias", torch.add)):
        own = operation.get(name)
        if own is not None:
            values = combine(values, own if shape is None else own.reshape(shape))
    return values


def _aside(source: Tensor) -> list[int]:
    """The shape in which one number a channel meets an image."""
    return [-1] + [1] * (source.dim() - 2)


def _last(operation: Operation) -> set[int]:
    rank = operation["input"].dim()
    return set(range(rank - len(operation["normalized_shape"]), rank))


def _beside(operation: Operation) -> set[int]:
    trained = operation.get("training", operation.get("running_mean") is None)
    return {dim for dim in range(operation["input"].dim()) if dim != 1} if trained else set()


_NORMS: dict[str, tuple[Callable[[Operation], set[int]], Callable[[Operation, Tensor], Any]]] = {
    "native_layer_norm": (_last, _layer_norm),
    "fused_rms_norm": (_last, _rms_norm),
    "native_group_norm": (lambda operation: {1}, _group_norm),
    "native_batch_norm": (_beside, _batch_norm),
    "native_batch_norm_legit": (_beside, _batch_norm),
}
