import copy
import itertools

import lightning
import pytest
import torch
from ultralytics.cfg import get_cfg

from lit_prune import ChannelPruning
from lit_prune.data import DigitScenesDataModule
from lit_prune.yolo import LitYOLO
from lit_prune.yolo.moving_average import MovingAverage
from lit_prune.yolo.recipe import Recipe


def _trainer(tmp_path, **options) -> lightning.Trainer:
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False, "accelerator": "cpu"}
    options = {"max_epochs": 2, "enable_checkpointing": False, "num_sanity_val_steps": 0} | options
    return lightning.Trainer(default_root_dir=tmp_path, **quiet, **options)


def _data(batch_size=2, scenes=8) -> DigitScenesDataModule:
    return DigitScenesDataModule(scenes=scenes, val_scenes=4, image_size=64, batch_size=batch_size)


def _lit(**hyperparameters) -> LitYOLO:
    return LitYOLO("yolov8n.yaml", num_classes=10, hyperparameters=hyperparameters)


def test_optimizer_groups_and_decay_are_those_of_ultralytics(tmp_path):
    lit = _lit(optimizer="SGD", lr0=0.02, weight_decay=0.01)
    trainer = _trainer(tmp_path, limit_train_batches=1, limit_val_batches=0)
    trainer.fit(lit, _data(batch_size=6, scenes=12))

    groups = {group["param_group"]: group for group in trainer.optimizers[0].param_groups}
    # 64 / 6 is 11 batches, of 66 images.
    assert groups["weight"]["weight_decay"] == pytest.approx(0.01 * 66 / 64)
    assert groups["bn"]["weight_decay"] == groups["bias"]["weight_decay"] == 0
    names = {id(parameter): name for name, parameter in lit.model.named_parameters()}
    assert all(names[id(p)].endswith("bias") for p in groups["bias"]["params"])
    assert all(".bn.weight" in names[id(p)] for p in groups["bn"]["params"])
    assert sum(len(group["params"]) for group in groups.values()) == len(names)
    assert groups["weight"]["nesterov"]


def test_auto_chooses_as_ultralytics(tmp_path):
    lit = _lit()
    trainer = _trainer(tmp_path, limit_train_batches=1, limit_val_batches=0)
    trainer.fit(lit, _data())

    assert type(trainer.optimizers[0]) is torch.optim.AdamW
    assert trainer.optimizers[0].param_groups[0]["initial_lr"] == pytest.approx(round(0.002 * 5 / 14, 6))


def test_warmup_and_accumulation(tmp_path):
    lit = _lit(optimizer="SGD", lr0=0.01, lrf=0.1, nbs=4, warmup_epochs=1, warmup_bias_lr=0.1, warmup_momentum=0.8)
    seen, cleared = [], []

    def note(*_):
        groups = {group["param_group"]: group for group in trainer.optimizers[0].param_groups}
        cleared.append(lit.model.model[0].conv.weight.grad is None)
        seen.append((groups["weight"]["lr"], groups["bias"]["lr"], groups["bn"]["momentum"], trainer.global_step))

    # Not at the end of a batch: after the last one of an epoch the next epoch's rate is set already.
    lit.on_before_backward = note
    trainer = _trainer(tmp_path, limit_val_batches=0)
    trainer.fit(lit, _data())

    weight, bias, momentum, steps = zip(*seen, strict=True)
    end = 0.01 * 0.55
    assert weight == pytest.approx([0, 0.0025, 0.005, 0.0075, end, end, end, end])
    assert bias == pytest.approx([0.1, 0.0775, 0.055, 0.0325, end, end, end, end])
    assert momentum == pytest.approx([0.8, 0.83425, 0.8685, 0.90275, *[0.937] * 4])
    # One batch a step at first; from the middle of the warm-up on two, as `nbs` says.
    assert steps == (0, 1, 2, 2, 3, 3, 4, 4)
    # The second batch of a step adds its gradients to those of the first.
    assert cleared == [True, True, True, False, True, False, True, False]
    assert trainer.global_step == 5
    assert trainer.accumulate_grad_batches == 1


def test_frozen_layers_stay(tmp_path):
    lit = _lit(freeze=2)
    before = copy.deepcopy(lit.model.state_dict())
    _trainer(tmp_path, limit_val_batches=0).fit(lit, _data())

    after = lit.model.state_dict()
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed
    assert not {name for name in changed if name.startswith(("model.0.", "model.1.")) or ".dfl" in name}


def test_gains_weigh_the_loss(batch):
    losses, first = [], _lit()
    for gain in (7.5, 15.0):
        lit = _lit(box=gain)
        lit.model.load_state_dict(first.model.state_dict())
        losses.append(lit.model.loss(batch)[0].detach())
    torch.testing.assert_close(losses[1], losses[0] * torch.tensor([2.0, 1.0, 1.0]))


def test_the_average_is_pruned_validated_and_saved(tmp_path):
    lit = _lit(optimizer="SGD", lr0=0.01)
    pruning = ChannelPruning(amount=0.3, epochs=1, round_to=8)
    trainer = _trainer(tmp_path, callbacks=[pruning], max_epochs=3)
    validated, live = [], []
    lit.on_train_epoch_end = lambda: live.append(copy.deepcopy(lit.model.state_dict()))
    evaluate = lit.validation_step

    def validation_step(batch, batch_idx=0):
        validated.append(copy.deepcopy(lit.model.state_dict()))
        evaluate(batch, batch_idx)

    lit.validation_step = validation_step
    trainer.fit(lit, _data())
    trainer.save_checkpoint(tmp_path / "net.ckpt")

    average = next(c for c in trainer.callbacks if isinstance(c, MovingAverage))._average_model.module
    shapes = [parameter.shape for parameter in lit.model.parameters()]
    assert [parameter.shape for parameter in average.model.parameters()] == shapes
    assert lit.model.model[0].conv.out_channels < 16
    assert not torch.equal(validated[-1]["model.0.conv.weight"], live[-1]["model.0.conv.weight"])
    loaded = LitYOLO.load_from_checkpoint(tmp_path / "net.ckpt", map_location="cpu")
    for mine, theirs in itertools.zip_longest(loaded.model.parameters(), average.model.parameters()):
        assert torch.equal(mine, theirs)


def test_a_run_goes_on_from_its_checkpoint(tmp_path):
    _trainer(tmp_path, max_epochs=1, enable_checkpointing=True).fit(_lit(), _data())
    (path,) = tmp_path.rglob("*.ckpt")
    lit = _lit()
    trainer = _trainer(tmp_path, max_epochs=2)
    trainer.fit(lit, _data(), ckpt_path=path)

    average = next(c for c in trainer.callbacks if isinstance(c, MovingAverage))._average_model
    assert int(average.n_averaged) == trainer.global_step


def test_settings_come_from_args_yaml_and_stay_in_the_checkpoint(tmp_path):
    from ultralytics.utils import YAML

    YAML.save(tmp_path / "args.yaml", vars(get_cfg(overrides={"box": 3.0})))
    lit = LitYOLO("yolov8n.yaml", num_classes=10, hyperparameters=str(tmp_path / "args.yaml"))
    assert lit.model.args.box == lit.hparams["hyperparameters"]["box"] == 3.0


@pytest.mark.parametrize("wrong", [{"cls_pw": 0.5}, {"no_such": 1}])
def test_wrong_settings_are_named(wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        _lit(**wrong)


def test_nothing_left_to_learn():
    with pytest.raises(ValueError, match="freeze=30 leaves no layer"):
        Recipe(get_cfg(overrides={"freeze": 30})).freeze_(LitYOLO("yolov8n.yaml", num_classes=10).model)


@pytest.mark.parametrize(
    ("options", "message"),
    [({"accumulate_grad_batches": 2}, "nbs"), ({"max_epochs": -1, "max_steps": 2}, "max_epochs")],
)
def test_a_trainer_that_does_not_fit_is_refused(tmp_path, options, message):
    with pytest.raises(ValueError, match=message):
        _trainer(tmp_path, **options).fit(_lit(), _data())
