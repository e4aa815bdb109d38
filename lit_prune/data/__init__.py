"""Data that comes with the package: scenes of handwritten digits to detect."""

from lit_prune.data.datamodule import DigitScenesDataModule
from lit_prune.data.digits import DigitScenes, collate_detection
from lit_prune.data.files import write_digits

__all__ = ["DigitScenes", "DigitScenesDataModule", "collate_detection", "write_digits"]
