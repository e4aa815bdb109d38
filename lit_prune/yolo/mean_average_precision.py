"""Mean average precision of boxes. Importing this module imports torchmetrics' detection metrics."""

from torchmetrics.detection import MeanAveragePrecision

from lit_prune.yolo.gathering import GathersUnevenly


class GatheredMeanAveragePrecision(GathersUnevenly, MeanAveragePrecision):
    """torchmetrics' `MeanAveragePrecision`, for ranks that saw different numbers of images."""
