"""YOLODataModule: any Ultralytics data set for a Lightning Trainer, with Ultralytics' own augmentation."""

from collections.abc import Iterator
from contextlib import contextmanager
from copy import copy
from typing import Any

import numpy as np
import torch
from lightning.pytorch import LightningDataModule
from torch.utils.data import DataLoader

from lit_prune.errors import ArgumentError
from lit_prune.yolo.dataset import (
    Split,
    build_dataset,
    closes_mosaic,
    read_data,
    read_hyperparameters,
    rescale,
)
from lit_prune.yolo.loaders import EpochLoader, WholeBatches
from lit_prune.yolo.package import require_ultralytics
from lit_prune.yolo.tasks import Task, task_named


class YOLODataModule(LightningDataModule):
    """Loaders of an Ultralytics data set of any task, as Ultralytics' trainer would load it.

    Training images are augmented by Ultralytics (mosaic, colour, flips, ...), and mosaic, mixup and their kin end
    `close_mosaic` epochs before the run does, if the Trainer has a `max_epochs`. Validation images are letterboxed
    in rectangular batches. Testing and prediction run on the `test` split where there is one, else on `val`.

    The task is that of the `LitYOLO` which the Trainer runs: detection, segmentation, pose, OBB, or classification,
    whose data has a folder per class. Images are stretched to a square for RT-DETR, as Ultralytics does.

    Batches are Ultralytics' own, with the images as floating point in 0..1 once they are on the device: `img`, `cls`,
    `bboxes` and `batch_idx` as `LitYOLO` takes them, and `im_file`, `ori_shape`, `ratio_pad`. Label files are scanned
    once; Ultralytics keeps what it found in a `*.cache` file beside the labels. Images that can't be read, and
    images with wrong labels, are left out, and a warning names them. Images without a label file have no objects.

    Args:
        data: A `data.yaml`, a folder with one, or a name that Ultralytics offers for download (`"coco8.yaml"`); for
            classification, a folder with `train` and `val`, each with a folder per class.
        image_size: Length in pixels of the longer side; by default the hyperparameter `imgsz`, 640, or 224 for
            classification.
        batch_size: Images in a batch, on each device; by default the hyperparameter `batch`, 16.
        num_workers: Worker processes of each loader; by default the hyperparameter `workers`, 8.
        cache: Keep decoded images, in memory (`"ram"` or True) or on the disk beside the images (`"disk"`).
        close_mosaic: Number of last epochs without mosaic; by default the hyperparameter of this name, 10.
        hyperparameters: Others by Ultralytics' names, such as `{"mosaic": 0.5, "fliplr": 0.0, "multi_scale": 0.25}`,
            or an `args.yaml` that Ultralytics' trainer wrote; what does not concern data is ignored.
        task: `"detect"`, `"segment"`, `"pose"`, `"obb"` or `"classify"`; by default that of the network in the
            Trainer, or detection without one.
        rectangular: Whether validation, test and prediction images are padded only as far as their batch asks for, as
            Ultralytics does; else all are squares of `image_size`, as an exported network takes them.

    Attributes:
        image_size: Length in pixels of the longer side.
        names: Class to name, once the data was set up.
        num_classes: Number of classes, once the data was set up.

    Raises:
        FileNotFoundError: If the data, or the images of a split, are not there.
        MissingPackageError: If Ultralytics is missing.
        ArgumentError: If an argument is out of range, or the data can't be used; the message names the file.

    Example:
        >>> import tempfile
        >>> from lit_prune.data import write_digits
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     path = write_digits(folder, scenes=4, val_scenes=4, image_size=64)
        ...     data = YOLODataModule(str(path), image_size=64, batch_size=2, num_workers=0)
        ...     data.num_classes, data.names[7]
        (10, '7')
    """

    def __init__(
        self,
        data: str,
        image_size: int | None = None,
        batch_size: int | None = None,
        num_workers: int | None = None,
        cache: bool | str = False,
        close_mosaic: int | None = None,
        hyperparameters: dict[str, Any] | str | None = None,
        task: str | None = None,
        rectangular: bool = True,
    ) -> None:
        super().__init__()
        require_ultralytics()
        if cache not in (False, True, "ram", "disk"):
            raise ArgumentError(f"cache must be True, False, 'ram' or 'disk', but got {cache!r}.")
        self.settings: Any = read_hyperparameters(
            hyperparameters,
            imgsz=image_size,
            batch=batch_size,
            workers=num_workers,
            cache=cache,
            close_mosaic=close_mosaic,
        )
        self._given_task = None if task is None else task_named(task)
        self._sized = image_size is not None or self.settings.imgsz != _SIDE
        for name, low in {"imgsz": 32, "batch": 1, "workers": 0, "close_mosaic": 0}.items():
            value = getattr(self.settings, name)
            if not isinstance(value, int) or value < low:
                raise ArgumentError(f"{_OURS.get(name, name)} must be a whole number from {low} on, but got {value!r}.")
        if self.settings.imgsz % 32:
            raise ArgumentError(
                f"image_size must be a multiple of 32, the network's stride, but got {self.settings.imgsz}."
            )
        # Loggers refuse two values of one name, and LitYOLO logs all of Ultralytics' hyperparameters.
        self.save_hyperparameters(logger=False)
        self.data = data
        self.rectangular = rectangular
        self._found: dict[str, dict[str, Any]] = {}
        self._datasets: dict[Split, Any] = {}

    @property
    def task(self) -> Task:
        """The task whose labels are read."""
        network = getattr(getattr(self.trainer, "lightning_module", None), "task", None)
        if isinstance(network, Task) and self._given_task in (None, task_named(network.name)):
            return network
        return self._given_task or task_named("detect")

    @property
    def image_size(self) -> int:
        """Length in pixels of the longer side."""
        if self.task.name == "classify" and not self._sized:
            return _CLASSIFY_SIDE
        return int(self.settings.imgsz)

    @property
    def names(self) -> dict[int, str]:
        """Class to name."""
        return {0: "item"} if self.settings.single_cls else dict(self._description()["names"])

    @property
    def num_classes(self) -> int:
        """Number of classes."""
        return len(self.names)

    def prepare_data(self) -> None:
        """Download what is not here, and let Ultralytics scan the labels, in one process only."""
        read_data(self.data, task=self.task.name)

    def setup(self, stage: str) -> None:
        """Build the data sets that a stage needs, once, and tell the network the names of its classes.

        Raises:
            ArgumentError: If the network's task, classes or keypoints are not those of the data.
        """
        module: Any = getattr(self.trainer, "lightning_module", None)
        if isinstance(getattr(module, "task", None), Task):
            self._check_network(module)
        if stage == "fit":
            self._dataset("train")
        self._dataset("val" if stage in ("fit", "validate") else self._held_out)

    def _check_network(self, module: Any) -> None:
        network, theirs = module.model, module.task.name
        if self.task.name != theirs:
            raise ArgumentError(
                f"The network's task is {theirs}, but the data is for {self.task.name}: leave out task="
                f"{self.task.name!r}, or take a network of that task."
            )
        module.match_classes(self.names, repr(self.data))
        if hasattr(network, "kpt_shape"):
            ours, shape = list(network.kpt_shape), self._description().get("kpt_shape")
            if shape is not None and ours != list(shape):
                raise ArgumentError(
                    f"{self.data!r} has kpt_shape {list(shape)}, but the network has {ours}: give the model "
                    f"kpt_shape={list(shape)}."
                )
            network.kpt_oks_sigmas = self._description().get("kpt_oks_sigmas")

    def train_dataloader(self) -> DataLoader[Any]:
        """Load augmented training images, in random order unless they are rectangular."""
        dataset = self._dataset("train")
        one_shape = not getattr(dataset, "rect", False) or bool(np.all(dataset.batch_shapes == dataset.batch_shapes[0]))

        def close_mosaic() -> None:
            trainer = self.trainer
            if trainer is None:
                return
            has_mosaic = hasattr(dataset, "close_mosaic")
            if has_mosaic and closes_mosaic(trainer.current_epoch, trainer.max_epochs, self.settings.close_mosaic):
                dataset.close_mosaic(hyp=copy(self.settings))

        options = {"shuffle": True} if one_shape else {"sampler": self._whole_batches(dataset)}
        return EpochLoader(dataset, before_epoch=close_mosaic, **options, **self._options(dataset))

    def val_dataloader(self) -> DataLoader[Any]:
        """Load letterboxed validation images."""
        return self._loader("val")

    def test_dataloader(self) -> DataLoader[Any]:
        """Load the letterboxed images of the test split, or of the validation split if there is none."""
        return self._loader(self._held_out)

    def predict_dataloader(self) -> DataLoader[Any]:
        """Load the same images as for testing."""
        return self._loader(self._held_out)

    def calibration_dataloader(self) -> DataLoader[Any]:
        """Load training images letterboxed, without augmentation: what a network's channels are judged on."""
        dataset = self._build("train", augment=False, rect=False)
        return DataLoader(dataset, **self._options(dataset))

    def on_after_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        """Turn bytes into floating point in 0..1, and vary the size of training batches with `multi_scale`."""
        if isinstance(batch, dict) and not batch["img"].is_floating_point():
            images = batch["img"].float() / 255
            if self.settings.multi_scale > 0 and getattr(self.trainer, "training", False):
                images = rescale(images, self.settings.imgsz, self.settings.multi_scale)
            batch = {**batch, "img": images}
        return batch

    @property
    def _held_out(self) -> Split:
        return "test" if self._description().get("test") else "val"

    def _description(self) -> dict[str, Any]:
        task = self.task.name
        if task not in self._found:
            self._found[task] = read_data(self.data, task=task)
        return self._found[task]

    def _dataset(self, split: Split) -> Any:
        if split not in self._datasets:
            augment = split == "train"
            with self._first_process_first(f"labels of {split}"):
                self._datasets[split] = self._build(split, augment=augment, rect=self.rectangular and not augment)
        return self._datasets[split]

    def _build(self, split: Split, *, augment: bool, rect: bool) -> Any:
        description = {**self._description(), "names": self.names, "nc": self.num_classes}
        settings = copy(self.settings)
        settings.task = self.task.name
        settings.imgsz = self.image_size
        settings.rect = rect or (augment and settings.rect)  # Ultralytics goes by either
        return build_dataset(
            settings,
            description,
            split,
            self.settings.batch,
            augment=augment,
            rect=rect,
            stretched=self.task.stretched,
        )

    @contextmanager
    def _first_process_first(self, what: str) -> Iterator[None]:
        """The first process writes Ultralytics' cache of the labels, the others read it."""
        strategy: Any = None if self.trainer is None else self.trainer.strategy
        first = strategy is None or strategy.is_global_zero
        if not first:
            strategy.barrier(what)
        try:
            yield
        finally:
            # Also after an error: the others meet the same one, and would wait forever.
            if strategy is not None and first:
                strategy.barrier(what)

    def _loader(self, split: Split) -> DataLoader[Any]:
        dataset = self._dataset(split)
        return DataLoader(dataset, sampler=self._whole_batches(dataset), **self._options(dataset))

    def _whole_batches(self, dataset: Any) -> WholeBatches:
        trainer = self.trainer
        ranks = 1 if trainer is None else trainer.world_size
        rank = 0 if trainer is None else trainer.global_rank
        batches = WholeBatches(dataset, num_replicas=ranks, rank=rank, batch_size=self.settings.batch)
        if batches.batches < ranks:
            raise ArgumentError(
                f"{self.data!r} has a split with too few batches of {self.settings.batch} images for {ranks} devices "
                f"({batches.batches}): each device needs one at least. Lower batch_size, or take fewer devices."
            )
        return batches

    def _options(self, dataset: Any) -> dict[str, Any]:
        # Workers end with each epoch: those that stayed would not learn that mosaic has closed.
        return {
            "batch_size": self.settings.batch,
            "num_workers": self.settings.workers,
            "collate_fn": getattr(dataset, "collate_fn", None),
            "pin_memory": torch.cuda.is_available(),
        }


_SIDE, _CLASSIFY_SIDE = 640, 224  # in pixels, Ultralytics' own
_OURS = {"imgsz": "image_size", "batch": "batch_size", "workers": "num_workers"}
