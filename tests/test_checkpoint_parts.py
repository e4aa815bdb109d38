"""Checkpoints that leave parts out, and layers that stand in several places."""

import copy
import inspect

import pytest
import torch
from lightning.pytorch import Callback, Trainer
from torch import nn

from lit_prune import ChannelPruning
from lit_prune.checkpoint import load_pruned, plan_of
from lit_prune.errors import CheckpointError
from tests.toys import Classifier, loader, network, trainer, widths

_PLAIN = {"weights_only": True} if "weights_only" in inspect.signature(Trainer.fit).parameters else {}


def pruning(epochs=1, **options):
    return ChannelPruning(0.5, epochs, verbose=False, **options)


def save(module, path, epochs=2, callback=None):
    run = trainer(callback or pruning(), max_epochs=epochs)
    run.fit(module, loader())
    run.save_checkpoint(path)
    return torch.load(path, weights_only=True)


def resume(module, path, callback=None, epochs=3):
    trainer(callback or pruning(), max_epochs=epochs).fit(module, loader(), ckpt_path=path, **_PLAIN)
    return module


class Taught(Classifier):
    """Keeps a teacher that follows the network, and does not save it."""

    strict = False
    fill = None

    def __init__(self):
        super().__init__()
        torch.manual_seed(3)
        self.teacher = network().requires_grad_(False)
        if not self.strict:
            self.strict_loading = False

    def on_save_checkpoint(self, checkpoint):
        for name in [*checkpoint["state_dict"]]:
            if name.startswith("teacher."):
                del checkpoint["state_dict"][name]

    def on_train_batch_end(self, *args):
        with torch.no_grad():
            for mine, theirs in zip(self.teacher.parameters(), self.net.parameters(), strict=True):
                mine.lerp_(theirs, 0.1)


class Strict(Taught):
    strict = True


class LoadsItself(Strict):
    def load_state_dict(self, state_dict, strict=True, **options):
        return super().load_state_dict(state_dict, strict=False, **options)


class FillsIn(Strict):
    def on_load_checkpoint(self, checkpoint):
        own = {f"teacher.{name}": value for name, value in self.teacher.state_dict().items()}
        checkpoint["state_dict"].update(own)


class FillsInFromElsewhere(Strict):
    def on_load_checkpoint(self, checkpoint):
        checkpoint["state_dict"].update(dense_teacher())


def dense_teacher():
    torch.manual_seed(3)
    return {f"teacher.{name}": value for name, value in network().state_dict().items()}


def by_hand(value, cut):
    for dim, kept in cut.items():
        value = value[(slice(None),) * dim + (kept,)]
    return value


class Seen(Callback):
    def on_fit_start(self, trainer, pl_module):
        self.state = copy.deepcopy(pl_module.state_dict())


@pytest.mark.parametrize("kind", [Taught, LoadsItself, FillsIn, FillsInFromElsewhere])
def test_a_part_that_the_file_leaves_out_is_cut_by_the_record(kind, tmp_path):
    module = kind()
    module.strict_loading = False
    checkpoint = save(module, tmp_path / "x.ckpt")
    plan, dense = plan_of(checkpoint), dense_teacher()
    assert not any(name.startswith("teacher.") for name in checkpoint["state_dict"])
    wanted = {name: by_hand(value, plan.kept.get(name, {})) for name, value in dense.items()}
    seen = Seen()
    resumed = kind()
    trainer(pruning(), seen, max_epochs=3).fit(resumed, loader(), ckpt_path=tmp_path / "x.ckpt", **_PLAIN)
    loaded = load_pruned(kind, tmp_path / "x.ckpt")
    for state in (seen.state, loaded.state_dict()):
        assert all(torch.equal(state[name], value) for name, value in wanted.items())
        assert all(torch.equal(state[name], value) for name, value in checkpoint["state_dict"].items())
    assert loaded.teacher[2][0].in_channels == loaded.net[2][0].in_channels == 8
    assert widths(resumed) == widths(module)


def test_a_part_that_must_be_there_is_missed(tmp_path):
    save(Taught(), tmp_path / "x.ckpt")
    module = Strict()
    with pytest.raises(CheckpointError, match=r"teacher\..* gone missing"):
        resume(module, tmp_path / "x.ckpt")
    assert widths(module) == widths(Strict())
    with pytest.raises(CheckpointError, match=r"teacher\..* gone missing"):
        load_pruned(Strict, tmp_path / "x.ckpt")
    assert load_pruned(Strict, tmp_path / "x.ckpt", strict=False).teacher[2][0].in_channels == 8


def test_what_is_left_out_of_a_network_pruned_otherwise_is_refused(tmp_path):
    save(Taught(), tmp_path / "x.ckpt")
    module, callback = Taught(), ChannelPruning(0.25, 1, verbose=False)
    trainer(callback, max_epochs=2).fit(module, loader())
    with pytest.raises(CheckpointError, match=r"leaves teacher\..* out, which is pruned .* in another way"):
        resume(module, tmp_path / "x.ckpt", callback)


def test_the_same_run_goes_on_with_its_own_part(tmp_path):
    module, callback = Taught(), pruning()
    save(module, tmp_path / "x.ckpt", callback=callback)
    assert widths(resume(module, tmp_path / "x.ckpt", callback)) == widths(module)


def test_a_buffer_that_is_never_saved_is_cut_by_the_record(tmp_path):
    class Scaled(Classifier):
        def __init__(self):
            super().__init__()
            self.net[0].register_buffer("scale", torch.arange(16.0).reshape(-1, 1, 1), persistent=False)

        def forward(self, x):
            return self.net[1:](self.net[0](x) * self.net[0].scale)

    module = Scaled()
    checkpoint = save(module, tmp_path / "x.ckpt")
    assert "net.0.scale" in plan_of(checkpoint).kept
    assert torch.equal(resume(Scaled(), tmp_path / "x.ckpt").net[0].scale, module.net[0].scale)
    assert torch.equal(load_pruned(Scaled, tmp_path / "x.ckpt").net[0].scale, module.net[0].scale)


class Backbone(Classifier):
    def __init__(self):
        super().__init__()
        self.backbone = self.net[:2]


class BackboneFirst(Classifier):
    def __init__(self):
        super().__init__()
        net = self.net
        del self.net
        self.backbone, self.net = net[2], net


class Tied(Classifier):
    def __init__(self):
        super().__init__()
        self.extra = nn.Conv2d(16, 16, 3, padding=1, bias=False)
        self.extra.weight = self.net[1].conv.weight

    def forward(self, x):
        x = self.net[1](self.net[0](x))
        return self.net[3](self.net[2](x + self.extra(x)))


class Listed(Classifier):
    def __init__(self):
        super().__init__()
        self.layers = nn.ModuleList([self.net[0], self.net[1], self.net[0][1]])


@pytest.mark.parametrize("kind", [Backbone, BackboneFirst, Tied, Listed])
def test_a_layer_under_two_names_is_resumed_and_loaded(kind, tmp_path):
    torch.manual_seed(0)
    module = kind()
    checkpoint = save(module, tmp_path / "x.ckpt")
    loaded = load_pruned(kind, tmp_path / "x.ckpt")
    assert all(torch.equal(loaded.state_dict()[name], value) for name, value in checkpoint["state_dict"].items())
    # As if it had never been interrupted; another event follows.
    torch.manual_seed(0)
    whole = kind()
    trainer(pruning([1, 2]), max_epochs=3).fit(whole, loader())
    torch.manual_seed(0)
    save(kind(), tmp_path / "y.ckpt", callback=pruning([1, 2], on_error="continue"), epochs=3)
    again = resume(kind(), tmp_path / "y.ckpt", pruning([1, 2]), epochs=4)
    assert widths(again) == widths(whole)
    assert widths(module) != widths(kind())


def test_a_network_of_other_widths_is_refused_whichever_name_is_looked_at(tmp_path):
    save(Backbone(), tmp_path / "x.ckpt")
    other = Backbone()
    other.net[0] = nn.Sequential(nn.Conv2d(3, 24, 3, padding=1), nn.BatchNorm2d(24), nn.ReLU())
    other.backbone = other.net[:2]
    with pytest.raises(CheckpointError, match="no pruning on record explains"):
        resume(other, tmp_path / "x.ckpt")


def test_an_average_by_all_names_of_a_state_dict_follows(tmp_path):
    class Averaged(Backbone):
        def __init__(self):
            super().__init__()
            self.ema = {name: value.clone() for name, value in self.state_dict().items()}

    module = Averaged()
    save(module, tmp_path / "x.ckpt")
    assert {name: value.shape for name, value in module.ema.items()} == {
        name: value.shape for name, value in module.state_dict().items()
    }
