"""Whole steps: what only they show is seen, and seeing it changes nothing."""

import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import nn
from torch.nn import functional as F

from lit_prune import ChannelPruning
from lit_prune.graph.outputs import left_in_attributes
from tests.toys import Classifier, loader, network, trainer
from tests.training.setups import SETUPS, Setup, block


def pruning(epochs=1, **options):
    return ChannelPruning(0.5, epochs, **{"verbose": False, "round_to": 4, **options})


def fit(module, *callbacks, epochs=2, **options):
    run = trainer(*callbacks, max_epochs=epochs, limit_val_batches=1, num_sanity_val_steps=0, **options)
    run.fit(module, loader(), loader())
    return run


def made(kind):
    torch.manual_seed(0)
    return kind()


@pytest.mark.parametrize("name", SETUPS)
def test_what_a_step_does_is_seen(name):
    kind, cut, whole = SETUPS[name]
    module, callback = made(kind), pruning()
    fit(module, callback)
    assert len(callback.events) == 1
    tensors = dict(module.named_parameters())
    for tensor, size in cut.items():
        assert tensors[tensor].shape[0] < dict(made(kind).named_parameters())[tensor].shape[0], tensor
        assert tensors[tensor].shape[0] == size, tensor
    for tensor, size in whole.items():
        assert tensors[tensor].shape[0] == size, tensor


@pytest.mark.parametrize("name", SETUPS)
def test_seeing_a_step_changes_nothing(name):
    kind = SETUPS[name][0]
    plain, watched = made(kind), made(kind)
    fit(plain)
    fit(watched, pruning(2), epochs=3)
    assert watched.losses[: len(plain.losses)] == plain.losses


@pytest.mark.parametrize("name", SETUPS)
def test_a_resumed_run_equals_an_uninterrupted_one(name, tmp_path):
    kind = SETUPS[name][0]
    whole, resumed = pruning([1, 3]), pruning([1, 3])
    module, again = made(kind), made(kind)
    saver = ModelCheckpoint(tmp_path, filename="{epoch}", save_top_k=-1)
    fit(module, whole, saver, epochs=4, enable_checkpointing=True)
    # Between its events: the second goes by what the first part of the run has seen.
    run = trainer(resumed, max_epochs=4, limit_val_batches=1, num_sanity_val_steps=0)
    run.fit(again, loader(), loader(), ckpt_path=tmp_path / "epoch=1.ckpt")
    assert len(whole.events) == 2
    assert resumed.plan.digest == whole.plan.digest
    for (key, expected), value in zip(module.state_dict().items(), again.state_dict().values(), strict=True):
        assert torch.equal(expected, value), key


class Loss(Setup):
    """One hidden layer, and a step that does something with it."""

    def __init__(self, use):
        super().__init__()
        self.first, self.second = block(3, 16), block(16, 16)
        self.last = nn.Conv2d(16, 4, 1)
        self.use = use

    def training_step(self, batch, batch_idx):
        features = self.first(batch[0])
        logits = self.last(self.second(features)).mean((2, 3))
        return F.cross_entropy(logits, batch[1]) + self.use(self, features, batch)


HOLDING = {
    "mean of the channels": lambda module, features, batch: features.mean(1).square().sum(),
    "mean": lambda module, features, batch: features.square().mean(),
    "target": lambda module, features, batch: F.l1_loss(features.mean((2, 3)), torch.zeros(len(batch[0]), 16)),
    "contrast": lambda module, features, batch: F.softmax(features.mean((2, 3)), 1).max(1).values.mean(),
    "index": lambda module, features, batch: features[:, 3].mean(),
    "number": lambda module, features, batch: (features / features.shape[1]).mean(),
}


@pytest.mark.parametrize("name", HOLDING)
def test_features_that_a_loss_takes_stay(name):
    module, callback = Loss(HOLDING[name]), pruning()
    fit(module, callback)
    assert module.first[0].weight.shape[0] == 16
    assert callback.events, "the other layer is pruned"
    reason = callback.pruner.sight.graph.unprunable["first.0"]
    assert "training step" in reason or "number that depends on a width" in reason


def test_how_many_a_loss_picks_is_no_width():
    """A narrower network rounds otherwise than a masked one, and another number of boxes may be matched."""
    draws = torch.Generator().manual_seed(0)

    def loss(module, features, batch):
        x = module.second(features).permute(0, 2, 3, 1)
        boxes = x.view(*x.shape[:3], 4, 4).softmax(4)
        picked = x[torch.rand(x.shape[:3], generator=draws) > 0.5]
        return boxes.mean() + picked.view(-1, 4).softmax(1)[:, 0].sum()

    module, callback = Loss(loss), pruning()
    fit(module, callback)
    assert module.first[0].weight.shape[0] == 8


def test_features_that_only_pass_through_go():
    module, callback = Loss(lambda module, features, batch: module.second(features.detach()).sum() * 0), pruning()
    fit(module, callback)
    assert module.first[0].weight.shape[0] == 8


PENALTIES = {
    "sparsity": lambda module, features, batch: module.first[1].weight.abs().sum(),
    "decay": lambda module, features, batch: sum(p.square().sum() for p in module.parameters()),
    "orthogonal": lambda module, features, batch: _orthogonal(module.second[0].weight.flatten(1)),
}


def _orthogonal(weight):
    return (weight @ weight.T - torch.eye(len(weight))).square().mean()


@pytest.mark.parametrize("name", PENALTIES)
def test_terms_of_weights_alone_hold_nothing(name):
    module, callback = Loss(PENALTIES[name]), pruning()
    fit(module, callback)
    assert module.first[0].weight.shape[0] == module.second[0].weight.shape[0] == 8


def test_a_step_that_cannot_be_made_again_is_said():
    class Counts(Classifier):
        calls = 0

        def training_step(self, batch, batch_idx):
            type(self).calls += 1
            if type(self).calls in (2, 3, 4, 5):
                raise ValueError("out of data")
            return super().training_step(batch, batch_idx)

    callback = pruning()
    with pytest.warns(UserWarning, match="training step of Counts can't be run on stand-ins: .*out of data"):
        fit(Counts(), callback)
    assert callback.events


def test_state_that_the_next_step_reads_stays():
    class Remembers(Classifier):
        def __init__(self):
            super().__init__()
            self.net, self.before = network(), None
            self.mix = nn.Conv2d(16, 16, 1)

        def forward(self, x):
            x = self.net[0](x)
            if self.before is not None:
                x = x + self.mix(self.before.detach())
            self.before = x
            return self.net[3](self.net[2](self.net[1](x)))

    module, callback = Remembers(), pruning()
    fit(module, callback)
    assert module.net[0][0].weight.shape[0] == 16
    assert module.net[2][0].weight.shape[0] == 16


def test_a_layer_that_no_step_has_used_is_named_before_it_may_break():
    class Spare(Classifier):
        def __init__(self):
            super().__init__()
            self.spare = nn.Conv2d(32, 4, 1)

    with pytest.warns(UserWarning, match=r"spare has taken part in no step so far.*'net\.2\.0' to `exclude`"):
        fit(Spare(), pruning())


def test_layers_may_be_made_in_setup():
    class Late(Classifier):
        def __init__(self):
            super().__init__()
            self.net = None

        def setup(self, stage):
            self.net = self.net or network()

    module, callback = Late(), pruning(blocks=["net.2.*"])
    fit(module, callback)
    assert module.net[2][0].weight.shape[0] == 16


class Helper:
    """Knows the module that it helps."""

    def __init__(self, module):
        self.module, self.notes = module, []


def test_what_a_trainer_holds_is_nothing_that_a_step_leaves():
    """It refers to the batches by which the network was seen; whether they were met was a matter of their order."""

    class Helped(Classifier):
        def training_step(self, batch, batch_idx):
            self.helper = Helper(self._trainer)
            return super().training_step(batch, batch_idx)

    module, callback = Helped(), ChannelPruning(0.5, [1, 2], verbose=False)
    run = trainer(callback)
    run.batch = next(iter(loader()))
    run.fit(module, loader())
    own = {name for name, _ in module.named_buffers()}
    assert {place for place, _ in left_in_attributes(module)} <= own
    assert len(callback.events) == 2


class Scheduled(Classifier):
    """Steps by itself, and reads what its schedule and its optimizer say."""

    def __init__(self):
        super().__init__()
        self.automatic_optimization = False

    def training_step(self, batch, batch_idx):
        optimizer, schedule = self.optimizers(), self.lr_schedulers()
        rate, groups = schedule.get_last_lr()[0], optimizer.state_dict()["param_groups"]
        loss = super().training_step(batch, batch_idx)
        optimizer.zero_grad()
        self.manual_backward(loss * (1 + rate + groups[0]["lr"]))
        optimizer.step()
        schedule.step()

    def configure_optimizers(self):
        optimizer = torch.optim.SGD(self.parameters(), 0.01)
        return [optimizer], [torch.optim.lr_scheduler.StepLR(optimizer, 1)]


def test_what_a_schedule_says_can_be_read():
    module, callback = made(Scheduled), pruning()
    fit(module, callback)
    assert callback.events
    assert callback.pruner.sight.knows_a_step
