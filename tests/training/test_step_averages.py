"""Averages that the training step itself runs (BYOL, MoCo, mean teachers) shrink with what they are averages of."""

import copy

import lightning.pytorch as pl
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import nn
from torch.nn import functional as F

from lit_prune import ArgumentError, ChannelGraph, ChannelPruning, LitPruneError
from lit_prune.graph import Call
from lit_prune.training.averaged_copies import twins_within
from tests.toys import loader, trainer, widths


def encoder():
    parts = [nn.Sequential(nn.Conv2d(a, b, 3, padding=1), nn.BatchNorm2d(b), nn.ReLU()) for a, b in ((3, 16), (16, 32))]
    return nn.Sequential(*parts, nn.AdaptiveAvgPool2d(1), nn.Flatten())


def frozen(module):
    return copy.deepcopy(module).requires_grad_(False)


def blend(*pairs):
    with torch.no_grad():
        for average, weights in pairs:
            for mine, theirs in zip(average.parameters(), weights.parameters(), strict=True):
                mine.lerp_(theirs, 0.1)


class Byol(pl.LightningModule):
    """The target is an average with a projector of its own, a single layer."""

    def __init__(self):
        super().__init__()
        self.encoder, self.projector, self.predictor = encoder(), nn.Linear(32, 16), nn.Linear(16, 16)
        self.target, self.target_projector = frozen(self.encoder), frozen(self.projector)

    def training_step(self, batch, batch_idx):
        with torch.no_grad():
            target = self.target_projector(self.target(batch[0].flip(3)))
        return -F.cosine_similarity(self.predictor(self.projector(self.encoder(batch[0]))), target).mean()

    def on_train_batch_end(self, *_):
        blend((self.target, self.encoder), (self.target_projector, self.projector))

    def configure_optimizers(self):
        trained = [parameter for parameter in self.parameters() if parameter.requires_grad]
        return torch.optim.SGD(trained, lr=0.05, momentum=0.9)


class TargetFirst(Byol):
    """The average is the first in the module, and in the step."""

    def __init__(self):
        super().__init__()
        trained = self.encoder, self.projector, self.predictor
        del self.encoder, self.projector, self.predictor
        self.encoder, self.projector, self.predictor = trained


class BehindAPredictor(Byol):
    """What the average returns is compared with features of its width."""

    def __init__(self):
        super().__init__()
        self.predictor = nn.Linear(32, 32)
        del self.projector, self.target_projector

    def training_step(self, batch, batch_idx):
        features = self.encoder(batch[0])
        with torch.no_grad():
            target = self.target(batch[0])
        return F.mse_loss(self.predictor(features), target) + features.var()

    def on_train_batch_end(self, *_):
        blend((self.target, self.encoder))


class Moco(Byol):
    """The average is made in the step, and fills a queue."""

    def __init__(self):
        super().__init__()
        del self.projector, self.target_projector, self.predictor
        self.register_buffer("queue", F.normalize(torch.randn(32, 64), dim=0))

    def training_step(self, batch, batch_idx):
        blend((self.target, self.encoder))
        queries = F.normalize(self.encoder(batch[0]), dim=1)
        with torch.no_grad():
            keys = F.normalize(self.target(batch[0].flip(3)), dim=1)
        logits = torch.cat([(queries * keys).sum(1, keepdim=True), queries @ self.queue.clone()], 1)
        self.queue[:, : len(keys)] = keys.T
        return F.cross_entropy(logits, torch.zeros(len(logits), dtype=torch.long))

    def on_train_batch_end(self, *_):
        pass


class OfAPart(BehindAPredictor):
    """What it is an average of lies deeper."""

    def __init__(self):
        super().__init__()
        self.model = nn.ModuleDict({"backbone": self.encoder})
        self.encoder = None

    def training_step(self, batch, batch_idx):
        return F.mse_loss(self.predictor(self.model["backbone"](batch[0])), self.target(batch[0]))

    def on_train_batch_end(self, *_):
        blend((self.target, self.model["backbone"]))


class InADict(OfAPart):
    """Both lie in one dict."""

    def __init__(self):
        super().__init__()
        self.model["target"], self.target = self.target, None

    def training_step(self, batch, batch_idx):
        return F.mse_loss(self.predictor(self.model["backbone"](batch[0])), self.model["target"](batch[0]))

    def on_train_batch_end(self, *_):
        blend((self.model["target"], self.model["backbone"]))


def fit(kind, *callbacks, exclude=(), **options):
    torch.manual_seed(0)
    module = kind()
    pruning = ChannelPruning(0.5, [1, 2], round_to=4, verbose=False, exclude=list(exclude))
    trainer(pruning, *callbacks, enable_checkpointing=bool(callbacks)).fit(module, loader(), **options)
    return module, pruning


@pytest.mark.parametrize("kind", [Byol, TargetFirst, BehindAPredictor, Moco, OfAPart, InADict])
def test_what_a_step_compares_shrinks_in_step(kind, tmp_path):
    module, pruning = fit(kind, ModelCheckpoint(tmp_path, filename="{epoch}", save_top_k=-1))
    shapes = widths(module)
    sources = {name: source for name, source in twins_within(module).items() if name in pruning.averages.known}
    assert sources
    for average, source in sources.items():
        mine = {name.removeprefix(average): shape for name, shape in shapes.items() if name.startswith(f"{average}.")}
        assert mine == {name: shapes[source + name] for name in mine}
    (source,) = {place for place in sources.values() if not place.endswith("projector")}
    assert shapes[f"{source}.0.0.weight"][0] == 8
    # Names are those of what is trained, from the first batch on.
    assert all(
        name.startswith((source, "projector", "predictor")) for event in pruning.events for name in event["channels"]
    )
    resumed, _ = fit(kind, ckpt_path=tmp_path / "epoch=1.ckpt")
    torch.testing.assert_close(dict(resumed.state_dict()), dict(module.state_dict()), rtol=0, atol=0)


def test_layers_that_an_average_feeds_are_cut_along():
    shapes = widths(fit(Byol)[0])
    assert shapes["encoder.1.0.weight"] == shapes["target.1.0.weight"] == (16, 8, 3, 3)
    assert shapes["projector.weight"] == shapes["target_projector.weight"] == (16, 16)


@pytest.mark.parametrize("exclude", [["encoder.1.0"], ["target.1.0"], ["target.1.0", "encoder.1.0"]])
def test_an_excluded_average_keeps_what_it_is_an_average_of(exclude):
    shapes = widths(fit(Byol, exclude=exclude)[0])
    assert shapes["encoder.1.0.weight"] == shapes["target.1.0.weight"] == (32, 8, 3, 3)


def test_averages_that_leave_nothing_are_named_after_two_steps():
    with pytest.raises(LitPruneError, match=r"encoder.0.0: target.0.0 is excluded") as caught:
        fit(BehindAPredictor, exclude=["target.*"])
    assert "network is as it was" in str(caught.value)


def test_linear_layers_beside_convolutions_can_be_excluded():
    pruning = fit(Byol, exclude=["projector"])[1]
    assert "projector.weight" in pruning.plan.kept
    with pytest.raises(ArgumentError, match="'project' matches no layer"):
        fit(Byol, exclude=["project"])


def test_of_several_alike_the_nearest_is_the_source():
    module = pl.LightningModule()
    module.first, module.second = nn.Linear(4, 4), nn.Linear(4, 4)
    module.average = frozen(module.second)
    assert twins_within(module) == {"average": "second"}


def test_scores_are_of_what_is_trained():
    module = Byol()
    call = Call("encoder", (torch.rand(2, 3, 8, 8),)), Call("target", (torch.rand(2, 3, 8, 8),))
    graph = ChannelGraph.trace_calls(module, call, {"target.": "encoder."})
    assert [(group.name, group.layers, group.followers) for group in graph.groups] == [
        ("encoder.0.0", ("encoder.0.0",), ("target.0.0",))
    ]
    assert ("target.1.0.weight", 1) in graph["encoder.0.0"].slots
