import logging
import shutil
from pathlib import Path

import pytest
import torch

from lit_prune.data import DigitScenes, collate_detection, write_digits
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


@pytest.fixture(scope="session")
def _digits_folder(tmp_path_factory) -> Path:
    return write_digits(tmp_path_factory.mktemp("files") / "digits", scenes=8, val_scenes=6, image_size=64).parent


@pytest.fixture
def digits(_digits_folder, tmp_path) -> Path:
    """The data.yaml of a data set that a test may spoil: 8 and 6 scenes of 64×64."""
    return Path(shutil.copytree(_digits_folder, tmp_path / "digits")) / "data.yaml"


@pytest.fixture
def ultralytics_log(caplog):
    """What Ultralytics logs; its logger keeps its lines from pytest's."""
    logger = logging.getLogger("ultralytics")
    logger.addHandler(caplog.handler)
    yield caplog
    logger.removeHandler(caplog.handler)
