"""Criteria by the names that a user may write."""

from __future__ import annotations

from lit_prune.criteria.activity import MeanActivation, NonzeroActivation, OptimalBrainSurgeon
from lit_prune.criteria.base import Criterion
from lit_prune.criteria.magnitude import BatchNormScale, GeometricMedian, LayerAdaptiveMagnitude, Magnitude, Random
from lit_prune.criteria.taylor import Fisher, Taylor

CRITERIA: dict[str, type[Criterion]] = {
    "magnitude": Magnitude,
    "batchnorm": BatchNormScale,
    "geometric_median": GeometricMedian,
    "lamp": LayerAdaptiveMagnitude,
    "random": Random,
    "taylor": Taylor,
    "fisher": Fisher,
    "activation": MeanActivation,
    "apoz": NonzeroActivation,
    "obs": OptimalBrainSurgeon,
}
