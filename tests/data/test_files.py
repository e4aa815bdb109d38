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


@pytest.mark.parametrize("task", ["segment", "pose", "obb"])
def test_ultralytics_reads_the_labels_of_every_task(task, tmp_path):
    path = write_digits(tmp_path / "digits", scenes=6, val_scenes=1, image_size=64, task=task)
    from lit_prune.yolo.dataset import build_dataset, read_data, read_hyperparameters

    settings = read_hyperparameters({"imgsz": 64}, task=task)
    dataset = build_dataset(settings, read_data(path, task=task), "train", 2, augment=False, rect=False)

    scenes = DigitScenes("train", 6, 64)
    assert len(dataset) == 6
    for number in range(6):
        batch, item = dataset[number], scenes[number]
        # Ultralytics sorts masks by their areas.
        theirs, ours = batch["bboxes"][:, 0].argsort(), item["bboxes"][:, 0].argsort()
        assert torch.equal(batch["cls"][theirs], item["cls"][ours])
        wanted = {"segment": "masks", "pose": "keypoints", "obb": "bboxes"}[task]
        assert batch[wanted].shape[-1] == {"segment": 16, "pose": 3, "obb": 5}[task]
        # A box around the middles of pixels is up to a pixel less than one around their edges.
        apart = batch["bboxes"][theirs, :2] - item["bboxes"][ours, :2]
        assert apart.abs().max() < (0.08 if task == "obb" else 0.01)


def test_a_picture_of_each_digit_lies_in_the_folder_of_its_class(tmp_path):
    path = write_digits(tmp_path / "digits", scenes=4, val_scenes=2, image_size=64, task="classify")

    assert path == tmp_path / "digits"
    assert sorted(folder.name for folder in (path / "val").iterdir()) == [str(digit) for digit in range(10)]
    labels = torch.cat([DigitScenes("train", 4, 64)[number]["cls"].flatten() for number in range(4)])
    files = list((path / "train").glob("*/*.png"))
    assert sorted(int(file.parent.name) for file in files) == sorted(labels.int().tolist())
    for file in files:
        width, height = Image.open(file).size
        assert width == height >= 13


def test_a_folder_with_data_stays_as_it_is(tmp_path):
    (tmp_path / "labels").mkdir()
    with pytest.raises(FileExistsError, match="holds labels already"):
        write_digits(tmp_path, scenes=1, val_scenes=1)
    assert [path.name for path in tmp_path.iterdir()] == ["labels"]


@pytest.mark.parametrize(
    "wrong", [{"scenes": 0}, {"val_scenes": 0}, {"image_size": 50}, {"seed": -1}, {"task": "boxes"}]
)
def test_wrong_arguments_write_nothing(wrong, tmp_path):
    with pytest.raises(ValueError, match="must"):
        write_digits(tmp_path / "digits", **wrong)
    assert not (tmp_path / "digits").exists()
