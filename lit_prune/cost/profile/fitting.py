"""From the times of networks of drawn widths to those of every combination of widths."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.optimize import nnls

from lit_prune.cost.profile.drawn import Shapes, Work
from lit_prune.cost.profile.latency_table import LatencyTable, LayerTimes

Floats = npt.NDArray[np.float64]
# Where a width is no multiple of one of these, a device may have a block to fill.
_BLOCKS = (16, 32, 64)
# By which power of its pairs of channels a part of a layer's time grows: the weights of a wide layer leave the caches.
_POWER = 1.5
# Shorter times than this part of the longest are noise: errors count in proportion above it, and alike below.
_NOISE = 0.05


def fit_table(
    shapes: Sequence[Shapes],
    wholes: Sequence[float],
    layers: Sequence[Mapping[str, float]],
    work: Mapping[str, Work],
    conditions: Mapping[str, Any],
) -> LatencyTable:
    """Fit how long each layer takes, and what remains of each network's time.

    A layer's time is a sum of parts, none of them negative: one for the call, one for each input channel, for each
    output channel and for each pair of both, one that grows faster than the pairs, and some where a width fills no
    whole blocks. What no layer accounts for grows with the elements that leave layers, and, where a runtime tells
    nothing of layers, with their multiply-adds.

    Args:
        shapes: Of each network, the widths of its layers; the first is the whole network.
        wholes: Of each network, its milliseconds.
        layers: Of each network, the milliseconds of its layers; those that are missing are not known.
        work: Each layer's.
        conditions: Of the table; ``error`` is added.
    """
    known = [name for name in work if all(each.get(name, 0.0) > 0 for each in layers)]
    widths = {name: np.array([each[name] for each in shapes], dtype=np.float64) for name in work}
    features = {name: _features(*widths[name].T) for name in known}
    parts = {name: _nonnegative(features[name], np.array([each[name] for each in layers])) for name in known}
    measured = np.array(wholes)
    explained = sum((features[name] @ parts[name] for name in known), np.zeros(len(measured)))
    elements = np.array([work[name].elements for name in work])
    macs = np.array([work[name].macs for name in work])
    outputs = np.stack([widths[name][:, 1] for name in work], 1)
    pairs = np.stack([widths[name].prod(1) for name in work], 1)
    # Where a width fills no whole blocks, runtimes lay tensors out anew to join them.
    columns = [np.ones(len(measured)), *((outputs * ragged) @ elements for ragged in _ragged(outputs))]
    if not known:
        columns.append(pairs @ macs)
    left = _nonnegative(np.stack(columns, 1), measured - explained, of=measured)
    per_element, per_mac = left[1 : 2 + len(_BLOCKS)], (left[-1] if not known else 0.0)
    times = {}
    for name in work:
        rows, columns_ = (_axis(each) for each in widths[name].T)
        grid = np.stack(np.meshgrid(rows, columns_, indexing="ij"), -1).reshape(-1, 2).astype(np.float64)
        joined = per_element @ np.stack(_ragged(grid[:, 1]))
        ms = grid[:, 1] * work[name].elements * joined + grid.prod(1) * work[name].macs * per_mac
        if name in parts:
            ms = ms + _features(*grid.T) @ parts[name]
        times[name] = LayerTimes(rows, columns_, ms.reshape(len(rows), len(columns_)))
    table = LatencyTable(times, float(left[0]))
    errors = [abs(table.ms(each) / ms - 1) for each, ms in zip(shapes, wholes, strict=True)]
    return replace(table, conditions={**conditions, "error": round(float(np.mean(errors)), 4)})


def _ragged(widths: Floats) -> list[Floats]:
    """Ones, and for each size of a block ones where a width is no multiple of it."""
    return [np.ones_like(widths), *((widths % block > 0).astype(np.float64) for block in _BLOCKS)]


def _features(inputs: Floats, outputs: Floats) -> Floats:
    """``(n, parts)``: what the parts of a layer's time are in proportion to."""
    pairs = inputs * outputs
    columns = [np.ones_like(inputs), inputs, outputs, pairs, pairs**_POWER]
    for ragged in (*_ragged(inputs)[1:], *_ragged(outputs)[1:]):
        columns += [ragged, ragged * pairs]
    return np.stack(columns, 1)


def _nonnegative(columns: Floats, wanted: Floats, of: Floats | None = None) -> Floats:
    """The factors of some columns, none negative, whose sum comes nearest to what is wanted.

    Args:
        columns: ``(n, parts)``.
        wanted: ``(n,)``.
        of: ``(n,)`` what an error is relative to; by default what is wanted.
    """
    whole = wanted if of is None else of
    weights = 1 / np.maximum(whole, _NOISE * max(float(whole.max()), 1e-9))
    scales = np.maximum(np.abs(columns).max(0), 1e-12)
    factors, _ = nnls(columns / scales * weights[:, None], wanted * weights)
    return np.asarray(factors / scales)


def _axis(widths: Floats) -> tuple[int, ...]:
    """The widths of a table: all multiples of 8 where layers are narrow, fewer where they are wide."""
    most = int(widths.max())
    if widths.min() == most:
        return (most,)
    fine = {*range(1, 8), *range(8, 129, 8)} if most < 64 else {*range(8, 129, 8)}
    steps = fine | {*range(144, 257, 16)} | {*range(288, most + 1, 32)}
    return tuple(sorted({each for each in steps if each < most} | {most}))
