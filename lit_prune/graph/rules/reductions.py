"""Reductions: a statistic over channels is one of the channels that are left."""

from __future__ import annotations

import numpy as np
from torch import Tensor

from lit_prune.graph.rules.elementwise import broadcast, run_over
from lit_prune.graph.rules.table import register_rule
from lit_prune.graph.trace import Operation, Tracer
from lit_prune.graph.values import Block

STATISTICS = frozenset(
    "mean sum nansum amax amin aminmax max min std var var_mean std_mean norm linalg_vector_norm".split()
)
"""What a masked network computes as if the channels that go were not there: see `reference.py`."""

# Of values that are alike these tell how many they are.
_COUNTING = frozenset("sum nansum norm linalg_vector_norm logsumexp count_nonzero prod".split())


@register_rule(*STATISTICS, *"prod any all argmax argmin logsumexp median count_nonzero".split())
def _reduce(trace: Tracer, op: Operation) -> None:
    source = op.tensors()[0]
    if len(op.tensors()) > 1:
        # `max` and `min` of two tensors work element by element.
        broadcast(trace, op)
        return
    over = reduced_dims(op, source)
    # A single number is of the whole network: a loss. So is, mostly, what a step computes by itself.
    within = op.name == "aminmax" or (op.name in STATISTICS and len(over) < source.dim())
    within &= not trace.is_between_networks
    left = []
    for block in trace.blocks(source):
        if not over.isdisjoint(block.dims) and trace.labels.is_loose(block.labels):
            if op.name in _COUNTING:
                trace.recording.constants.append((op.name, (float(block.labels.size),), trace.layer))
        elif (op.name in ("any", "all") and _checks_itself(trace)) or _adds_nothing(trace, op, block, over):
            continue
        elif within:
            left.extend(_statistic(trace, block, over))
        else:
            left.extend(run_over(trace, [block], over, f"{op.name} runs over it"))
    stays = [dim for dim in range(source.dim()) if dim not in over]
    for output in op.outputs():
        place = {dim: dim for dim in stays}
        if output.dim() != source.dim():
            place = {old: new for new, old in enumerate(stays)}
        trace.assign_blocks(output, [block.moved(place) for block in left])
    if op.name in ("max", "min") and within and len(op.outputs()) > 1:
        # Where the largest one was is a number of the whole network.
        mine = [block.labels for block in trace.blocks(source) if not over.isdisjoint(block.dims)]
        trace.forbid(op.outputs()[1], mine, f"{op.name} tells its place")


def _adds_nothing(trace: Tracer, op: Operation, block: Block, over: set[int]) -> bool:
    """Whether all of a block of a weight is summed up, and what goes of it is zero."""
    order = op.get("ord", op.get("p"))
    sums = op.name == "sum" or ("norm" in op.name and (order is None or order > 0))
    if not (sums and over.issuperset(block.dims) and trace.vanishing.is_weight(op.tensors()[0])):
        return False
    return trace.vanishing.rely(op.tensors(), [block.labels], trace.layer)


def _checks_itself(trace: Tracer) -> bool:
    """Whether an observer is at work, which asks whether its numbers are valid."""
    return type(trace.network.get_submodule(trace.layer)).__module__.startswith("torch.ao.quantization.")


def reduced_dims(op: Operation, source: Tensor) -> set[int]:
    """The dimensions that a reduction is over."""
    named = op.get("dim")
    dims = range(source.dim()) if named in (None, []) else [named] if isinstance(named, int) else named
    return {dim % max(1, source.dim()) for dim in dims}


def _statistic(trace: Tracer, block: Block, over: set[int]) -> list[Block]:
    """What is left of a block; where it spans more than is reduced, one label for each piece."""
    stays = [dim for dim in block.dims if dim not in over]
    if len(stays) == len(block.dims):
        return [block]
    trace.recording.reduced.append((trace.layer, block.labels.ravel()))
    if not stays:
        return []
    sizes = [block.labels.shape[block.dims.index(dim)] for dim in stays]
    pieces = np.moveaxis(block.labels, [block.dims.index(dim) for dim in stays], range(len(stays)))
    pieces = pieces.reshape(int(np.prod(sizes)), -1)
    heads = trace.labels.fresh(len(pieces))
    trace.labels.fold(pieces, heads, may_be_whole=True)
    trace.statistics[int(heads[0])] = pieces
    return [Block(tuple(stays), heads.reshape(sizes))]
