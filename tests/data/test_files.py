import numpy as np
import pytest
import torch
from PIL import Image

from lit_prune.data import DigitScenes, write_digits


def test_files_hold_the_very_pixels_and_boxes(tmp_path):
    path = write_digits(tmp_path / "deep" / "digits", scenes=3, val_scenes=2, image_size=64, seed=1)

    for split, count in (("train", 3), ("val", 2)):
        scenes = DigitScenes(split, count, 64, seed=1)
        images = sorted((path.parent / "images" / split).iterdir())
        labels = sorted((path.parent / "labels" / split).iterdir())
        assert [file.stem for file in images] == [file.stem for file in labels]
        assert len(images) == count
        for number in range(count):
            assert np.array_equal(np.asarray(Image.open(images[number])), scenes.images[number].permute(1, 2, 0))
            rows = torch.from_numpy(np.loadtxt(labels[number], ndmin=2)).float()
            assert torch.equal(rows[:, :1], scenes[number]["cls"])
            assert torch.equal(rows[:, 1:], scenes[number]["bboxes"])


def test_ultralytics_reads_it_wherever_it_is_moved(tmp_path):
    from ultralytics.data.utils import check_det_dataset

    path = write_digits(tmp_path / "digits", scenes=1, val_scenes=1, image_size=64)
    path.parent.rename(tmp_path / "moved")

    data = check_det_dataset(str(tmp_path / "moved" / "data.yaml"))

    assert data["nc"] == 10
    assert data["names"][7] == "7"
    assert data["val"] == str(tmp_path / "moved" / "images" / "val")


def test_a_folder_with_data_stays_as_it_is(tmp_path):
    (tmp_path / "labels").mkdir()
    with pytest.raises(FileExistsError, match="holds labels already"):
        write_digits(tmp_path, scenes=1, val_scenes=1)
    assert [path.name for path in tmp_path.iterdir()] == ["labels"]


@pytest.mark.parametrize("wrong", [{"scenes": 0}, {"val_scenes": 0}, {"image_size": 50}, {"seed": -1}])
def test_wrong_arguments_write_nothing(wrong, tmp_path):
    with pytest.raises(ValueError, match="must"):
        write_digits(tmp_path / "digits", **wrong)
    assert not (tmp_path / "digits").exists()
