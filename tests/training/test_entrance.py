"""Calibration batches enter the network as batches do in training, whatever a step does with them."""

import collections
import copy
import dataclasses
import warnings

import lightning.pytorch as pl
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader

from lit_prune import ChannelPruning, plan_pruning, prune_
from lit_prune.activations import CalibrationBatch, read_batch
from lit_prune.schedule import AtSteps
from tests.toys import Classifier, network, trainer
from tests.training.setups import SETUPS, Setup

ITEMS = [
    {"weight": torch.full((3, 8, 8), 0.5) + i % 3, "image": torch.rand(3, 8, 8) + i % 4, "label": i % 4}
    for i in range(32)
]


def repaired(module, *callbacks, items=ITEMS, val=None, criterion="obs", **options):
    torch.manual_seed(0)
    pruning = ChannelPruning(0.5, [2], criterion=criterion, repair=True, round_to=4, verbose=False)
    run = trainer(pruning, *callbacks, max_epochs=3, **options)
    run.fit(module, DataLoader(items, batch_size=8), val)
    return pruning


def same(first, second):
    left, right = first.state_dict(), second.state_dict()
    assert left.keys() == right.keys()
    for name, tensor in left.items():
        assert torch.equal(tensor, right[name]), name


class Taking(Classifier):
    """Takes the right one of two inputs that look alike, and says nothing of it."""

    def forward(self, weight):
        return self.net(weight)

    def training_step(self, batch, batch_idx):
        return F.cross_entropy(self(batch["image"]), batch["label"])


class ByKeyword(Taking):
    def forward(self, *, image, **rest):
        return self.net(image)

    def training_step(self, batch, batch_idx):
        return F.cross_entropy(self(**{name: each for name, each in batch.items() if name != "label"}), batch["label"])


class WholeBatch(Taking):
    def forward(self, batch):
        return self.net(batch["image"])

    def training_step(self, batch, batch_idx):
        return F.cross_entropy(self(batch), batch["label"])


class InItsStep(Taking):
    """Goes past the module's own forward, which takes something else."""

    def forward(self, image, scale):
        return self.net(image * scale)

    def training_step(self, batch, batch_idx):
        return F.cross_entropy(self.net(batch["image"].contiguous(memory_format=torch.channels_last)), batch["label"])


class Preparing(Taking):
    """Makes in its step what enters, and notes things down."""

    def __init__(self):
        super().__init__()
        self.seen = []

    def training_step(self, batch, batch_idx):
        self.seen.append(batch["image"].mean())
        self.log("seen", self.seen[-1])
        return F.cross_entropy(self(100 * batch["image"]), batch["label"])


class Needing(Preparing):
    """Its outputs are others in eval mode."""

    def forward(self, image):
        scores = self.net(image)
        return (scores, scores.flatten()) if self.training else scores

    def training_step(self, batch, batch_idx):
        scores, flat = self(100 * batch["image"])
        assert flat.dim() == 1
        return F.cross_entropy(scores, batch["label"])


def told(kind):
    """The same, whose user says what enters."""

    class Told(kind):
        def calibration_batch(self, batch):
            image = batch["image"]
            if kind in (Preparing, Needing):
                image = 100 * image
            if kind is ByKeyword:
                return CalibrationBatch((), keywords={"weight": batch["weight"], "image": image})
            if kind is InItsStep:
                return CalibrationBatch((image, 1.0))
            return CalibrationBatch((batch,) if kind is WholeBatch else (image,))

    return Told


KINDS = [Taking, ByKeyword, WholeBatch, InItsStep, Preparing, Needing]


@pytest.mark.parametrize("kind", KINDS)
def test_it_is_as_if_the_user_had_said_it(kind):
    modules = []
    for made in (kind, told(kind)):
        torch.manual_seed(1)
        modules.append(made())
        pruning = repaired(modules[-1])
        assert min(after for _, after in pruning.events[0]["repair"].values()) > 0
    if kind is InItsStep:
        # In another memory format rounding is another.
        torch.testing.assert_close(*(dict(module.state_dict()) for module in modules), rtol=1e-3, atol=1e-4)
    else:
        same(*modules)


@pytest.mark.parametrize("kind", [Taking, Preparing])
def test_an_example_of_the_inputs_changes_nothing(kind):
    modules = []
    for example in (None, torch.rand(1, 3, 8, 8)):
        torch.manual_seed(1)
        modules.append(kind())
        modules[-1].example_input_array = example
        assert repaired(modules[-1]).events[0]["repair"]
    same(*modules)


@pytest.mark.parametrize("kind", [Taking, Preparing])
def test_a_resumed_run_knows_how_batches_enter(kind, tmp_path):
    torch.manual_seed(1)
    whole, resumed = kind(), kind()
    saver = ModelCheckpoint(tmp_path, filename="{epoch}", save_top_k=-1)
    repaired(whole, saver, enable_checkpointing=True)
    again = ChannelPruning(0.5, [2], criterion="obs", repair=True, round_to=4, verbose=False)
    trainer(again, max_epochs=3).fit(resumed, DataLoader(ITEMS, batch_size=8), ckpt_path=tmp_path / "epoch=1.ckpt")
    same(whole, resumed)


@pytest.mark.filterwarnings("ignore:The calibration batches have run no layer with the weights of heads.b, heads.c")
@pytest.mark.parametrize("criterion", ["obs", "magnitude"])
@pytest.mark.parametrize("name", SETUPS)
def test_steps_of_several_networks_are_repaired(name, criterion):
    torch.manual_seed(0)
    module = SETUPS[name][0]()
    items = [(torch.randn(3, 8, 8), i % 4) for i in range(32)]
    event = repaired(module, items=items, criterion=criterion, val=DataLoader(items[:8], batch_size=8)).events[0]
    assert event["repair"]
    assert all(after > -0.2 for _, after in event["repair"].values())


@pytest.mark.parametrize("kind", [Preparing, Needing])
def test_steps_that_are_made_for_it_leave_no_trace(kind):
    # Not the callback's: what that keeps under the weights' names is cut with them.
    before_cut = []

    class Looking(ChannelPruning):
        """Looks at the data an epoch before it cuts."""

        def on_train_epoch_start(self, run, module):
            if run.current_epoch == 1:
                self.pruner.evidence(self._host(run))
            if run.current_epoch == 2:
                before_cut.extend((copy.deepcopy(module.state_dict()), list(module.seen)))
            super().on_train_epoch_start(run, module)

    torch.manual_seed(1)
    plain, watched = kind(), kind()
    watched.load_state_dict(plain.state_dict())
    looking = Looking(0.5, [2], criterion="obs", round_to=4, verbose=False)
    for module, callbacks, epochs in ((plain, [], 2), (watched, [looking], 3)):
        trainer(*callbacks, max_epochs=epochs).fit(module, DataLoader(ITEMS, batch_size=8))
    for name, tensor in plain.state_dict().items():
        assert torch.equal(tensor, before_cut[0][name]), name
    assert before_cut[1] == plain.seen


class Random(Setup):
    """A step that draws noise."""

    def __init__(self):
        super().__init__()
        self.net = network()

    def training_step(self, batch, batch_idx):
        return F.cross_entropy(self.net(batch["image"] + torch.randn_like(batch["image"])), batch["label"])


def test_noise_is_the_same_in_both_passes():
    module = Random()
    event = repaired(module, criterion="magnitude").events[0]
    assert min(after for _, after in event["repair"].values()) > 0.5


def test_batches_by_keyword_in_a_loop_of_ones_own():
    torch.manual_seed(0)
    net = ByKeyword()
    other = copy.deepcopy(net.net)
    image = torch.rand(64, 3, 8, 8)
    plan = plan_pruning(net.net, image[:1], amount=0.5, round_to=4)
    prefixed = type(plan)({f"net.{name}": kept for name, kept in plan.kept.items()})
    found = prune_(net, prefixed, data=[{"image": image}])
    expected = prune_(other, plan, data=[image])
    assert found.fits.keys() == {f"net.{name}" for name in expected.fits}
    same(net.net, other)
    assert isinstance(net.net, nn.Sequential)


class Pairs(Classifier):
    """Images and labels, of which the step makes what enters."""

    def training_step(self, batch, batch_idx):
        return F.cross_entropy(self(100 * batch[0]), batch[1])


class Told(Pairs):
    def calibration_batch(self, batch):
        objects = read_batch(batch)
        return dataclasses.replace(objects, inputs=(100 * objects.inputs[0],))


class Parted(Pairs):
    """The same, without a forward, and in parts."""

    forward = pl.LightningModule.forward

    def training_step(self, batch, batch_idx):
        return F.cross_entropy(self.net[3](self.net[:3](100 * batch[0])), batch[1])


def test_classes_are_told_apart_by_what_enters_in_training():
    widths, plans = [], []
    for kind in (Told, Pairs, Parted):
        torch.manual_seed(1)
        module = kind()
        pruning = ChannelPruning(0.5, [2], selection="clusters", round_to=4, verbose=False)
        items = [(item["image"], item["label"]) for item in ITEMS]
        trainer(pruning, max_epochs=3).fit(module, DataLoader(items, batch_size=8))
        widths.append(module.net[0][0].weight.shape[0])
        plans.append(pruning.plan)
    assert widths[0] < 16
    assert plans[0] == plans[1] == plans[2]


class Writing(Pairs):
    """Changes what it is given, and what it keeps; a teacher within follows the network."""

    def __init__(self):
        super().__init__()
        self.teacher = copy.deepcopy(self.net).requires_grad_(False)
        self.frozen = nn.Parameter(torch.zeros(()), requires_grad=False)
        self.mean, self.kept, self.count = torch.zeros(()), [torch.zeros(2)], collections.Counter()
        self.draws = torch.Generator().manual_seed(0)
        self.lowest = []

    def training_step(self, batch, batch_idx):
        label = batch.pop("label")
        images = batch["image"].mul_(10).add_(torch.rand(1, generator=self.draws))
        self.lowest.append(float(images.min()))
        with torch.no_grad():
            self.frozen += 1
            self.mean += 1
            self.kept[0] += 1
            for mine, theirs in zip(self.teacher.parameters(), self.net.parameters(), strict=True):
                mine.data = 0.9 * mine.data + 0.1 * theirs.data
        self.count["steps"] += 1
        scores = self(images)
        return F.cross_entropy(scores, label) + F.mse_loss(scores, self.teacher(images))


class Callbacks(pl.Callback):
    """What a module is before the epoch of the cut."""

    def __init__(self):
        self.seen = []

    def on_train_epoch_start(self, trainer, module):
        if trainer.current_epoch == 2:
            others = module.frozen, module.mean, module.kept[0]
            self.seen = [next(net.parameters()).tolist() for net in (module.net, module.teacher)]
            self.seen += [[float(each.sum()) for each in others], dict(module.count), module.draws.get_state().tolist()]


@pytest.mark.parametrize("options", [{}, {"repair": True, "criterion": "obs"}, {"repair": True}])
def test_what_a_step_writes_is_written_once(options):
    found = []
    for mine in ([], [ChannelPruning(0.5, [2], round_to=4, verbose=False, **options)]):
        torch.manual_seed(1)
        module, before, after = Writing(), Callbacks(), Callbacks()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            trainer(before, *mine, after, max_epochs=3).fit(module, DataLoader(ITEMS, batch_size=8))
        found.append(before.seen)
    assert found[0] == found[1]
    assert after.seen[2:] == before.seen[2:]
    assert module.count == {"steps": 12}
    if "repair" in options:
        shares = mine[0].events[0]["repair"]
        assert not [name for name in shares if name.startswith("teacher")]
        assert shares["net.0.0"] == [1.0, 1.0]


class Helped(Pairs):
    """Has a head for training alone."""

    def __init__(self):
        super().__init__()
        self.helper = nn.Conv2d(32, 4, 3)

    def forward(self, x):
        features = self.net[:3](x)
        scores = self.net[3](features)
        return (scores, self.helper(features).flatten(1)) if self.training else scores

    def training_step(self, batch, batch_idx):
        scores, others = self(batch[0])
        return F.cross_entropy(scores, batch[1]) + F.cross_entropy(others, batch[1])


def test_layers_that_do_not_run_are_named():
    items = [(item["image"], item["label"]) for item in ITEMS]
    with pytest.warns(UserWarning, match="run no layer with the weights of helper .*: these stay as they are sliced"):
        repaired(Helped(), items=items, criterion="magnitude")


class Sized(Pairs):
    """Takes a number that is another for the last batch."""

    def forward(self, x, size):
        return self.net(x.reshape(size, 3, 8, 8))

    def training_step(self, batch, batch_idx):
        return F.cross_entropy(self(batch[0], len(batch[0])), batch[1])


def test_numbers_are_those_of_each_batch():
    items = [(item["image"], item["label"]) for item in ITEMS[:31]]
    assert repaired(Sized(), items=items).events[0]["repair"]


class Skipping(Pairs):
    """Skips its first batches."""

    def training_step(self, batch, batch_idx):
        return None if self.trainer.global_step == 0 and batch_idx < 2 else super().training_step(batch, batch_idx)


class ByItself(Setup):
    """Optimizes by itself, and uses its weights so that nothing is entered."""

    def __init__(self):
        super().__init__()
        self.automatic_optimization = False
        self.first, self.last = nn.Linear(192, 32), nn.Linear(32, 4)

    def training_step(self, batch, batch_idx):
        hidden = F.relu(F.linear(batch[0].flatten(1), self.first.weight, self.first.bias))
        loss = F.cross_entropy(F.linear(hidden, self.last.weight, self.last.bias), batch[1])
        self.optimizers().zero_grad()
        self.manual_backward(loss)
        self.optimizers().step()


def test_a_step_that_enters_no_module_is_seen():
    module = ByItself()
    pruning = ChannelPruning(0.5, [2], round_to=4, verbose=False)
    items = [(item["image"], item["label"]) for item in ITEMS]
    trainer(pruning, max_epochs=3).fit(module, DataLoader(items, batch_size=8))
    assert module.first.weight.shape[0] < 32


@pytest.mark.parametrize("epochs", [[0], [2], AtSteps([1])])
def test_a_step_that_is_skipped_tells_nothing(epochs):
    module = Skipping()
    items = [(item["image"], item["label"]) for item in ITEMS]
    pruning = ChannelPruning(0.5, epochs, repair=True, round_to=4, verbose=False)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "`training_step` returned `None`")
        trainer(pruning, max_epochs=3).fit(module, DataLoader(items, batch_size=8))
    assert pruning.events[0]["repair"]


class Later(Pairs):
    """Prepares its inputs from the second epoch on."""

    def training_step(self, batch, batch_idx):
        scale = 100 if self.current_epoch else 1
        return F.cross_entropy(self(batch[0] if scale == 1 else scale * batch[0]), batch[1])


class ToldLater(Later):
    def calibration_batch(self, batch):
        return CalibrationBatch((100 * batch[0],))


@pytest.mark.parametrize("saved", [None, 0, 1])
def test_later_steps_may_enter_otherwise(saved, tmp_path):
    torch.manual_seed(1)
    module, told = Later(), ToldLater()
    told.load_state_dict(module.state_dict())
    items = [(item["image"], item["label"]) for item in ITEMS]
    saver = ModelCheckpoint(tmp_path, filename="{epoch}", save_top_k=-1)
    for each in (told, module):
        callbacks = [saver] if each is module else []
        torch.manual_seed(0)
        event = repaired(each, *callbacks, items=items, enable_checkpointing=bool(callbacks)).events[0]
        assert event["repair"]["net.0.0"] == [1.0, 1.0]
    if saved is None:
        same(module, told)
        return
    again, pruning = Later(), ChannelPruning(0.5, [2], criterion="obs", repair=True, round_to=4, verbose=False)
    path = tmp_path / f"epoch={saved}.ckpt"
    trainer(pruning, max_epochs=3).fit(again, DataLoader(items, batch_size=8), ckpt_path=path)
    same(module, again)
