from types import SimpleNamespace

import numpy as np
import pytest
import torch
from lightning.pytorch import Trainer
from lightning.pytorch.loggers import CSVLogger
from PIL import Image
from ultralytics.data.augment import Mosaic

from lit_prune import ChannelPruning
from lit_prune.activations.calibration import Calibration
from lit_prune.cli import main
from lit_prune.data import DigitScenes
from lit_prune.select.clustering.selection import ClusterSelection
from lit_prune.yolo import LitYOLO, YOLODataModule
from lit_prune.yolo.loaders import EpochLoader, WholeBatches

_SMALL = {"image_size": 64, "batch_size": 4, "num_workers": 0}
_PLAIN = dict.fromkeys(("mosaic", "hsv_h", "hsv_s", "hsv_v", "translate", "scale", "fliplr"), 0.0)


def _module(data, **options) -> YOLODataModule:
    return YOLODataModule(str(data), **{**_SMALL, **options})


def _trainer(**options) -> Trainer:
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}
    return Trainer(accelerator="cpu", enable_checkpointing=False, **{**quiet, **options})


def _mosaic(dataset) -> float:
    (mosaic,) = [step for step in dataset.transforms.transforms[0].transforms if isinstance(step, Mosaic)]
    return mosaic.p


class _Watching(LitYOLO):
    """Notes each epoch's mosaic and the sizes of its images."""

    def __init__(self) -> None:
        super().__init__("yolov8n.yaml", num_classes=10)
        self.mosaic, self.sizes = [], []

    def training_step(self, batch, batch_idx):
        if batch_idx == 0:
            self.mosaic.append(_mosaic(self.trainer.train_dataloader.dataset))
        self.sizes.append(batch["img"].shape[-1])
        # No loss, no step: the weights are not what is looked at.


def test_pictures_and_boxes_arrive_unharmed(digits):
    data = _module(digits, hyperparameters=_PLAIN)
    data.setup("fit")
    scenes = DigitScenes("train", 8, 64)
    known = {scene["img"].mul(255).round().byte().numpy().tobytes(): scene for scene in scenes}

    batches = list(data.train_dataloader())

    assert [len(batch["img"]) for batch in batches] == [4, 4]
    for batch in batches:
        for number, image in enumerate(batch["img"]):
            scene = known.pop(image.numpy().tobytes())
            rows = batch["batch_idx"] == number
            order = batch["bboxes"][rows][:, 0].argsort()
            expected = scene["bboxes"][:, 0].argsort()
            torch.testing.assert_close(batch["bboxes"][rows][order], scene["bboxes"][expected], atol=1e-5, rtol=0)
            assert torch.equal(batch["cls"][rows][order], scene["cls"][expected])
    assert not known


def test_batches_become_floating_point_on_the_device(digits):
    data = _module(digits)
    data.setup("validate")
    (batch, _) = data.val_dataloader()

    moved = data.on_after_batch_transfer(batch, 0)

    assert torch.equal(moved["img"], batch["img"].float() / 255)
    assert data.on_after_batch_transfer(moved, 0) is moved


def test_mosaic_ends_with_the_last_epochs(digits):
    model = _Watching()
    _trainer(max_epochs=3).fit(model, _module(digits, close_mosaic=1))
    assert model.mosaic == [1.0, 1.0, 0.0]


def test_mosaic_is_closed_from_the_start_of_a_short_run_and_of_a_resumed_one(digits, tmp_path):
    model = _Watching()
    trainer = _trainer(max_epochs=1)
    trainer.fit(model, _module(digits))
    trainer.save_checkpoint(tmp_path / "first.ckpt")
    assert model.mosaic == [0.0]

    resumed = _Watching()
    _trainer(max_epochs=2).fit(resumed, _module(digits, close_mosaic=1), ckpt_path=tmp_path / "first.ckpt")
    assert resumed.mosaic == [0.0]


def test_workers_learn_that_mosaic_has_closed(digits):
    seen = []

    class Watching(_Watching):
        def training_step(self, batch, batch_idx):
            # A mosaic of four scenes has more objects than any scene.
            seen.append((self.current_epoch, len(batch["cls"]) / len(batch["img"])))

    options = {**_PLAIN, "mosaic": 1.0}
    data = _module(digits, num_workers=1, close_mosaic=1, batch_size=8, hyperparameters=options)
    _trainer(max_epochs=2).fit(Watching(), data)
    scenes = sum(len(scene["cls"]) for scene in DigitScenes("train", 8, 64)) / 8
    assert seen[0][1] > scenes
    assert seen[1] == (1, scenes)


def test_multi_scale_varies_the_size_in_training_only(digits):
    model = _Watching()
    data = _module(digits, batch_size=1, hyperparameters={"multi_scale": 0.5})
    _trainer(max_epochs=2).fit(model, data)
    assert set(model.sizes) == {32, 64, 96}
    assert data.on_after_batch_transfer({"img": torch.zeros(1, 3, 64, 64, dtype=torch.uint8)}, 0)["img"].shape[-1] == 64


def test_rectangular_batches_have_the_shape_of_their_pictures(digits):
    for number, file in enumerate(sorted((digits.parent / "images" / "val").iterdir())):
        Image.open(file).resize((64, 32) if number % 2 else (32, 64)).save(file)
    data = _module(digits, batch_size=3)
    data.setup("validate")

    shapes = [tuple(batch["img"].shape[2:]) for batch in data.val_dataloader()]

    assert sorted(shapes) == [(64, 96), (96, 64)]


def test_ranks_share_whole_batches():
    class Data:
        batch = np.array([0, 0, 1, 1, 2, 2, 3])

    shares = [list(WholeBatches(Data(), num_replicas=3, rank=rank)) for rank in range(3)]
    assert shares == [[0, 1, 6], [2, 3], [4, 5]]
    assert [len(WholeBatches(Data(), num_replicas=3, rank=rank)) for rank in range(3)] == [3, 2, 2]


def test_a_loader_can_be_made_anew_with_another_sampler(digits):
    """As Lightning does under DDP."""
    from lightning.fabric.utilities.data import _replace_dunder_methods, _update_dataloader
    from torch.utils.data import DataLoader, DistributedSampler

    data = _module(digits)
    data.setup("fit")
    with _replace_dunder_methods(DataLoader, "dataset"):
        loader = data.train_dataloader()
    again = _update_dataloader(loader, DistributedSampler(loader.dataset, num_replicas=2, rank=0))
    assert isinstance(again, EpochLoader)
    assert again.before_epoch is loader.before_epoch
    assert [len(batch["img"]) for batch in again] == [4]


@pytest.mark.parametrize("cache", ["ram", "disk"])
def test_cached_pictures_are_the_same(digits, cache):
    plain, cached = _module(digits), _module(digits, cache=cache)
    for data in (plain, cached):
        data.setup("validate")
    for one, other in zip(plain.val_dataloader(), cached.val_dataloader(), strict=True):
        assert torch.equal(one["img"], other["img"])
    assert bool(list(digits.parent.rglob("*.npy"))) == (cache == "disk")


def test_the_test_split_is_used_where_there_is_one(digits):
    data = _module(digits)
    data.setup("test")
    assert len(data.test_dataloader().dataset) == 6
    digits.write_text(digits.read_text() + "test: images/train\n")
    data = _module(digits)
    data.setup("test")
    assert len(data.test_dataloader().dataset) == len(data.predict_dataloader().dataset) == 8


def test_calibration_sees_training_pictures_without_augmentation(digits):
    data = _module(digits)
    data.setup("fit")
    images = torch.cat([batch["img"] for batch in data.calibration_dataloader()])
    assert torch.equal(images, DigitScenes("train", 8, 64).images)


def test_hyperparameters_of_an_earlier_run(digits, tmp_path):
    from ultralytics.utils import YAML

    YAML.save(tmp_path / "args.yaml", {"imgsz": 96, "batch": 2, "mosaic": 0.25, "save_dir": "runs/x", "lr0": 0.1})
    data = YOLODataModule(str(digits), num_workers=0, hyperparameters=str(tmp_path / "args.yaml"))
    data.setup("fit")
    assert next(iter(data.train_dataloader()))["img"].shape == (2, 3, 96, 96)
    assert _mosaic(data.train_dataloader().dataset) == 0.25


def test_a_logger_takes_settings_that_only_the_data_have(digits, tmp_path):
    logger = CSVLogger(tmp_path)
    data = _module(digits, hyperparameters={"mosaic": 0.5})

    _trainer(max_epochs=1, limit_train_batches=1, limit_val_batches=0, logger=logger).fit(
        LitYOLO("yolov8n.yaml", num_classes=10, hyperparameters={"mosaic": 0.2}), data
    )

    assert logger.experiment.hparams["hyperparameters"]["mosaic"] == 0.2
    assert data.hparams["hyperparameters"]["mosaic"] == 0.5


def test_one_class_for_all(digits):
    data = _module(digits, hyperparameters={"single_cls": True})
    data.setup("validate")
    assert data.names == {0: "item"}
    assert all((batch["cls"] == 0).all() for batch in data.val_dataloader())


def _first(digits, kind, split="train"):
    return sorted((digits.parent / kind / split).iterdir())[0]


def test_pictures_without_labels_are_backgrounds(digits):
    _first(digits, "labels").unlink()
    sorted((digits.parent / "labels" / "train").iterdir())[0].write_text("")
    data = _module(digits, hyperparameters=_PLAIN)
    data.setup("fit")
    batches = list(data.train_dataloader())
    present = [set(batch["batch_idx"].int().tolist()) for batch in batches]
    assert sum(len(batch["img"]) for batch in batches) == 8
    assert sum(map(len, present)) == 6


@pytest.mark.parametrize(
    ("kind", "content", "reason"),
    [
        ("labels", b"10 0.5 0.5 0.1 0.1\n", "Label class 10 exceeds dataset class count 10"),
        ("labels", b"1 0.5 0.5 0.1\n", "labels require 5 columns, 4 columns detected"),
        ("labels", b"1 5 5 1 1\n", "non-normalized or out of bounds coordinates"),
        ("labels", b"1 nan 0.5 0.1 0.1\n", "non-normalized or out of bounds coordinates"),
        ("labels", b"-1 0.5 0.5 0.1 0.1\n", "negative "),
        ("labels", b"1.5 0.5 0.5 0.1 0.1\n", "non-integer class labels"),
        ("labels", b"dog 0.5 0.5 0.1 0.1\n", "could not convert string to float: 'dog'"),
        ("labels", b"\xff\xfe\x00", "codec can't decode byte"),
        ("images", b"", "it is not an image"),
        ("images", b"not an image", "it is not an image"),
    ],
)
def test_a_warning_names_the_pictures_that_are_left_out(digits, kind, content, reason):
    file = _first(digits, kind)
    file.write_bytes(content)
    data = _module(digits)
    with pytest.warns(UserWarning, match=rf"Left out of the train split: 1 images.\n  /.*000000.png: .*{reason}"):
        data.setup("fit")
    assert sum(len(batch["img"]) for batch in data.train_dataloader()) == 7


def test_a_picture_that_vanishes_is_named(digits):
    data = _module(digits)
    data.setup("validate")
    file = _first(digits, "images", "val")
    file.unlink()
    with pytest.raises(FileNotFoundError, match=file.name):
        list(data.val_dataloader())


@pytest.mark.parametrize("num_workers", [0, 1])
def test_a_picture_that_breaks_after_the_scan_is_named(digits, num_workers):
    data = _module(digits, num_workers=num_workers)
    data.setup("fit")
    file = _first(digits, "images")
    file.write_bytes(bytes(file.stat().st_size))
    with pytest.raises(FileNotFoundError, match=file.name):
        list(data.train_dataloader())


def test_a_picture_without_enough_pixels_is_left_out(digits):
    Image.new("RGB", (5, 5)).save(_first(digits, "images"))
    with pytest.warns(UserWarning, match=r"000000.png: .*image size \(5, 5\) <10 pixels"):
        _module(digits).setup("fit")


def test_a_broken_jpeg_is_named_in_training(digits):
    for number, file in enumerate(sorted((digits.parent / "images" / "train").iterdir())):
        jpeg = file.with_suffix(".jpg")
        Image.open(file).save(jpeg)
        file.unlink()
        if number == 0:
            jpeg.write_bytes(jpeg.read_bytes()[:300])
    with pytest.warns(UserWarning, match=r"Left out .*\n  /.*000000.jpg: "):
        _module(digits).setup("fit")


def test_a_split_without_pictures(digits):
    for file in (digits.parent / "images" / "val").iterdir():
        file.unlink()
    with pytest.raises(FileNotFoundError, match=r"The val split has no images: .*No images found in .*images/val"):
        _module(digits).setup("validate")


def test_training_pictures_without_any_label(digits):
    for file in (digits.parent / "labels" / "train").iterdir():
        file.unlink()
    with pytest.raises(ValueError, match=r"The train split of .*images/train.*No labels found"):
        _module(digits).setup("fit")


def test_only_broken_pictures(digits):
    for file in (digits.parent / "images" / "train").iterdir():
        file.write_text("")
    with pytest.raises(ValueError, match=r"(?s)(No valid images|No labels) found .*00000\d.png: ignoring corrupt"):
        _module(digits).setup("fit")


@pytest.mark.parametrize(
    ("text", "error", "message"),
    [
        ("val: images/val\nnames: {0: a}\n", ValueError, "'train:' key missing"),
        ("train: images/train\nval: images/val\n", ValueError, "either 'names' or 'nc' are required"),
        ("train: images/train\nval: images/vall\nnames: {0: a}\n", FileNotFoundError, "missing path .*images/vall"),
        ("train: images/tain\nval: images/val\nnc: 10\n", FileNotFoundError, "images/tain.* does not exist"),
    ],
)
def test_wrong_descriptions_are_told_by_their_file(digits, text, error, message):
    digits.write_text(text)
    with pytest.raises(error, match=message):
        _module(digits).setup("fit")


def test_a_description_that_is_not_there():
    with pytest.raises(FileNotFoundError, match=r"data='nowhere/data.yaml' can't be used"):
        _module("nowhere/data.yaml").prepare_data()


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"image_size": 50}, "image_size must be a multiple of 32"),
        ({"batch_size": 0}, "batch_size must be a whole number from 1 on, but got 0"),
        ({"num_workers": -1}, "num_workers must be a whole number from 0 on, but got -1"),
        ({"cache": "tape"}, "cache must be True, False, 'ram' or 'disk', but got 'tape'"),
        ({"hyperparameters": {"mosaik": 1.0}}, "'mosaik' is not a valid YOLO argument. Similar .*mosaic"),
        ({"hyperparameters": {"mosaic": 2.0}}, "mosaic"),
    ],
)
def test_wrong_arguments(wrong, message):
    with pytest.raises(ValueError, match=message):
        _module("data.yaml", **wrong)
    with pytest.raises(FileNotFoundError, match=r"There is no file 'args\.yaml'"):
        _module("data.yaml", hyperparameters="args.yaml")


def test_a_network_with_too_few_classes(digits):
    with pytest.raises(ValueError, match=r"data.yaml' has 10 classes, but the network has 3: .*num_classes=10"):
        _trainer(max_epochs=1).fit(LitYOLO("yolov8n.yaml", num_classes=3), _module(digits))


@pytest.mark.slow
def test_pruning_by_what_classes_activate(digits):
    selection = ClusterSelection(calibration=Calibration(match_iou=None))
    pruning = ChannelPruning(0.3, 1, blocks=[1], selection=selection, verbose=False)
    model = LitYOLO("yolov8n.yaml", num_classes=10)
    trainer = _trainer(max_epochs=2, callbacks=[pruning])
    trainer.fit(model, _module(digits))
    assert pruning.record.events[0]["channels"]["model.model.1.conv"] == [32, 24]


def test_the_command_line_trains_on_files_and_keeps_the_names(digits, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    digits.write_text(digits.read_text().replace("7: 7", "7: seven"))
    data = ["--data=lit_prune.yolo.YOLODataModule", f"--data.data={digits}", "--data.image_size=64"]
    data += ["--data.batch_size=4", "--data.num_workers=0"]
    quiet = ["--trainer.logger=false", "--trainer.enable_progress_bar=false", "--trainer.accelerator=cpu"]
    assert main(["fit", *quiet, *data, "--trainer.max_epochs=1", "--trainer.limit_train_batches=1"]) == 0
    (checkpoint,) = tmp_path.rglob("*.ckpt")
    assert LitYOLO.load_from_checkpoint(checkpoint).model.names[7] == "seven"


def test_digits_on_the_command_line(tmp_path, capsys):
    arguments = ["--scenes", "2", "--val-scenes", "1", "--image-size", "64"]
    assert main(["digits", str(tmp_path / "digits"), *arguments]) == 0
    assert "data.yaml" in capsys.readouterr().out
    assert main(["digits", str(tmp_path / "digits"), *arguments]) == 2
    assert "holds images and labels and data.yaml already" in capsys.readouterr().err


def test_images_that_are_not_to_be_rectangular_have_the_size_that_was_asked_for(digits):
    sizes = {}
    for rectangular in (True, False):
        data = _module(digits, rectangular=rectangular, hyperparameters={"rect": rectangular})
        data.setup("validate")
        sizes[rectangular] = {tuple(batch["img"].shape[2:]) for batch in data.val_dataloader()}
        assert data.image_size == 64
    assert sizes == {True: {(96, 96)}, False: {(64, 64)}}


def test_fewer_batches_than_devices_are_refused(digits):
    data = _module(digits, batch_size=8)
    data.setup("validate")
    data.trainer = SimpleNamespace(world_size=2, global_rank=0)
    with pytest.raises(ValueError, match=r"too few batches of 8 images for 2 devices \(1\): .* Lower batch_size"):
        data.val_dataloader()
