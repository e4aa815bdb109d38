"""How important is a channel: criteria by name, and the base class for your own."""

from lit_prune.criteria.activity import Arriving, MeanActivation, NonzeroActivation, OptimalBrainSurgeon
from lit_prune.criteria.base import Criterion, Evidence
from lit_prune.criteria.changes import Changes
from lit_prune.criteria.magnitude import (
    BatchNormScale,
    GeometricMedian,
    LayerAdaptiveMagnitude,
    Magnitude,
    Random,
    batch_norm_scales,
    power_sums,
)
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

__all__ = [
    "CRITERIA",
    "Arriving",
    "BatchNormScale",
    "Changes",
    "Criterion",
    "Evidence",
    "Fisher",
    "GeometricMedian",
    "LayerAdaptiveMagnitude",
    "Magnitude",
    "MeanActivation",
    "NonzeroActivation",
    "OptimalBrainSurgeon",
    "Random",
    "Taylor",
    "batch_norm_scales",
    "power_sums",
]
