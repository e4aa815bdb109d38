"""Which values are zero where a channel is masked.

What runs over channels (a product of two features, the norm of a weight, the range that a quantiser observes) is the
same without a channel only if that channel adds nothing when it is masked: then nothing is lost in a shrunk network
that is not lost in its reference. And where such a value is divided by, the reference must keep it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any
from weakref import WeakMethod

import numpy as np
from torch import Tensor

from lit_prune.common._compat import memory_of
from lit_prune.graph.labels import Row
from lit_prune.graph.operation import Operation
from lit_prune.graph.recording import Recording
from lit_prune.graph.values import Block

# Names, and what others were made of: flat only where it counts, for in a deep network they are many.
Sources = tuple[Any, ...]

# Zero where their first tensor is.
_OF_ZERO = frozenset(
    "abs alias angle asin atan celu clone contiguous detach detach_copy dropout elu erf expm1 feature_dropout gelu "
    "hardshrink hardswish leaky_relu lift lift_fresh log1p mish native_dropout neg positive prelu prelu_kernel relu "
    "relu6 round rrelu_with_noise selu sgn sign silu sin sinh softshrink softsign sqrt square tan tanh trunc ceil "
    "floor to to_copy zeros_like view reshape unsafe_view view_copy reshape_alias permute permute_copy transpose t "
    "numpy_T swapaxes transpose_copy unsqueeze squeeze expand expand_copy repeat slice select unbind split "
    "split_with_sizes chunk unsafe_split unsafe_split_with_sizes unsafe_chunk tensor_split roll flip index "
    "index_select pixel_shuffle pixel_unshuffle channel_shuffle native_channel_shuffle unfold im2col sum mean norm "
    "linalg_vector_norm amax amin std var cumsum adaptive_avg_pool1d adaptive_avg_pool2d adaptive_avg_pool3d "
    "adaptive_max_pool1d adaptive_max_pool2d adaptive_max_pool3d avg_pool1d avg_pool2d avg_pool3d max_pool1d "
    "max_pool2d max_pool3d max_pool1d_with_indices max_pool2d_with_indices max_pool3d_with_indices "
    "mkldnn_adaptive_avg_pool2d reflection_pad1d reflection_pad2d reflection_pad3d replication_pad1d "
    "replication_pad2d replication_pad3d upsample_nearest1d upsample_nearest2d upsample_nearest3d "
    "upsample_nearest_exact1d upsample_nearest_exact2d upsample_nearest_exact3d upsample_bilinear2d "
    "upsample_bilinear2d_aa upsample_bicubic2d upsample_bicubic2d_aa upsample_linear1d upsample_trilinear3d "
    "grid_sampler_2d grid_sampler_3d fused_moving_avg_obs_fq_helper fake_quantize_per_tensor_affine_cachemask "
    "fake_quantize_per_tensor_affine_cachemask_tensor_qparams fake_quantize_per_channel_affine_cachemask "
    "fake_quantize_learnable_per_channel_affine fake_quantize_learnable_per_tensor_affine".split()
)
# Zero where all of their tensors are.
_OF_ZEROS = frozenset(
    "add sub maximum minimum fmax fmin hypot where lerp copy cat concat concatenate stack addcmul".split()
)
# The argument that must not be zero.
_DIVISORS = {
    **dict.fromkeys("div true_divide floor_divide fmod remainder".split(), "other"),
    **dict.fromkeys("reciprocal rsqrt log log2 log10".split(), "self"),
    "addcdiv": "tensor2",
    "fake_quantize_per_channel_affine_cachemask": "scale",
    "fake_quantize_per_tensor_affine_cachemask_tensor_qparams": "scale",
    "fake_quantize_learnable_per_channel_affine": "scale",
    "fake_quantize_learnable_per_tensor_affine": "scale",
    "fused_moving_avg_obs_fq_helper": "scale",
}
_DIVIDING = frozenset((*_DIVISORS, "pow"))
# Products, each with what its output gets labels from.
_MAKERS = {
    **dict.fromkeys("convolution conv1d conv2d conv3d cudnn_convolution mkldnn_convolution linear".split(), "weight"),
    "embedding": "weight",
    "mv": "self",
    "weight_norm_interface": "g",
}


class Vanishing:
    """Follows, operation by operation, the values that are zero wherever their labels are removed.

    Each is known with its sources: the names of those tensors of the network that are zero there so that it is.
    """

    def __init__(self, names: dict[int, str], recording: Recording, blocks: Callable[[Tensor], list[Block]]) -> None:
        self._names = names
        self._recording = recording
        # Its tracer holds this: in a circle all values of a trace would stay until Python looks for circles.
        self._blocks_of = WeakMethod(blocks)
        # The tensors are held so that their ids stay theirs.
        self._known: dict[int, tuple[Tensor, Sources]] = {}
        # Which of these are made of the network's own tensors alone.
        self._weights: set[int] = set()
        # What was written into memory that other values may share; None: something that is not zero.
        self._written: dict[int, tuple[Tensor, Sources | None]] = {}
        self._relied: list[tuple[str, list[Sources], Row]] = []
        # Operations, and sums over values and rows in a layer, that have not been gone through, in order.
        self._waiting: list[Operation | tuple[Sequence[Tensor], Sequence[Row | None], str]] = []

    def _blocks(self, tensor: Tensor) -> list[Block]:
        blocks = self._blocks_of()
        assert blocks is not None
        return blocks(tensor)

    def sources(self, tensor: Tensor) -> Sources | None:
        """What makes a value zero where its labels are removed; None where it may be something else there."""
        name = self._names.get(id(tensor))
        self._catch_up()
        own = self._known.get(id(tensor), (tensor, None))[1] if name is None else (name,)
        if own is None or not self._written:
            return own
        written = self._written.get(memory_of(tensor), (tensor, own))[1]
        return own if written is own else None if written is None else (own, written)

    def is_weight(self, tensor: Tensor) -> bool:
        """Whether a value is made of the network's own tensors alone, and zero where its labels are removed."""
        self._catch_up()
        return (id(tensor) in self._names or id(tensor) in self._weights) and self.sources(tensor) is not None

    def rely_on_product(self, values: Sequence[Tensor], rows: Sequence[Row | None], layer: str) -> None:
        """:meth:`rely`, where nobody waits for an answer."""
        self._waiting.append((values, rows, layer))

    def rely(self, values: Iterable[Tensor], rows: Iterable[Row | None], layer: str) -> bool:
        """Note that ``layer`` sums over ``rows``, and return whether that loses nothing.

        It does not if one of these values is zero where they are removed. If none is, the reference leaves them out.
        """
        self._catch_up()
        found = [sources for value in values if (sources := self.sources(value)) is not None]
        self._relied.extend((layer, found, row.ravel()) for row in rows if row is not None)
        return bool(found)

    def settle(self) -> None:
        """Have the reference leave out what is no zero, or none because it is divided by."""
        if self._relied or any(map(self._counts, self._waiting)):
            self._catch_up()
        divided: dict[str, list[int]] = {}
        for name, dim in self._recording.divisors:
            divided.setdefault(name, []).append(dim)
        for layer, found, row in self._relied:
            suspects = [_names(each) & divided.keys() if divided else () for each in found]
            if all(any(self._conflicts(name, divided[name], row) for name in names) for names in suspects):
                self._recording.reduced.append((layer, row))

    def _conflicts(self, name: str, divided: list[int], row: Row) -> bool:
        """Whether a tensor is to be zero along a dimension along which it is divided by."""
        slots = [(slot[1], row) for slot, row in self._recording.slots.items() if slot[0] == name]
        meant = {dim for dim, own in slots if np.isin(own, row).any()}
        if not meant:
            # What came this far has the labels of something that it was joined with.
            of = self._recording.labels.components().of
            meant = {dim for dim, own in slots if np.isin(of[own], of[row]).any()}
        return not meant.isdisjoint(divided)

    def follow(self, op: Operation) -> None:
        """See what goes into an operation, and what comes out, once its rule has run."""
        self._waiting.append(op)

    def _catch_up(self) -> None:
        """Go through what has come since somebody asked: where nobody does, as in most networks, that is spared."""
        waiting, self._waiting = self._waiting, []
        for each in waiting:
            if isinstance(each, Operation):
                self._follow(each)
            else:
                self.rely(*each)

    def _counts(self, waiting: Operation | tuple[Sequence[Tensor], Sequence[Row | None], str]) -> bool:
        """Whether a reference may have to leave something out for it.

        That takes a division, a weight that is written into, or a sum into which none of the network's own enters.
        """
        if isinstance(waiting, Operation):
            if isinstance(waiting.output, Tensor) and id(waiting.output) not in self._names:
                return waiting.name in _DIVIDING and isinstance(_divisor(waiting), Tensor)
            return isinstance(_divisor(waiting), Tensor) or any(id(each) in self._names for each in waiting.outputs())
        return not any(id(value) in self._names for value in waiting[0])

    def _follow(self, op: Operation) -> None:
        if isinstance(divisor := _divisor(op), Tensor):
            self.divide(divisor, [block.labels for block in self._blocks(divisor)])
        tensors = op.tensors()
        sources = self._leaving(op, tensors) if tensors or op.name == "zeros" else None
        entering = {id(tensor) for tensor in tensors}
        weighs = bool(tensors) and all(map(self.is_weight, tensors))
        for output in op.outputs():
            if id(output) in entering:
                memory = memory_of(output)
                before = self._written.get(memory, (output, ()))[1]
                self._written[memory] = output, None if sources is None or before is None else (before, sources)
            if sources is None:
                self._known.pop(id(output), None)
            else:
                self._known[id(output)] = output, sources
            (self._weights.add if weighs else self._weights.discard)(id(output))

    def divide(self, divisor: Tensor, rows: Sequence[Row]) -> None:
        """Note that something is divided by what a value has along ``rows``: it must not be zero in the reference."""
        for name in _names(self.sources(divisor) or ()):
            slots = [(slot, row) for slot, row in self._recording.slots.items() if slot[0] == name]
            for slot, row in slots:
                # Of a matrix only the dimension that has come this far.
                if (len(slots) == 1 and rows) or any(np.isin(row, other).any() for other in rows):
                    self._recording.divisors[slot] = None

    def _leaving(self, op: Operation, tensors: Sequence[Tensor]) -> Sources | None:
        name = op.name
        if name in ("zeros", "new_zeros", "zeros_like"):
            return ()
        first = self.sources(tensors[0])
        if name in _OF_ZERO or name == "div":
            return first
        if name in _OF_ZEROS:
            # A number that is added does not vanish.
            return None if name in ("add", "sub") and len(tensors) < 2 else self._all(tensors, op.output)
        if name == "mul":
            return self._product(tensors, op.output)
        if name == "pow":
            return first if isinstance(op["exponent"], (int, float)) and op["exponent"] > 0 else None
        if name in ("clamp", "hardtanh"):
            low, high = (op["min"], op["max"]) if name == "clamp" else (op["min_val"], op["max_val"])
            numbers = all(not isinstance(bound, Tensor) for bound in (low, high))
            return first if numbers and (low or 0) <= 0 <= (high or 0) else None
        if name == "constant_pad_nd":
            return None if op["value"] else first
        if name in _MAKERS:
            return self._all([op[_MAKERS[name]], *_given(op, "bias")])
        if name in ("mm", "bmm", "addmm"):
            left, right = (op["mat1"], op["mat2"]) if name == "addmm" else tensors[:2]
            sides = [side for side, over in ((left, -1), (right, -2)) if self._carries(side, over)]
            return self._all([*sides, *([op["self"]] if name == "addmm" else [])])
        if "batch_norm" in name:
            shift = self._all(_given(op, "bias", "running_mean"))
            entering = first if shift is not None else None
            if entering is not None and shift is not None:
                return (entering, shift)
            return self._all(_given(op, "weight", "bias")) if op.get("weight") is not None else None
        return self.sources(op["value"]) if "scaled_dot_product" in name else None

    def _carries(self, tensor: Tensor, contracted: int) -> bool:
        """Whether labels lie along another dimension than the contracted one."""
        return any(set(block.dims) - {tensor.dim() + contracted} for block in self._blocks(tensor))

    def _product(self, factors: Sequence[Tensor], output: Tensor) -> Sources | None:
        """Zero where, along every dimension, one factor is."""
        zero = [factor for factor in factors if self.sources(factor) is not None]
        for factor in zero:
            if self._reaches(factor, output):
                return self.sources(factor)
        return self._all(zero) if len(zero) == len(factors) > 1 else None

    def _all(self, tensors: Sequence[Tensor], output: Tensor | None = None) -> Sources | None:
        merged = []
        for tensor in tensors:
            sources = self.sources(tensor)
            if sources is None or not (output is None or self._reaches(tensor, output)):
                return None
            merged.append(sources)
        return tuple(merged)

    def _reaches(self, tensor: Tensor, output: Tensor) -> bool:
        """Whether a value is not broadcast along a dimension that carries labels."""
        offset = output.dim() - tensor.dim()
        dims = {dim for block in self._blocks(output) for dim in block.dims}
        # What is put together or picked from has other sizes.
        return all(dim >= offset and (tensor.shape[dim - offset] > 1) for dim in dims if output.shape[dim] > 1)


def _divisor(op: Operation) -> Any:
    """What an operation divides by, if it does."""
    if op.name == "pow" and isinstance(op["exponent"], (int, float)) and op["exponent"] < 0:
        return op["self"]
    return op.arguments.get(_DIVISORS.get(op.name, ""))


def _given(op: Operation, *names: str) -> list[Tensor]:
    return [op.arguments[name] for name in names if op.get(name) is not None]


def _names(sources: Sources) -> set[str]:
    """All names in some sources."""
    names, seen, waiting = set(), set(), [sources]
    while waiting:
        for part in waiting.pop():
            if isinstance(part, str):
                names.add(part)
            elif id(part) not in seen:
                seen.add(id(part))
                waiting.append(part)
    return names
