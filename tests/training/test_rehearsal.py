"""What can be known on the first batch fails there, by the event's number, and changes nothing."""

import lightning.pytorch as pl
import pytest
import torch
from torch import nn

from lit_prune import ChannelPruning
from lit_prune.activations import Calibration
from lit_prune.criteria import Criterion
from lit_prune.errors import PruningError, RehearsalError, UnsupportedError
from lit_prune.schedule import AtSteps
from lit_prune.select import ClusterSelection, MacsBudget, Selection
from lit_prune.training.recovery import Recovery
from tests.toys import Classifier, loader, trainer, widths


def pruning(amount=0.5, epochs=(2, 3), **options):
    return ChannelPruning(amount, list(epochs), **{"verbose": False, **options})


class WithoutNorms(Classifier):
    def __init__(self, **options):
        super().__init__(**options)
        self.net[0][1], self.net[1].norm, self.net[2][1] = nn.Identity(), nn.Identity(), nn.Identity()


class WithoutForward(Classifier):
    """Its steps call the network that it holds; it has no forward of its own."""

    forward = pl.LightningModule.forward

    def training_step(self, batch, batch_idx):
        loss = nn.functional.cross_entropy(self.net(batch[0]), batch[1])
        self.losses.append(float(loss.detach()))
        return loss

    def validation_step(self, batch, batch_idx):
        self.log("val_loss", nn.functional.cross_entropy(self.net(batch[0]), batch[1]))


class Dicts(Classifier):
    """Batches that no reader knows."""

    def on_before_batch_transfer(self, batch, dataloader_idx):
        return {"x": batch[0], "y": batch[1]}

    def training_step(self, batch, batch_idx):
        return super().training_step((batch["x"], batch["y"]), batch_idx)


class WrongReader(Classifier):
    def calibration_batch(self, batch):
        return batch[0]


class NarrowState(torch.optim.SGD):
    """Keeps something of a shape that nobody can foretell."""

    def step(self, closure=None):
        loss = super().step(closure)
        for group in self.param_groups:
            for parameter in group["params"]:
                self.state[parameter]["sketch"] = torch.zeros(3, 5)
        return loss


class Sketching(Classifier):
    def configure_optimizers(self):
        return NarrowState(self.parameters(), lr=0.05)


class NeedsActivations(Criterion):
    calibration = Calibration(batches=2, batch_size=4)

    def __call__(self, evidence):
        return {group.name: evidence.moments[group.layers[0]].mean.abs().sum(1) for group in evidence.groups}


class OutOfReachLater(Selection):
    def __call__(self, evidence, scores, target):
        if target.ratio > 0.3:
            raise ValueError("more than 0.3 is not to be had")
        return {}


CLUSTERS = {"selection": ClusterSelection(calibration=Calibration(batches=2, batch_size=4))}

CASES = [
    (
        "budget out of reach",
        Classifier,
        {"amount": 0.97, "selection": "macs"},
        r"Event 2 of 2 \(epoch 3\).*out of reach",
    ),
    ("only the last", Classifier, {"selection": OutOfReachLater()}, r"Event 2 of 2 \(epoch 3\).*0.3 is not to be had"),
    ("no BatchNorm", WithoutNorms, {"criterion": "batchnorm"}, "Event 1 of 2.*BatchNormScale can judge none"),
    (
        "no BatchNorm for clusters",
        WithoutNorms,
        {"selection": ClusterSelection(method="max_gamma", calibration=Calibration(batches=2, batch_size=4))},
        "Event 1 of 2.*pass through no BatchNorm",
    ),
    ("unknown batches", Dicts, CLUSTERS, "first batch of calibration data.*dict with x, y is not known"),
    ("wrong reader", WrongReader, CLUSTERS, "WrongReader.calibration_batch must return a .*CalibrationBatch.*Tensor"),
    ("unknown batches, criterion", Dicts, {"criterion": NeedsActivations()}, "first batch of calibration data"),
]


@pytest.mark.parametrize("options", [{}, {"fast_dev_run": True}], ids=["fit", "fast_dev_run"])
@pytest.mark.parametrize(("module", "arguments", "message"), [case[1:] for case in CASES], ids=[c[0] for c in CASES])
def test_it_fails_on_the_first_batch_and_changes_nothing(module, arguments, message, options):
    module = module()
    with pytest.raises(RehearsalError, match=message):
        trainer(pruning(**arguments), **options).fit(module, loader())
    assert len(module.losses) <= 1
    assert widths(module) == widths(type(module)())
    assert not any(child._forward_hooks or child._forward_pre_hooks for child in module.modules())


def test_an_optimizer_that_cannot_follow_is_refused_once_it_has_stepped():
    module = Sketching()
    with pytest.raises(UnsupportedError, match=r"NarrowState keeps 'sketch' of shape \(3, 5\)"):
        trainer(pruning(), accumulate_grad_batches=2).fit(module, loader())
    assert len(module.losses) == 2


def test_what_an_optimizer_holds_from_the_start_is_tried_before_the_first_step():
    class Anchored(Classifier):
        def configure_optimizers(self):
            optimizer = super().configure_optimizers()
            optimizer.anchor = [self.net[0][0].weight.detach().clone()]
            return optimizer

    module = Anchored()
    module.example_input_array = torch.zeros(1, 3, 8, 8)
    with pytest.raises(UnsupportedError, match=r"SGD holds 'anchor\[0\]'"):
        trainer(pruning()).fit(module, loader())
    assert not module.losses


def test_an_optimizer_that_takes_its_first_step_later_is_tried_then():
    class Alternating(Classifier):
        def __init__(self):
            super().__init__()
            self.automatic_optimization = False

        def configure_optimizers(self):
            return torch.optim.SGD(self.net[0].parameters(), 0.1), NarrowState(self.net[1:].parameters(), lr=0.1)

        def training_step(self, batch, batch_idx):
            optimizer = self.optimizers()[batch_idx % 2]
            optimizer.zero_grad()
            self.manual_backward(super().training_step(batch, batch_idx))
            optimizer.step()

    module = Alternating()
    with pytest.raises(UnsupportedError, match="NarrowState keeps 'sketch'"):
        trainer(pruning()).fit(module, loader())
    assert len(module.losses) == 2


@pytest.mark.parametrize("example", [True, False], ids=["example_input_array", "validation step"])
def test_a_sanity_check_is_enough(example):
    module = Classifier()
    if example:
        module.example_input_array = torch.zeros(1, 3, 8, 8)
    with pytest.raises(RehearsalError, match="Event 2 of 2"):
        trainer(pruning(0.97, selection="macs"), num_sanity_val_steps=1).fit(module, loader(), loader())
    assert not module.losses


def test_a_validation_of_something_else_proves_nothing():
    class Teacher(Classifier):
        def __init__(self):
            super().__init__()
            self.teacher = nn.Sequential(nn.Conv2d(3, 2, 8), nn.Flatten())

        def validation_step(self, batch, batch_idx):
            self.teacher(batch[0])

    module, callback = Teacher(), pruning(0.5)
    trainer(callback, num_sanity_val_steps=1).fit(module, loader(), loader())
    assert len(callback.events) == 2


@pytest.mark.parametrize("limits", [{}, {"fast_dev_run": True}], ids=["fit", "fast_dev_run"])
def test_a_metric_that_nobody_logs_is_told_after_the_first_epoch(limits):
    module = Classifier()
    callback = pruning(epochs=[3], recovery=Recovery(max_drop=0.1, monitor="val_los"))
    with pytest.raises(PruningError, match=r"monitor='val_los' is not logged\. Did you mean 'val_loss'"):
        trainer(callback, **limits).fit(module, loader(), loader())
    assert len(module.losses) <= 3


def test_a_metric_of_a_later_validation_is_waited_for():
    callback = pruning(epochs=[3], recovery=Recovery(max_drop=9.0, monitor="val_loss", mode="min"))
    trainer(callback, check_val_every_n_epoch=2).fit(Classifier(), loader(), loader())
    assert len(callback.events) == 1


def test_on_error_continue_warns_and_goes_on():
    module = Classifier()
    callback = pruning(0.97, selection="macs", on_error="continue")
    with pytest.warns(UserWarning, match=r"Event 2 of 2 \(epoch 3\) can't be carried out"):
        trainer(callback).fit(module, loader())
    assert len(module.losses) == 12
    assert [event["epoch"] for event in callback.events] == [2]


def test_layers_that_are_frozen_now_may_be_trained_by_then():
    class Thaws(pl.Callback):
        def on_train_epoch_start(self, trainer, pl_module):
            pl_module.net.requires_grad_(trainer.current_epoch >= 2)
            pl_module.net[3].requires_grad_(True)

    module = Classifier()
    module.net[:3].requires_grad_(False)
    callback = pruning(0.4, selection="macs", epochs=[2])
    with pytest.warns(UserWarning, match="It can be, if the layers that are not trained now are trained by then"):
        trainer(Thaws(), callback).fit(module, loader())
    assert callback.events[0]["macs"][1] <= 0.6 * callback.events[0]["macs"][0]


def test_a_run_that_would_remove_nothing_says_so_at_its_start():
    seen = []

    class First(pl.Callback):
        def on_train_batch_end(self, *_):
            seen.append(1)

    with pytest.warns(UserWarning, match="would remove nothing") as warned:
        trainer(pruning(0.05), First(), fast_dev_run=True).fit(Classifier(), loader())
    assert len(seen) == 1
    assert any("round_to" in str(each.message) for each in warned)


@pytest.mark.parametrize("criterion", ["magnitude", "random"])
def test_a_rehearsal_leaves_no_trace_in_the_training(criterion):
    runs = []
    for callbacks in ([], [pruning(0.5, [3], criterion=criterion, selection=MacsBudget("global"))]):
        torch.manual_seed(3)
        module = Classifier()
        trainer(*callbacks).fit(module, loader(shuffle=True))
        runs.append(module.losses)
    assert runs[0][:9] == runs[1][:9]


def test_clusters_see_a_network_that_is_entered_without_a_forward():
    torch.manual_seed(0)
    module, callback = WithoutForward(), pruning(0.5, [1], round_to=1, **CLUSTERS)
    trainer(callback, max_epochs=2).fit(module, loader())
    assert widths(module)["net.2.0.weight"] == (16, 8, 3, 3)


def test_steps_are_named_by_their_number():
    module = Classifier()
    callback = ChannelPruning(0.97, AtSteps([5, 7]), selection="macs", verbose=False)
    with pytest.raises(RehearsalError, match=r"Event 2 of 2 \(step 7\)"):
        trainer(callback).fit(module, loader())
    assert len(module.losses) == 1


def test_only_what_is_left_is_rehearsed_after_a_resumption(tmp_path):
    saver = pl.callbacks.ModelCheckpoint(tmp_path, filename="{epoch}", save_top_k=-1)
    trainer(pruning(0.5, [1, 3]), saver, enable_checkpointing=True).fit(Classifier(), loader())
    callback = pruning(0.9, [1, 3], selection="macs", round_to=8)
    with pytest.raises(RehearsalError, match=r"Event 2 of 2 \(epoch 3\)"):
        trainer(callback).fit(Classifier(), loader(), ckpt_path=tmp_path / "epoch=1.ckpt")


def test_what_fails_on_the_first_batch_leaves_the_weights_as_they_are():
    module = Dicts()
    before = {name: tensor.clone() for name, tensor in module.state_dict().items() if "running" not in name}
    with pytest.raises(RehearsalError):
        trainer(pruning(**CLUSTERS), fast_dev_run=True).fit(module, loader())
    for name, tensor in before.items():
        if "num_batches" not in name:
            assert torch.equal(module.state_dict()[name], tensor)


@pytest.mark.parametrize("selection", ["macs", "uniform"])
def test_a_network_that_nobody_trains_is_told_by_its_layers(selection):
    module = Classifier()
    module.net[:3].requires_grad_(False)
    reason = r"No layer that may be pruned can lose a channel now: net\.\S+ is not trained \(requires_grad=False\)"
    with pytest.warns(UserWarning, match=reason + r"\. It can be, if the layers that are not trained now"):
        trainer(pruning(epochs=[2], selection=selection), fast_dev_run=True).fit(module, loader())
    with (
        pytest.warns(UserWarning, match=reason),
        pytest.raises(PruningError, match=f"Pruning at epoch 2 failed, .*{reason}"),
    ):
        trainer(pruning(epochs=[2], selection=selection)).fit(module, loader())


def test_a_run_that_goes_on_after_its_last_event_has_no_use_for_another_amount(tmp_path):
    saver = pl.callbacks.ModelCheckpoint(tmp_path, filename="{epoch}", save_top_k=-1)
    trainer(pruning(0.5, [1]), saver, enable_checkpointing=True).fit(Classifier(), loader())
    path = tmp_path / "epoch=2.ckpt"
    with pytest.warns(UserWarning, match="by which 0.5 was to be gone: amount=0.75 changes nothing"):
        trainer(pruning(0.75, [1])).fit(Classifier(), loader(), ckpt_path=path)


@pytest.mark.parametrize("wrong", [True, {"rewarm_steps": 3}, "rewarm", Recovery])
def test_recovery_is_a_recovery(wrong):
    with pytest.raises(TypeError, match="recovery must be a Recovery, such as"):
        pruning(recovery=wrong)


def test_an_event_that_removed_nothing_is_not_taken_back():
    class Falls(Classifier):
        def validation_step(self, batch, batch_idx):
            self.log("score", 1.0 - self.current_epoch)

    callback = pruning(0.5, [1, 3], recovery=Recovery(max_drop=0.1, monitor="score"))
    with pytest.warns(UserWarning, match="taken back") as warned:
        trainer(callback, max_epochs=5).fit(Falls(), loader(), loader())
    assert sum("was taken back" in str(each.message) for each in warned) == 1


class Gated(Classifier):
    """A layer that computes otherwise once it is narrower than 17."""

    class Gate(nn.Module):
        def forward(self, x):
            return 2 * x if x.shape[1] > 16 else x

    def __init__(self):
        super().__init__(width=32)
        self.net[0].append(self.Gate())


@pytest.mark.parametrize(("epochs", "left"), [([1], 32), ([1, 2], 24)])
def test_one_layer_that_cannot_be_narrowed_so_far_does_not_hold_up_the_others(epochs, left):
    module = Gated()
    callback = ChannelPruning(0.5, epochs, selection="uniform", verbose=False)
    with pytest.warns(UserWarning, match=r"net.0.0 can't be narrowed that far: .* depends on a width. It stays as it"):
        trainer(callback).fit(module, loader())
    assert widths(module)["net.0.0.weight"][0] == left
    assert widths(module)["net.2.0.weight"] == (32, left, 3, 3)
    assert "can't be narrowed that far" in callback.events[-1]["skipped"]["net.0.0"]


def test_a_network_of_which_no_layer_can_be_narrowed_so_far_is_refused():
    with pytest.raises(RehearsalError, match="depends on a width"):
        trainer(ChannelPruning(0.5, 1, selection="uniform", blocks=["net.0.*", "net.1.*"], verbose=False)).fit(
            Gated(), loader()
        )
