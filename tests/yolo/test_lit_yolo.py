import copy

import lightning
import pytest
import torch
from lightning.pytorch.plugins import MixedPrecision
from ultralytics.cfg import get_cfg
from ultralytics.nn.tasks import DetectionModel

from lit_prune import ChannelGraph, MissingPackageError, shrink_
from lit_prune.data import DigitScenesDataModule
from lit_prune.yolo import LitYOLO
from lit_prune.yolo.batches import box_targets
from tests.absent import hidden


@pytest.fixture
def data() -> DigitScenesDataModule:
    return DigitScenesDataModule(scenes=8, val_scenes=4, image_size=64, batch_size=4)


def _trainer(tmp_path, **options) -> lightning.Trainer:
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}
    usual = {"accelerator": "cpu", "max_epochs": 1, "enable_checkpointing": False, "num_sanity_val_steps": 0}
    options = usual | options
    return lightning.Trainer(default_root_dir=tmp_path, **quiet, **options)


def _shrunk(detector: LitYOLO) -> LitYOLO:
    graph = ChannelGraph.trace(detector.model, torch.zeros(1, 3, 64, 64))
    remove = {group.name: [1] for group in graph.groups}
    shrink_(detector.model, graph.plan(remove))
    return detector


@pytest.mark.parametrize("name", ["yolov8n.yaml", "yolov10n.yaml", "yolo26n.yaml"])
def test_losses_equal_ultralytics_own_to_the_bit(name, batch, monkeypatch):
    lit = LitYOLO(name, num_classes=10)
    theirs = DetectionModel(name, nc=10, verbose=False)
    theirs.load_state_dict(lit.model.state_dict())
    theirs.args = get_cfg()
    logged = {}
    monkeypatch.setattr(lit, "log", lambda name, value, **_: logged.update({name: value}))
    monkeypatch.setattr(lit, "log_dict", lambda values, **_: logged.update(values))

    loss = lit.training_step(batch, 0)
    expected, parts = theirs.train()(batch)

    assert torch.equal(loss, expected.sum())
    assert torch.equal(logged["train/loss"], expected.sum().detach() / 4)
    assert {name: logged[f"train/{name}"].item() for name in parts} == {k: v.item() for k, v in parts.items()}
    loss.backward()
    expected.sum().backward()
    gradients = dict(theirs.named_parameters())
    for key, parameter in lit.model.named_parameters():
        if parameter.requires_grad:
            assert torch.equal(parameter.grad, gradients[key].grad), key


def test_the_network_is_entered_by_its_own_call(detector, batch, monkeypatch):
    monkeypatch.setattr(detector, "log", lambda *_, **__: None)
    monkeypatch.setattr(detector, "log_dict", lambda *_, **__: None)
    seen = []
    handle = detector.model.register_forward_hook(lambda _module, inputs, _output: seen.append(inputs))
    try:
        detector.training_step(batch, 0)
        detector.detect(batch["img"])
        detector(batch["img"])
    finally:
        handle.remove()

    assert [len(inputs) for inputs in seen] == [1, 1, 1]
    assert all(inputs[0] is batch["img"] for inputs in seen)


def test_fit_validates_and_logs(tmp_path, data):
    trainer = _trainer(tmp_path, max_epochs=2)
    lit = LitYOLO("yolov8n.yaml", num_classes=10, lr=1e-3, warmup_epochs=1, final_lr=0.1, weight_decay=0.03)
    rates = []
    lit.on_train_batch_end = lambda *_: rates.append([group["lr"] for group in trainer.optimizers[0].param_groups])
    trainer.fit(lit, data)

    metrics = trainer.callback_metrics
    assert {"train/loss", "train/box_loss", "train/cls_loss", "train/dfl_loss", "val/map", "val/map_50"} <= set(metrics)
    assert all(torch.isfinite(value) for value in metrics.values())
    assert 0 <= metrics["val/map"] <= metrics["val/map_50"] <= 1
    # Two steps an epoch: warm-up to the highest rate over one of them, cosine down over the other.
    assert [group[0] for group in rates] == pytest.approx([1e-3 * 2 / 3, 1e-3, 1e-3 * 0.55, 1e-3 * 0.1])
    assert all(group[0] == group[1] for group in rates)
    decays = {group["name"]: group["weight_decay"] for group in trainer.optimizers[0].param_groups}
    assert decays == {"weights": 0.03, "biases_and_norms": 0.0}


@pytest.mark.parametrize("name", ["yolov10n.yaml", "yolo26n.yaml"])
def test_end_to_end_networks_train_and_validate(tmp_path, data, name):
    trainer = _trainer(tmp_path)
    lit = LitYOLO(name, num_classes=10)
    trainer.fit(lit, data)

    assert lit.end_to_end
    assert torch.isfinite(trainer.callback_metrics["train/loss"])
    assert lit.model.args.epochs == 1


def test_end_to_end_loss_shifts_its_weights_over_the_epochs(detector):
    lit = LitYOLO("yolo26n.yaml", num_classes=10)
    lit.model.args.epochs = 11
    weights = []
    for epoch in (0, 5, 10):
        lit._trainer = type("Run", (), {"current_epoch": epoch})()
        lit.on_train_epoch_start()
        weights.append(lit.model.criterion.o2m)

    assert weights == pytest.approx([0.8, 0.45, 0.1])


class Steep(LitYOLO):
    """Its gradients are large; what is left of them after clipping is noted."""

    def __init__(self, factor=1000, **sgd):
        super().__init__("yolov8n.yaml", num_classes=10)
        self.factor, self.sgd, self.norms = factor, sgd, []

    def training_step(self, batch, batch_idx):
        return self.factor * super().training_step(batch, batch_idx)

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), **self.sgd) if self.sgd else super().configure_optimizers()

    def on_before_zero_grad(self, optimizer):
        gradients = [p.grad.flatten() for p in self.parameters() if p.grad is not None]
        self.norms.extend([torch.cat(gradients).norm().item()] if gradients else [])


@pytest.mark.parametrize(
    ("options", "largest"), [({}, 10.0), ({"gradient_clip_val": 0.5}, 0.5), ({"gradient_clip_val": 0}, None)]
)
def test_gradients_are_clipped(tmp_path, data, options, largest):
    module = Steep()
    _trainer(tmp_path, limit_train_batches=2, limit_val_batches=0, **options).fit(module, data)

    if largest is None:
        assert module.norms[0] > 1000
    else:
        assert module.norms[0] == pytest.approx(largest, rel=1e-3)


def test_gradients_of_a_fused_optimizer_are_clipped_under_mixed_precision(tmp_path, data):
    """Lightning's own clipping refuses it there."""
    module = Steep(lr=1e-6, fused=True)
    _trainer(tmp_path, limit_train_batches=2, limit_val_batches=0, precision="bf16-mixed").fit(module, data)

    assert module.norms[0] == pytest.approx(10, rel=1e-3)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device here")
@pytest.mark.parametrize("precision", ["16-mixed", "bf16-mixed", "32-true"])
def test_a_fused_optimizer_is_clipped_as_any_other(tmp_path, data, precision):
    found = []
    for fused in (True, False):
        torch.manual_seed(0)
        module = Steep(30, lr=1e-2, fused=fused)
        before = _weights(module)
        # A GPU sums in no fixed order, and steps as steep as these drive apart what differs by that.
        options = {"accelerator": "gpu", "limit_train_batches": 2, "limit_val_batches": 0}
        # By the scale that it begins with, gradients as steep as these overflow, and no step is taken.
        scaler = torch.amp.GradScaler(init_scale=16.0) if precision == "16-mixed" else None
        mixed = {"plugins": [MixedPrecision(precision, "cuda", scaler)]} if "mixed" in precision else {}
        _trainer(tmp_path, **options, **mixed).fit(module, data)
        found.append(_weights(module))
    assert (found[1] - before).norm() > 0
    assert (found[0] - found[1]).norm() < 0.1 * (found[1] - before).norm()


def _weights(module):
    return torch.cat([parameter.detach().flatten().cpu() for parameter in module.parameters()])


def test_perfect_answers_are_worth_a_map_of_one(tmp_path, data, detector, monkeypatch):
    data.setup("validate")
    truth = iter([box_targets(batch) for batch in data.val_dataloader()])
    monkeypatch.setattr(
        "lit_prune.yolo.lit_yolo.run_network",
        lambda *_, **__: [entry | {"scores": torch.ones(len(entry["labels"]))} for entry in next(truth)],
    )
    (values,) = _trainer(tmp_path).validate(detector, data, verbose=False)

    assert values["val/map"] == pytest.approx(1)
    assert values["val/map_50"] == pytest.approx(1)


def test_validation_twice_gives_the_same(tmp_path, data, detector):
    trainer = _trainer(tmp_path)
    first = trainer.validate(detector, data, verbose=False)
    assert trainer.validate(detector, data, verbose=False) == first
    assert list(trainer.test(detector, data, verbose=False)[0].values()) == list(first[0].values())


def test_a_pruned_checkpoint_loads_into_a_fresh_module(tmp_path, data):
    lit = _shrunk(LitYOLO("yolov8n.yaml", num_classes=10))
    trainer = _trainer(tmp_path, limit_val_batches=0)
    trainer.fit(lit, data)
    path = tmp_path / "pruned.ckpt"
    trainer.save_checkpoint(path)

    loaded = LitYOLO.load_from_checkpoint(path, map_location="cpu")

    assert loaded.model.model[0].conv.out_channels == 15
    assert loaded.num_classes == 10
    images = torch.rand(2, 3, 64, 64)
    for mine, theirs in zip(loaded.detect(images, 0.0), lit.detect(images, 0.0), strict=True):
        assert torch.equal(mine["boxes"], theirs["boxes"])
        assert torch.equal(mine["scores"], theirs["scores"])


def test_detect_leaves_modes_and_trains_on(detector, batch):
    detector.model.model[3].eval()
    modes = [module.training for module in detector.modules()]
    with torch.inference_mode():
        detector.detect(batch["img"])
    assert [module.training for module in detector.modules()] == modes
    detector.train()

    detector.eval()
    detector.model(batch["img"])[0].sum().backward()  # caches of inference mode would break this
    detector.zero_grad()


def test_predict_takes_what_loaders_serve(detector, batch):
    images = batch["img"]
    expected = [entry["boxes"].tolist() for entry in detector.detect(images)]
    for form in (batch, images, (images, batch["cls"])):
        assert [entry["boxes"].tolist() for entry in detector.predict_step(form)] == expected


def test_hyperparameters_hold_the_configuration_not_a_path(detector):
    assert detector.hparams["model"]["nc"] == 10
    assert detector.hparams["model"]["head"]
    copy.deepcopy(detector)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"optimizer": "adam"}, "optimizer must be one of 'adamw', 'sgd', but got 'adam'"),
        ({"schedule": "cos"}, "schedule must be one of 'cosine', 'linear', 'constant', but got 'cos'"),
        ({"lr": 0}, "lr must be positive"),
        ({"momentum": 1.0}, r"momentum must be in \[0, 1\)"),
        ({"weight_decay": -1}, "weight_decay must be 0 or more"),
        ({"warmup_epochs": -1}, "warmup_epochs must be 0 or more"),
        ({"final_lr": 2}, r"final_lr must be in \[0, 1\]"),
    ],
)
def test_wrong_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        LitYOLO("yolov8n.yaml", **arguments)


def test_wrong_arguments_of_detect(detector):
    with pytest.raises(ValueError, match="confidence must be in"):
        detector.detect(torch.rand(1, 3, 64, 64), confidence=2)
    with pytest.raises(ValueError, match="iou must be in"):
        detector.detect(torch.rand(1, 3, 64, 64), iou=-1)
    with pytest.raises(ValueError, match="multiples of the network's stride, 32"):
        detector.detect(torch.rand(1, 3, 64, 65))


def test_a_run_without_an_end_needs_a_constant_rate(tmp_path, data):
    trainer = _trainer(tmp_path, max_epochs=-1)
    with pytest.raises(ValueError, match="'cosine' needs to know where the run ends"):
        trainer.fit(LitYOLO("yolov8n.yaml", num_classes=10), data)


def test_a_batch_with_too_many_classes(tmp_path, data):
    lit = LitYOLO("yolov8n.yaml", num_classes=2)
    with pytest.raises(ValueError, match=r"DigitScenes has 10 classes, but the network has 2: .* num_classes=10"):
        _trainer(tmp_path).fit(lit, data)
    # Loaders alone tell no classes beforehand.
    data.trainer = None
    data.setup("fit")
    with pytest.raises(ValueError, match=r"classes must be in 0..1.* pass num_classes to LitYOLO"):
        _trainer(tmp_path, num_sanity_val_steps=0).fit(lit, data.train_dataloader())


def test_what_measures_is_asked_for_before_the_first_epoch(tmp_path):
    quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False, "accelerator": "cpu"}
    rarely = {"max_epochs": 5, "check_val_every_n_epoch": 5, "num_sanity_val_steps": 0}
    trainer = lightning.Trainer(default_root_dir=tmp_path, **rarely, **quiet)
    data = DigitScenesDataModule(scenes=2, val_scenes=2, image_size=64, batch_size=2)
    with hidden("faster-coco-eval"), pytest.raises(MissingPackageError, match=r"Validation needs faster-coco-eval"):
        trainer.fit(LitYOLO("yolov8n.yaml", num_classes=10), data)
    assert trainer.global_step == 0
