"""Fused attention: queries meet keys, scores meet values, head by head."""

from __future__ import annotations

import numpy as np

from lit_prune.graph.labels import Row
from lit_prune.graph.rules.products import count, join_contracted, piece
from lit_prune.graph.rules.table import register_rule
from lit_prune.graph.trace import Operation, Tracer
from lit_prune.graph.values import Block


@register_rule(
    "scaled_dot_product_attention",
    "scaled_dot_product_attention_math",
    "scaled_dot_product_flash_attention",
    "scaled_dot_product_flash_attention_for_cpu",
    "scaled_dot_product_efficient_attention",
    "scaled_dot_product_fused_attention_overrideable",
    "scaled_dot_product_cudnn_attention",
)
def _attention(trace: Tracer, op: Operation) -> None:
    query, key, value = op["query"], op["key"], op["value"]
    mask = op.get("attn_mask", op.get("attn_bias"))
    if mask is not None:
        trace.freeze([trace.row(mask, dim) for dim in range(mask.dim()) if dim != mask.dim() - 3], "is a mask")
    for tensor in (query, key, value):
        trace.freeze([trace.row(tensor, dim) for dim in (0, 2) if tensor.dim() == 4], "is a batch or a token")
    width = join_contracted(trace, (query, key), [piece(trace, side, 1, 3) for side in (query, key)], ((1, 3), (1, 3)))
    leaving = piece(trace, value, 1, 3)
    heads = None
    if query.shape[1] > 1:
        sides = [trace.heads(side, 1) for side in (query, key, value)]
        if mask is not None and mask.dim() > 2 and mask.shape[-3] > 1:
            sides.append(trace.heads(mask, mask.dim() - 3))
        heads = trace.unite(sides, "is a head on one side only")
    if width is not None and op.get("scale") is None:
        # The scale follows from the width of a head, so that heads go whole.
        if width.ndim > 1 and len(width) > 1:
            trace.labels.fold(width, heads, whole=True, may_be_whole=True)
        else:
            trace.freeze([width], "sets the scale of an attention")
    spanned = leaving is not None and 1 in leaving.dims
    blocks = [] if leaving is None else [leaving]
    if heads is not None and not spanned:
        blocks.append(Block((1,), heads))
    trace.assign_blocks(op.outputs()[0], blocks)
    tokens = query.shape[0] * query.shape[2] * key.shape[2]
    _count_side(trace, tokens, width, heads, query.shape[1], query.shape[3])
    _count_side(trace, tokens, None if leaving is None else leaving.labels, heads, value.shape[1], value.shape[3])


def _count_side(trace: Tracer, tokens: int, width: Row | None, heads: Row | None, number: int, size: int) -> None:
    if width is not None and width.ndim > 1:
        count(trace, tokens, [(np.asarray(width), 1)])
    else:
        count(trace, tokens, [(heads, number), (width, size)])
