"""How important is a channel: criteria by name, and the base class for your own."""

from lit_prune.criteria.activity import Arriving, MeanActivation, NonzeroActivation, OptimalBrainSurgeon
from lit_prune.criteria.base import Criterion, Evidence
from lit_prune.criteria.changes import Changes
from lit_prune.criteria.combined import Combined
from lit_prune.criteria.known import CRITERIA
from lit_prune.criteria.magnitude import (
    BatchNormScale,
    GeometricMedian,
    LayerAdaptiveMagnitude,
    Magnitude,
    Random,
    batch_norm_scales,
    power_sums,
)
from lit_prune.criteria.scores import checked_scores
from lit_prune.criteria.taylor import Fisher, Taylor

__all__ = [
    "CRITERIA",
    "Arriving",
    "BatchNormScale",
    "Changes",
    "Combined",
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
    "checked_scores",
    "power_sums",
]
