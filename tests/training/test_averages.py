"""Averages shrink in step, however a training keeps them; what is no average stays as it is."""

import copy

import lightning.pytorch as pl
import pytest
import torch
from lightning.pytorch.callbacks import BackboneFinetuning, ModelCheckpoint
from timm.utils import ModelEmaV3
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from lit_prune import ChannelPruning
from lit_prune.training.recovery import Recovery
from tests.toys import Classifier, loader, network, trainer, widths

NARROW = (16, 8, 3, 3)


def pruning(epochs=(1, 2), **options):
    return ChannelPruning(0.5, list(epochs), verbose=False, **options)


def blend(average, weights):
    with torch.no_grad():
        for mine, theirs in zip(average, weights, strict=True):
            mine.lerp_(theirs.detach(), 0.3)


# --- beside the module ------------------------------------------------------------------------------------------------


class Beside(pl.Callback):
    """An average as users write it: ``make`` makes it, ``all`` are its tensors."""

    def on_fit_start(self, trainer, pl_module):
        self.make(pl_module)

    def on_train_batch_end(self, trainer, pl_module, *_):
        blend(self.all(), pl_module.parameters())


class CopyOfTheNetwork(Beside):
    def make(self, module):
        self.ema = copy.deepcopy(module.net)

    def all(self):
        return list(self.ema.parameters())


class CopyOfTheModule(CopyOfTheNetwork):
    def make(self, module):
        self.ema = copy.deepcopy(module)


class CopyBeforeWeightsAreLoaded(CopyOfTheModule):
    def setup(self, trainer, pl_module, stage):
        self.make(pl_module)

    def on_fit_start(self, trainer, pl_module):
        pass


class Wrapped(CopyOfTheNetwork):
    def make(self, module):
        self.wrapper = AveragedModel(module.net)
        self.ema = self.wrapper.module


class Shadow(Beside):
    def make(self, module):
        self.shadow = {name: parameter.detach().clone() for name, parameter in module.named_parameters()}

    def all(self):
        return list(self.shadow.values())


class StateOfTheNetwork(Beside):
    def make(self, module):
        self.names = [name for name, _ in module.net.named_parameters()]
        self.shadow = {name: tensor.clone() for name, tensor in module.net.state_dict().items()}

    def all(self):
        return [self.shadow[name] for name in self.names]


class ListOfTensors(Beside):
    def make(self, module):
        self.average = [parameter.detach().clone() for parameter in module.parameters()]

    def all(self):
        return self.average


class Helper:
    def __init__(self, module):
        self.shadow = {name: parameter.detach().clone() for name, parameter in module.named_parameters()}


class WithinAnObject(Beside):
    def make(self, module):
        self.helper = Helper(module)

    def all(self):
        return list(self.helper.shadow.values())


BESIDE = [
    CopyOfTheNetwork,
    CopyOfTheModule,
    CopyBeforeWeightsAreLoaded,
    Wrapped,
    Shadow,
    StateOfTheNetwork,
    ListOfTensors,
    WithinAnObject,
]


class Compare(pl.Callback):
    """What an average was before an event, cut by hand, is what it is after it."""

    def __init__(self, average, callback):
        self.average, self.callback, self.compared = average, callback, 0

    def on_train_epoch_end(self, trainer, pl_module):
        # A list of the tensors themselves would be taken for one more average.
        self.old = [(tensor.detach().clone(), None) for tensor in self.average.all()]
        self.kept = self.callback.plan.kept

    def on_train_epoch_start(self, trainer, pl_module):
        if trainer.current_epoch in (1, 2):
            plan = self.callback.plan
            names = [name for name, _ in pl_module.named_parameters()]
            for name, (old, _), new in zip(names, self.old, self.average.all(), strict=True):
                expected = old
                for dim, kept in plan.kept.get(name, {}).items():
                    before = self.kept.get(name, {}).get(dim, torch.arange(plan.sizes[name][dim]))
                    expected = expected.index_select(dim, torch.isin(before, kept).nonzero().flatten())
                assert torch.equal(expected, new)
            self.compared += 1


@pytest.mark.parametrize("kind", BESIDE)
def test_an_average_that_a_user_keeps_shrinks_in_step(kind):
    module, average, callback = Classifier(), kind(), pruning()
    compare = Compare(average, callback)
    trainer(average, callback, compare).fit(module, loader())
    assert compare.compared == 2
    assert widths(module)["net.2.0.weight"] == NARROW


@pytest.mark.parametrize("kind", [CopyOfTheNetwork, Shadow])
def test_either_order(kind):
    module, average = Classifier(), kind()
    trainer(pruning(), average).fit(module, loader())
    assert [tuple(tensor.shape) for tensor in average.all()] == [*widths(module).values()]


def test_two_averages_of_one_class():
    slow, fast, module = CopyOfTheNetwork(), CopyOfTheNetwork(), Classifier()
    trainer(slow, fast, pruning()).fit(module, loader())
    assert widths(slow.ema) == widths(fast.ema) == widths(module.net)


@pytest.mark.parametrize("kind", [CopyOfTheNetwork, CopyBeforeWeightsAreLoaded, Shadow])
def test_a_resumed_run_knows_them_before_it_has_taken_a_step(kind, tmp_path):
    def fit(*callbacks, **options):
        average, module = kind(), Classifier()
        run = trainer(average, pruning(), *callbacks, enable_checkpointing=bool(callbacks))
        run.fit(module, loader(), **options)
        assert widths(module)["net.2.0.weight"] == NARROW
        assert [tuple(tensor.shape) for tensor in average.all()] == [*widths(module).values()]

    fit(ModelCheckpoint(tmp_path, filename="{epoch}", save_top_k=-1))
    for epoch in range(3):
        fit(ckpt_path=tmp_path / f"epoch={epoch}.ckpt")


@pytest.mark.parametrize("kind", [CopyOfTheNetwork, Shadow])
def test_what_is_taken_back_is_taken_back_in_the_average(kind):
    class Scored(Classifier):
        def on_validation_epoch_end(self):
            self.log("score", 1.0 if self.trainer.current_epoch < 1 else 0.1)

    module, average = Scored(), kind()
    recovery = Recovery(max_drop=0.1, monitor="score")
    with pytest.warns(UserWarning, match="taken back"):
        trainer(average, pruning([1], recovery=recovery), max_epochs=3).fit(module, loader(), loader())
    assert widths(module) == widths(Classifier())
    assert [tuple(tensor.shape) for tensor in average.all()] == [*widths(module).values()]


# --- within the module ------------------------------------------------------------------------------------------------


class FixedTeacher(Classifier):
    def __init__(self):
        super().__init__()
        self.teacher = copy.deepcopy(self.net).requires_grad_(False)

    def training_step(self, batch, batch_idx):
        with torch.no_grad():
            taught = self.teacher(batch[0])
        return super().training_step(batch, batch_idx) + (self.net(batch[0]) - taught).square().mean()

    def configure_optimizers(self):
        return torch.optim.SGD(self.net.parameters(), lr=0.05, momentum=0.9)


class MeanTeacher(FixedTeacher):
    def on_train_batch_end(self, *_):
        blend(self.teacher.parameters(), self.net.parameters())


class Averaged(Classifier):
    def __init__(self):
        super().__init__()
        self.teacher = AveragedModel(self.net, multi_avg_fn=get_ema_multi_avg_fn(0.9))

    def on_train_batch_end(self, *_):
        self.teacher.update_parameters(self.net)

    def validation_step(self, batch, batch_idx):
        self.log("val_loss", nn.functional.cross_entropy(self.teacher(batch[0]), batch[1]))


class OfTimm(Classifier):
    def __init__(self):
        super().__init__()
        self.teacher = ModelEmaV3(self.net, decay=0.9)

    def on_train_batch_end(self, *_):
        self.teacher.update(self.net)


@pytest.mark.parametrize("kind", [MeanTeacher, Averaged, OfTimm])
def test_an_average_within_the_module_loses_the_same_channels(kind, tmp_path):
    def fit(*callbacks, **options):
        torch.manual_seed(0)
        module, callback = kind(), pruning()
        trainer(callback, *callbacks, enable_checkpointing=bool(callbacks)).fit(module, loader(), loader(), **options)
        return module, callback.plan.kept

    module, kept = fit(ModelCheckpoint(tmp_path, filename="{epoch}", save_top_k=-1))
    inner = "teacher." if kind is MeanTeacher else "teacher.module."
    assert widths(module)["net.2.0.weight"] == widths(module)[f"{inner}2.0.weight"] == NARROW
    for name in [name for name in kept if name.startswith("net.")]:
        torch.testing.assert_close(kept[inner + name.removeprefix("net.")], kept[name], rtol=0, atol=0)
    for epoch in range(3):
        resumed, _ = fit(ckpt_path=tmp_path / f"epoch={epoch}.ckpt")
        torch.testing.assert_close(dict(resumed.state_dict()), dict(module.state_dict()), rtol=0, atol=0)


# --- what is no average -----------------------------------------------------------------------------------------------


def test_a_fixed_teacher_stays_as_it_is():
    module, callback = FixedTeacher(), pruning()
    before = {name: parameter.clone() for name, parameter in module.teacher.named_parameters()}
    trainer(callback).fit(module, loader())
    assert all(torch.equal(before[name], parameter) for name, parameter in module.teacher.named_parameters())
    assert widths(module)["net.2.0.weight"] == NARROW
    assert callback.events[0]["skipped"]["teacher.2.0"] == "is not trained (requires_grad=False)"


def test_a_fixed_teacher_beside_the_module_stays_as_it_is():
    class Distillation(pl.Callback):
        def setup(self, trainer, pl_module, stage):
            self.teacher = copy.deepcopy(pl_module.net)

    module, distillation = Classifier(), Distillation()
    trainer(distillation, pruning()).fit(module, loader())
    assert widths(distillation.teacher) == widths(network())
    assert widths(module)["net.2.0.weight"] == NARROW


def test_what_has_had_no_chance_to_change_stays_with_a_warning():
    module = FixedTeacher()
    module.example_input_array = torch.zeros(1, 3, 8, 8)
    with pytest.warns(UserWarning, match="teacher has the same layers .* wrap it in torch.optim.swa_utils.Averaged"):
        trainer(pruning([0]), max_epochs=1).fit(module, loader())
    assert widths(module)["teacher.2.0.weight"] == (32, 16, 3, 3)


def test_a_network_that_a_loss_looks_through_stays_as_it_is():
    class Perceptual(Classifier):
        def __init__(self):
            super().__init__()
            self.features = network(32).requires_grad_(False)

        def training_step(self, batch, batch_idx):
            return super().training_step(batch, batch_idx) + self.features(batch[0]).square().mean()

    module = Perceptual()
    trainer(pruning()).fit(module, loader())
    assert widths(module)["features.2.0.weight"] == (64, 32, 3, 3)
    assert widths(module)["net.2.0.weight"] == NARROW


def test_layers_that_are_trained_only_later_are_pruned_then():
    class Finetuned(Classifier):
        def __init__(self):
            super().__init__()
            whole = network()
            self.net, self.backbone = (
                nn.Sequential(*whole[2:]),
                nn.Sequential(nn.Conv2d(3, 16, 1), nn.ReLU(), *whole[:2]),
            )
            self.backbone[2][0] = nn.Conv2d(16, 16, 3, padding=1)

        def forward(self, x):
            return self.net(self.backbone(x))

        def configure_optimizers(self):
            return torch.optim.SGD(self.net.parameters(), lr=0.05, momentum=0.9)

    module, callback = Finetuned(), pruning([1, 3])
    trainer(callback, BackboneFinetuning(2, verbose=False)).fit(module, loader())
    assert [event["channels"].get("backbone.0") for event in callback.events] == [None, [16, 8]]
