"""What the channels see: activations of the live network, and what they say of classes."""

from lit_prune.activations.arriving import Arrivals, collect_arrivals
from lit_prune.activations.calibration import Calibration, collect_moments
from lit_prune.activations.extractor import ActivationExtractor, sliced_block
from lit_prune.activations.moments import ClassMoments, Moments, jeffries_matusita
from lit_prune.activations.objects import CalibrationBatch, read_batch
from lit_prune.errors import CalibrationError

__all__ = [
    "ActivationExtractor",
    "Arrivals",
    "Calibration",
    "CalibrationBatch",
    "CalibrationError",
    "ClassMoments",
    "Moments",
    "collect_arrivals",
    "collect_moments",
    "jeffries_matusita",
    "read_batch",
    "sliced_block",
]
