"""Weights kept under other names are cut with those that they belong to, or refused before training begins."""

import copy

import lightning.pytorch as pl
import pytest
import torch
from torch import nn

from lit_prune import ChannelPruning
from lit_prune.errors import UnsupportedError
from lit_prune.training.kept_weights import named_after
from tests.toys import Classifier, loader, network, trainer, widths


def pruning(epochs=(1, 2), **options):
    return ChannelPruning(0.5, [*epochs], **{"verbose": False, **options})


class Elastic(Classifier):
    """Pulls its weights toward what they were; where they are kept, a subclass says."""

    def __init__(self):
        super().__init__()
        self.keep()

    def training_step(self, batch, batch_idx):
        pull = sum((p - self.old(name)).square().sum() for name, p in self.net.named_parameters())
        return super().training_step(batch, batch_idx) + 0.01 * pull


class Buffers(Elastic):
    form = "{}_mean"

    def keep(self):
        for name, parameter in self.net.named_parameters():
            self.register_buffer(self.form.format(name.replace(".", "__")), parameter.detach().clone())

    def old(self, name):
        return getattr(self, self.form.format(name.replace(".", "__")))


class Prefixed(Buffers):
    form = "net_{}_old"


class InATask(Elastic):
    def keep(self):
        self.tasks = [{"mean": {name: p.detach().clone() for name, p in self.net.named_parameters()}}]

    def old(self, name):
        return self.tasks[0]["mean"][name]


class OnlyMatrices(Elastic):
    def keep(self):
        self.kept = {name: p.detach().clone() for name, p in self.net.named_parameters() if p.dim() > 1}

    def old(self, name):
        return self.kept.get(name, torch.zeros(()))


class Numbered(Elastic):
    def keep(self):
        self.numbers = {name: number for number, (name, _) in enumerate(self.net.named_parameters())}
        for number, parameter in enumerate(self.net.parameters()):
            self.register_buffer(f"old_{number}", parameter.detach().clone())

    def old(self, name):
        return getattr(self, f"old_{self.numbers[name]}")


class Unread(Numbered):
    """Reads what it has kept between its steps, where nothing shows it."""

    training_step = Classifier.training_step


class Renamed(Unread):
    def keep(self):
        self.kept = {f"old {name}": p.detach().clone() for name, p in self.net.named_parameters()}

    def old(self, name):
        return self.kept[f"old {name}"]


def by_hand(value, cut):
    for dim, kept in cut.items():
        value = value[(slice(None),) * dim + (kept,)]
    return value


@pytest.mark.parametrize("kind", [Buffers, Prefixed, InATask, OnlyMatrices, Numbered])
def test_they_keep_the_channels_that_their_weights_keep(kind):
    torch.manual_seed(0)
    module, callback = kind(), pruning()
    before = {name: module.old(name).clone() for name, _ in module.net.named_parameters()}
    trainer(callback).fit(module, loader())
    assert module.net[2][0].weight.shape == (16, 8, 3, 3)
    for name, old in before.items():
        assert torch.equal(
            module.old(name), by_hand(old, callback.plan.kept.get(f"net.{name}", {}) if old.dim() else {})
        )


def test_a_resumed_run_has_them_too(tmp_path):
    module, run = Buffers(), trainer(pruning(), max_epochs=3)
    run.fit(module, loader())
    run.save_checkpoint(tmp_path / "x.ckpt")
    again = Buffers()
    trainer(pruning(), max_epochs=4).fit(again, loader(), ckpt_path=tmp_path / "x.ckpt")
    assert all(again.old(name).shape == p.shape for name, p in again.net.named_parameters())


@pytest.mark.parametrize(
    ("kind", "place"),
    [
        (Unread, r"old_\d+ has the shape"),
        (Renamed, r"Renamed.kept\['old 0.0.weight'\] has the shape \(16, 3, 3, 3\)"),
    ],
)
def test_what_cannot_be_told_is_refused_before_the_first_step(kind, place):
    module = kind()
    with pytest.raises(UnsupportedError, match=f"{place}.*of net.*`named_parameters"):
        trainer(pruning()).fit(module, loader())
    assert widths(module) == widths(kind())
    assert len(module.losses) <= 1


def test_a_run_that_goes_on_after_errors_stays_as_it_was():
    module = Renamed()
    with pytest.warns(UserWarning, match="Renamed.kept"):
        trainer(pruning(on_error="continue")).fit(module, loader())
    assert widths(module) == widths(Renamed())


def test_what_only_has_the_shape_of_a_matrix_is_no_copy():
    class Remembers(Classifier):
        def on_train_batch_end(self, outputs, batch, batch_idx):
            self.last = torch.zeros(4, 32)

    module = Remembers()
    trainer(pruning()).fit(module, loader())
    assert module.net[3][2].weight.shape == (4, 16)


class Momentum(Classifier):
    """A momentum encoder beside the encoder, inside of a module of its own."""

    def __init__(self):
        super().__init__()
        encoder = self.net
        self.net = nn.Module()
        self.net.query, self.net.key = encoder, copy.deepcopy(encoder).requires_grad_(False)

    def forward(self, x):
        return self.net.query(x)

    def on_train_batch_end(self, *args):
        with torch.no_grad():
            for key, query in zip(self.net.key.parameters(), self.net.query.parameters(), strict=True):
                key.lerp_(query, 0.1)


def test_a_momentum_encoder_within_a_module_loses_the_same_channels():
    module, callback = Momentum(), pruning()
    trainer(callback).fit(module, loader())
    kept = callback.plan.kept
    assert module.net.key[2][0].weight.shape == (16, 8, 3, 3)
    for name in [name for name in kept if name.startswith("net.query.")]:
        torch.testing.assert_close(dict(kept[name]), dict(kept[name.replace("query", "key")]), rtol=0, atol=0)


def test_blocks_of_a_sequence_are_no_copies_of_each_other():
    class Frozen(Classifier):
        def __init__(self):
            super().__init__()
            self.net = nn.Sequential(*network()[:2], copy.deepcopy(network()[1]), *network()[2:])
            self.net[1].requires_grad_(False)

    module = Frozen()
    trainer(pruning()).fit(module, loader())
    assert module.net[1].conv.weight.shape == module.net[2].conv.weight.shape


def test_of_a_callback_a_history_stays_as_it_was():
    class History(pl.Callback):
        def __init__(self):
            self.seen = []

        def on_train_epoch_start(self, trainer, pl_module):
            self.seen.append({name: p.detach().clone() for name, p in pl_module.named_parameters()})

    module, history = Classifier(), History()
    trainer(history, pruning()).fit(module, loader())
    assert [len(each["net.0.0.weight"]) for each in history.seen] == [16, 16, 16, 8]


def test_the_longest_name_wins_and_a_tie_tells_nothing():
    net = nn.ModuleDict({"1": nn.Linear(2, 2), "11": nn.Linear(2, 2)})
    net.register_buffer("11_weight", torch.zeros(2, 2))
    net.register_buffer("1_weight_old", torch.zeros(2, 2))
    net.register_buffer("weight", torch.zeros(2, 2))
    assert named_after(net) == {"11_weight": "11.weight", "1_weight_old": "1.weight"}
