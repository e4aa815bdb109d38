import pytest
import torch

from lit_prune.data import DigitScenes, collate_detection
from lit_prune.yolo import LitYOLO


@pytest.fixture(scope="session")
def batch() -> dict[str, torch.Tensor]:
    scenes = DigitScenes("train", scenes=4, image_size=64)
    return collate_detection([scenes[k] for k in range(4)])


@pytest.fixture(scope="session")
def _detector() -> LitYOLO:
    torch.manual_seed(0)
    return LitYOLO("yolov8n.yaml", num_classes=10)


@pytest.fixture
def detector(_detector: LitYOLO) -> LitYOLO:
    """A detector for tests that leave its weights alone."""
    return _detector.train()
