"""How important is a channel: criteria by name, and the base class for your own."""

from lit_prune.criteria.base import Criterion, Evidence
from lit_prune.criteria.changes import Changes
from lit_prune.criteria.magnitude import (
    BatchNormScale,
    GeometricMedian,
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
    "random": Random,
    "taylor": Taylor,
    "fisher": Fisher,
}

__all__ = [
    "CRITERIA",
    "BatchNormScale",
    "Changes",
    "Criterion",
    "Evidence",
    "Fisher",
    "GeometricMedian",
    "Magnitude",
    "Random",
    "Taylor",
    "batch_norm_scales",
    "power_sums",
]
