"""Ultralytics' trainer and ours with the same weights and the same images: they go the same way, step by step."""

import random

import lightning
import numpy as np
import pytest
import torch
from ultralytics import YOLO

from lit_prune.data import write_digits
from lit_prune.yolo import LitYOLO, YOLODataModule, build_detector
from lit_prune.yolo.export import export_detector
from lit_prune.yolo.loaders import EpochLoader
from lit_prune.yolo.moving_average import MovingAverage

_EPOCHS = 3


def _seed(epoch: int) -> None:
    for seed in (random.seed, np.random.seed, torch.manual_seed):
        seed(epoch)


def _rates(optimizer) -> list[tuple[float, float, float, int]]:
    keys = ("lr", "momentum", "weight_decay")
    return [(*(group.get(key, 0.0) for key in keys), len(group["params"])) for group in optimizer.param_groups]


def _weights(network) -> dict[str, torch.Tensor]:
    state = network.state_dict()
    # Ultralytics' average leaves these counters alone.
    return {name: value.detach().clone() for name, value in state.items() if value.is_floating_point()}


def _theirs(weights, data, folder, settings):
    steps, ends = [], {}

    class Loader(EpochLoader):
        def reset(self) -> None:
            pass

    def same_pictures(trainer):
        dataset = trainer.train_loader.dataset
        trainer.train_loader = Loader(
            dataset,
            before_epoch=lambda: _seed(trainer.epoch),
            batch_size=settings["batch"],
            shuffle=True,
            collate_fn=dataset.collate_fn,
        )

    def keep(trainer):
        ends.update(network=_weights(trainer.model), average=_weights(trainer.ema.ema), updates=trainer.ema.updates)

    yolo = YOLO(str(weights))
    yolo.add_callback("on_pretrain_routine_end", same_pictures)
    yolo.add_callback("on_train_batch_end", lambda t: steps.append((float(t.loss.detach()), _rates(t.optimizer))))
    yolo.add_callback("on_train_epoch_end", keep)
    quiet = {"plots": False, "val": False, "verbose": False, "project": str(folder)}
    yolo.train(data=str(data), epochs=_EPOCHS, device="cpu", **quiet, **settings)
    return steps, ends


def _ours(weights, data, settings):
    steps, ends = [], {}

    class Watched(LitYOLO):
        def on_before_backward(self, loss):
            # Lightning divides by what the recipe multiplies with.
            steps.append((float(loss.detach()), _rates(self.optimizers().optimizer)))

    class SamePictures(YOLODataModule):
        def train_dataloader(self):
            loader = super().train_dataloader()
            close_mosaic = loader.before_epoch
            loader.before_epoch = lambda: (close_mosaic(), _seed(self.trainer.current_epoch))
            return loader

    class Keep(lightning.Callback):
        def on_train_epoch_end(self, trainer, pl_module):
            (callback,) = [each for each in trainer.callbacks if isinstance(each, MovingAverage)]
            average = callback._average_model
            updates = int(average.n_averaged)
            ends.update(network=_weights(pl_module.model), average=_weights(average.module.model), updates=updates)

    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False, "limit_val_batches": 0}
    trainer = lightning.Trainer(
        accelerator="cpu", max_epochs=_EPOCHS, enable_checkpointing=False, callbacks=[Keep()], **quiet
    )
    lit = Watched(str(weights), hyperparameters=settings)
    trainer.fit(lit, SamePictures(str(data), num_workers=0, hyperparameters=settings))
    return steps, ends


@pytest.mark.slow
@pytest.mark.parametrize(
    ("model", "changes", "tolerance"),
    [
        # Rounding grows with the rates; Adam, moreover, divides by what it has hardly seen.
        ("yolov8n.yaml", {"optimizer": "SGD", "lr0": 1e-3, "warmup_bias_lr": 1e-3}, 1e-4),
        ("yolov8n.yaml", {"optimizer": "AdamW", "lr0": 1e-5, "multi_scale": 0.5, "cos_lr": True, "freeze": 2}, 1e-3),
        ("yolo26n.yaml", {"lr0": 1e-5, "box": 5.0, "warmup_epochs": 0.0}, 1e-2),
    ],
)
def test_both_trainers_go_the_same_way(tmp_path, model, changes, tolerance):
    settings = {"imgsz": 64, "batch": 4, "nbs": 8, "amp": False, "lr0": 0.01, "warmup_epochs": 1.0, "close_mosaic": 1}
    settings |= {"warmup_bias_lr": 0.01, **changes}
    data = write_digits(tmp_path / "digits", scenes=16, val_scenes=4, image_size=64)
    torch.manual_seed(0)
    weights = export_detector(build_detector(model, num_classes=10), tmp_path / "first.pt")

    (theirs, their_ends), (ours, our_ends) = _theirs(weights, data, tmp_path, settings), _ours(weights, data, settings)

    assert len(theirs) == len(ours) == 4 * _EPOCHS
    for (their_loss, their_rates), (our_loss, our_rates) in zip(theirs, ours, strict=True):
        assert our_loss == pytest.approx(their_loss, rel=tolerance)
        for their_group, our_group in zip(their_rates, our_rates, strict=True):
            assert our_group == pytest.approx(their_group)
    assert our_ends["updates"] == their_ends["updates"] < len(ours)
    before = _weights(build_detector(str(weights)))
    for part in ("network", "average"):
        # By how far they have come, so that standing still is not close.
        far = sum(float((their_ends[part][name] - before[name]).norm()) for name in before)
        apart = sum(float((their_ends[part][name] - our_ends[part][name]).norm()) for name in before)
        assert apart < 10 * tolerance * far
        assert far > 0
