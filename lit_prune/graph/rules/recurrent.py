"""Recurrent layers as a whole: their hidden channels go out of all gates at once, and what enters is free.

Taken apart they are a dozen operations for each step of a sequence.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from torch import Tensor

from lit_prune.graph.labels import Row
from lit_prune.graph.rules.products import count
from lit_prune.graph.rules.table import register_rule
from lit_prune.graph.trace import Operation, Tracer
from lit_prune.graph.values import Block

_GATES = {"lstm": 4, "gru": 3, "rnn_tanh": 1, "rnn_relu": 1}
# As cuDNN numbers them.
_MODES = ("rnn_relu", "rnn_tanh", "lstm", "gru")


@dataclass(frozen=True)
class _Layer:
    """One direction of one layer: its weights, each ``(gates · hidden, inputs)``, biases and projection."""

    into: Tensor
    back: Tensor
    biases: Sequence[Tensor]
    projection: Tensor | None


@register_rule(*_GATES)
def _recurrent(trace: Tracer, op: Operation) -> None:
    _follow(trace, op, op["params"], op["hx"], _GATES[op.name], bool(op["bidirectional"]))


@register_rule("cudnn_rnn", "miopen_rnn")
def _fused(trace: Tracer, op: Operation) -> None:
    initial = [op["hx"], *([] if op.get("cx") is None else [op["cx"]])]
    _follow(trace, op, op["weight"], initial, _GATES[_MODES[op["mode"]]], bool(op["bidirectional"]))


@register_rule("mkldnn_rnn_layer")
def _one_direction(trace: Tracer, op: Operation) -> None:
    parameters = [op[f"weight{number}"] for number in range(4 if op["has_biases"] else 2)]
    _follow(trace, op, parameters, [op["hx_"], op["cx_"]], _GATES["lstm"], bidirectional=False)


@register_rule("thnn_fused_lstm_cell", "thnn_fused_gru_cell")
def _cell(trace: Tracer, op: Operation) -> None:
    """What CUDA makes of the gates of one step, which are computed before."""
    gates, state = (4, op["cx"]) if "lstm" in op.name else (3, op["hx"])
    entering = [op["input_gates"], op["hidden_gates"]]
    trace.freeze([trace.row(tensor, 0) for tensor in entering], "is a batch or a step")
    biases = [bias for name in ("input_bias", "hidden_bias") if (bias := op.get(name)) is not None]
    rows = [*(trace.row(tensor, 1) for tensor in entering), *(trace.row(bias, 0) for bias in biases)]
    joined = trace.unite(rows, "is computed with gates that are not tracked")
    if joined is None:
        return
    hidden = _hidden(trace, joined, gates)
    _begin(trace, state, [hidden])
    *states, workspace = op.outputs()
    for each in states:
        trace.assign(each, [None, hidden])
    trace.forbid(workspace, [hidden], "has gates that are kept for the backward pass")


@register_rule("cudnn_rnn_flatten_weight")
def _flattened(trace: Tracer, op: Operation) -> None:
    """Weights move to lie one behind the other, and stay what they are: nobody reads the whole."""
    rows = [row for weight in op["weight_arr"] for row in trace.rows(weight) if row is not None]
    trace.forbid(op.output, rows, "is read together with other weights")


def _follow(
    trace: Tracer,
    op: Operation,
    parameters: Sequence[Tensor],
    initial: Sequence[Tensor],
    gates: int,
    bidirectional: bool,
) -> None:
    source, directions = op["input"], 2 if bidirectional else 1
    layers = _layers(parameters, len(initial[0]) if initial[0].dim() == 3 else 1)
    entering = trace.row(source, source.dim() - 1)
    trace.freeze([trace.row(source, dim) for dim in range(source.dim() - 1)], "is a batch or a step")
    tokens = source.numel() // source.shape[-1]
    hidden: list[Row] = []
    leaving: list[Row] = []
    for first in range(0, len(layers), directions):
        pairs = [_step(trace, layer, entering, gates, tokens) for layer in layers[first : first + directions]]
        hidden.extend(own for own, _ in pairs)
        leaving.extend(out for _, out in pairs)
        entering = np.concatenate([out for _, out in pairs])
    # The module has one width for all.
    for rows in (hidden, leaving):
        if len(rows) > 1:
            trace.labels.fold(np.stack(rows))
    for state, rows in zip(initial, (leaving, hidden), strict=False):
        _begin(trace, state, rows)
    output, *states = [tensor for tensor in op.outputs() if tensor.is_floating_point()]
    trace.assign(output, [*[None] * (output.dim() - 1), entering])
    for state, rows in zip(states, (leaving, hidden), strict=False):
        if state.dim() == initial[0].dim():
            last = state.dim() - 1
            block = Block((last,), rows[0]) if len(rows) == 1 else Block((0, last), np.stack(rows))
            trace.assign_blocks(state, [block])


def _layers(parameters: Sequence[Tensor], number: int) -> list[_Layer]:
    """The weights of each layer and direction, in the order in which torch lists them."""
    size = len(parameters) // number
    found = []
    for start in range(0, len(parameters), size):
        into, back, *rest = parameters[start : start + size]
        projection = rest.pop() if rest and rest[-1].dim() == 2 else None
        found.append(_Layer(into, back, rest, projection))
    return found


def _step(trace: Tracer, layer: _Layer, entering: Row | None, gates: int, tokens: int) -> tuple[Row, Row]:
    """Join what one layer couples; returns its hidden channels, and those that leave it."""
    (into, read), (back, again) = trace.rows(layer.into), trace.rows(layer.back)
    trace.unite([entering, read] if layer.into.shape[1] > 1 else [], "has an input that is not tracked")
    joined = trace.unite([into, back, *(trace.row(bias, 0) for bias in layer.biases)], "has an untracked bias")
    assert joined is not None
    hidden = leaving = _hidden(trace, joined, gates)
    if layer.projection is not None:
        out, across = trace.rows(layer.projection)
        trace.unite([across, hidden] if layer.projection.shape[1] > 1 else [], "is projected with what is not tracked")
        leaving = _known(trace, out, layer.projection.shape[0])
        trace.recording.produced.append(leaving)
        count(trace, tokens, [(out, layer.projection.shape[0]), (across, layer.projection.shape[1])])
    trace.unite([again, leaving] if layer.back.shape[1] > 1 else [], "is fed back with what is not tracked")
    trace.recording.produced.append(joined)
    for (rows, columns), (height, width) in (((into, read), layer.into.shape), ((back, again), layer.back.shape)):
        count(trace, tokens, [(rows, height), (columns, width)])
    return hidden, leaving


def _hidden(trace: Tracer, joined: Row, gates: int) -> Row:
    """The hidden channels of rows that hold all gates: they meet index by index."""
    own = joined.reshape(gates, -1)
    trace.labels.join(own[:1], own)
    hidden: Row = own[0]
    return hidden


def _known(trace: Tracer, row: Row | None, size: int) -> Row:
    if row is None:
        row = trace.labels.fresh(size)
        trace.freeze([row], "is a single channel")
    return row


def _begin(trace: Tracer, state: Tensor, rows: Sequence[Row]) -> None:
    """What the hidden channels begin with: zeros for the most part."""
    last = state.dim() - 1
    known = False
    for block in trace.blocks(state):
        if last not in block.dims:
            trace.freeze([block.labels], "is a layer or a batch")
            continue
        known = True
        if not trace.labels.is_loose(block.labels):
            over = block.over([0, last] if len(rows) > 1 else [last])
            trace.labels.join(np.broadcast_to(over, (len(rows), state.shape[last])), np.stack(rows))
    if not known:
        trace.freeze(list(rows), "begins with what is not tracked")
