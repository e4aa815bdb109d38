"""Normalisations. Those over channels take their statistics from the channels that are left; see `statistics.py`."""

from __future__ import annotations

import numpy as np

from lit_prune.graph.labels import Row
from lit_prune.graph.rules.table import register_rule
from lit_prune.graph.trace import Operation, Tracer
from lit_prune.graph.values import Block
from lit_prune.modules.registry import MULTIPLIER


@register_rule(
    "batch_norm",
    "native_batch_norm",
    "native_batch_norm_legit",
    "native_batch_norm_legit_no_training",
    "batch_norm_no_update",
    "batch_norm_with_update",
    "cudnn_batch_norm",
    "miopen_batch_norm",
)
def _batch_norm(trace: Tracer, op: Operation) -> None:
    rows = trace.channels(op["input"])
    own = [row for name in ("weight", "bias", "running_mean", "running_var") for row in trace.rows(op.get(name))]
    over = [row for dim, row in enumerate(rows) if dim != 1]
    if (op.get("training") or op.get("running_mean") is None) and not _is_own_weight(trace, rows[1], over):
        # The statistics are of these very values: they would change.
        trace.freeze(over, "is normalised over")
    if op["input"].shape[1] > 1:
        rows[1] = trace.unite([rows[1], *own], "is normalised with what is not tracked")
    trace.assign(op.outputs()[0], rows)


def _is_own_weight(trace: Tracer, leaving: Row | None, over: list[Row | None]) -> bool:
    """Whether it is the weight of the layer at work that is standardised: over its inputs, each output by itself.

    As with a LayerNorm, the statistics are then those of the inputs that are left.
    """
    name = f"{trace.layer}.weight" if trace.layer else "weight"
    outputs, inputs = (trace.recording.slots.get((name, dim)) for dim in (0, 1))
    tracked = [row for row in over if row is not None]
    if outputs is None or inputs is None or leaving is None or len(tracked) != 1:
        return False
    return np.array_equal(leaving, outputs) and np.array_equal(np.unique(tracked[0]), inputs)


@register_rule("native_layer_norm", "layer_norm", "fused_rms_norm", "rms_norm")
def _layer_norm(trace: Tracer, op: Operation) -> None:
    source, count = op["input"], len(op["normalized_shape"])
    own = [op[name] for name in ("weight", "bias") if op.get(name) is not None]
    for index in range(count):
        dim = source.dim() - count + index
        if source.shape[dim] == 1:
            continue
        row = trace.row(source, dim)
        if not any(map(trace.is_own, own)):
            # No weight tells, in a masked network, which channels are left.
            trace.vanishing.rely([], [row], trace.layer)
        trace.unite([row, *(trace.row(tensor, index) for tensor in own)], "is normalised with what is not tracked")
    trace.assign_blocks(op.outputs()[0], trace.blocks(source))


@register_rule("native_group_norm", "group_norm")
def _group_norm(trace: Tracer, op: Operation) -> None:
    source, groups = op["input"], int(op.get("group", op.get("num_groups")))
    own = [op[name] for name in ("weight", "bias") if op.get(name) is not None]
    channels = trace.row(source, 1)
    for dim in range(2, source.dim()):
        trace.freeze([trace.row(source, dim)], "is normalised over")
    if channels is None:
        trace.freeze([trace.row(tensor, 0) for tensor in own], "is normalised with what is not tracked")
        trace.assign_blocks(op.outputs()[0], [block for block in trace.blocks(source) if 1 not in block.dims])
        return
    # Of one channel a group, the groups go with the channels.
    alone = groups == len(channels) and getattr(trace.network.get_submodule(trace.layer), MULTIPLIER, True)
    if not any(map(trace.is_own, own)):
        trace.vanishing.rely([], [channels], trace.layer)
    trace.unite([channels, *(trace.row(tensor, 0) for tensor in own)], "is normalised with what is not tracked")
    pieces = Block((1, 2), channels.reshape(groups, -1))
    if groups > 1 and not alone:
        trace.labels.fold(pieces.labels)
    # It is taken apart as by a view: how many there are may follow from a width.
    shape = (len(source), groups, source.shape[1] // groups)
    trace.recording.views.setdefault(trace.layer, []).append((shape, [pieces]))
    rest = [block for block in trace.blocks(source) if 1 not in block.dims]
    trace.assign_blocks(op.outputs()[0], [*rest, Block((1,), channels)])
