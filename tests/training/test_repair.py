"""Events that repair what is left: in the record, in averages, resumed, taken back, and where there is no data."""

import copy

import lightning.pytorch as pl
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import nn
from torch.utils.data import DataLoader

from lit_prune import ArgumentError, ArgumentTypeError, ChannelPruning, Repair
from lit_prune.activations import read_batch
from lit_prune.training.recovery import Recovery
from tests.toys import Classifier, fitted, loader, trainer, widths


def pruning(epochs=(2,), **options):
    return ChannelPruning(0.5, list(epochs), **{"verbose": False, "repair": True, **options})


class Around(pl.Callback):
    """Keeps the network as it is before and after an event, and its answers."""

    def __init__(self):
        self.networks = []

    def on_train_epoch_start(self, trainer, pl_module):
        if trainer.current_epoch == 2:
            self.networks.append(copy.deepcopy(pl_module.net).eval())


def test_right_after_an_event_more_of_the_answers_is_left():
    images = next(iter(loader()))[0]
    # As a step computes them where statistics were measured anew, and as a validation does where they were kept.
    for repair, steps in ((Repair(recalibration=False), False), (True, True)):
        left = []
        for each in (False, repair):
            before, after = Around(), Around()
            callback = pruning(repair=each)
            fitted(before, callback, after)
            with torch.no_grad():
                expected, got = (around.networks[0].train(steps)(images) for around in (before, after))
            left.append(float((got - expected).square().mean()))
            assert bool(callback.events[0]["repair"]) == bool(each)
        assert left[1] < left[0]
        shares = callback.events[0]["repair"]["net.2.0"]
        assert shares[0] < shares[1] <= 1


@pytest.mark.parametrize("precision", ["32-true", "bf16-true", "bf16-mixed"])
def test_a_resumed_run_equals_an_uninterrupted_one(tmp_path, precision):
    saving = ModelCheckpoint(tmp_path, filename="{epoch}", save_top_k=-1)
    module = fitted(pruning([1, 3]), saving, precision=precision)
    for epoch in (0, 1, 2):
        resumed = fitted(pruning([1, 3]), ckpt_path=tmp_path / f"epoch={epoch}.ckpt", precision=precision)
        torch.testing.assert_close(dict(resumed.state_dict()), dict(module.state_dict()), rtol=0, atol=0)


class Average(pl.Callback):
    """An exact copy: what happens to the network happens to it."""

    def setup(self, trainer, pl_module, stage):
        self.ema = torch.optim.swa_utils.AveragedModel(pl_module.net, avg_fn=lambda average, weights, _: weights)
        self.ema.use_buffers = True

    def on_train_batch_end(self, trainer, pl_module, *_):
        self.ema.update_parameters(pl_module.net)


def test_averages_are_repaired_as_the_network_is():
    class Check(pl.Callback):
        def on_train_epoch_start(self, trainer, pl_module):
            if trainer.current_epoch == 2:
                pairs = zip(pl_module.net.parameters(), average.ema.module.parameters(), strict=True)
                self.weights = [(ours.detach().clone(), theirs.detach().clone()) for ours, theirs in pairs]
                self.norms = [
                    average.ema.module[0][1].running_var.clone(),
                    average.ema.module[2][1].running_var.clone(),
                ]

    average, check, unrepaired = Average(), Check(), Check()
    fitted(average, pruning(), check)
    for ours, theirs in check.weights:
        torch.testing.assert_close(ours, theirs)
    average = Average()
    fitted(average, pruning(repair=False), unrepaired)
    # The first norm gets what it got before, so that its statistics stay; those of the last move with what enters.
    torch.testing.assert_close(check.norms[0], unrepaired.norms[0])
    assert not torch.allclose(check.norms[1], unrepaired.norms[1])


def test_what_is_taken_back_is_as_it_was_before_the_repair():
    class Falls(Classifier):
        def on_validation_epoch_end(self):
            self.log("score", 1.0 if self.trainer.current_epoch < 2 else 0.0)

    recovery = Recovery(max_drop=0.1, monitor="score")
    before = Around()
    with pytest.warns(UserWarning, match="was taken back"):
        module = fitted(before, pruning(recovery=recovery), kind=Falls, max_epochs=3)
    for (name, expected), value in zip(
        before.networks[0].state_dict().items(), module.net.state_dict().values(), strict=True
    ):
        assert torch.equal(expected, value), name


def test_without_data_nothing_is_repaired_and_that_is_said():
    class Batches:
        """No DataLoader, of which a part could be taken."""

        def __iter__(self):
            return iter(loader())

    callback = pruning()
    with pytest.warns(UserWarning, match="not repaired. The train data is a Batches, but calibration takes a part of"):
        trainer(callback).fit(Classifier(), Batches())
    assert callback.events[0]["repair"] == {}
    assert callback.events[0]["params"][0] > callback.events[0]["params"][1]


def test_reading_the_data_leaves_random_states_alone():
    class Drawn(pl.Callback):
        def on_train_epoch_start(self, trainer, pl_module):
            if trainer.current_epoch == 2:
                self.state = torch.get_rng_state()

    drawn = []
    for repair in (False, True):
        last = Drawn()
        fitted(pruning(repair=repair), last)
        drawn.append(last.state)
    assert torch.equal(drawn[0], drawn[1])


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: pruning(repair="yes"), ArgumentTypeError, "repair must be True, False or a Repair"),
        (lambda: Repair(rows=0), ArgumentError, "rows"),
        (lambda: Repair(compensation=False, recalibration=False), ArgumentError, "write repair=False"),
    ],
)
def test_other_arguments_are_refused(make, error, message):
    with pytest.raises(error, match=message):
        make()


def test_widths_are_those_of_an_event_without_repair():
    assert widths(fitted(pruning())) == widths(fitted(pruning(repair=False)))


def test_answers_that_are_not_finite_are_not_repaired():
    class Overflows(Classifier):
        def forward(self, x):
            return super().forward(x if self.training else x * float("inf"))

    callback = pruning()
    message = r"not repaired. What enters or leaves net\S+ has values on the calibration batches that are NaN"
    with pytest.warns(UserWarning, match=message):
        fitted(callback, kind=Overflows, limit_val_batches=0)
    assert callback.events[0]["repair"] == {}


class Prepares(Classifier):
    """Its step brings the images of the data set to what the network is made for."""

    def training_step(self, batch, batch_idx):
        return super().training_step([40 * batch[0] + 128, batch[1]], batch_idx)


class Shrinks(Classifier):
    """Its step brings bytes to numbers from 0 to 1."""

    def training_step(self, batch, batch_idx):
        return super().training_step([batch[0] / 255, batch[1]], batch_idx)


def mistaken(kind):
    """The same, whose user says that the network gets what the data set holds."""

    class Mistaken(kind):
        def calibration_batch(self, batch):
            return read_batch(batch)

    return Mistaken


class ShrinksWithoutNorms(Shrinks):
    def __init__(self):
        super().__init__()
        for block in self.net.modules():
            for name, module in block.named_children():
                if isinstance(module, nn.BatchNorm2d):
                    setattr(block, name, nn.Identity())


class ShrinksWithStillNorms(Shrinks):
    def on_train_epoch_start(self):
        for module in self.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.eval()


@pytest.mark.parametrize("kind", [Prepares, Shrinks, ShrinksWithoutNorms, ShrinksWithStillNorms])
def test_images_that_a_step_prepares_are_those_that_a_repair_sees(kind):
    callback = pruning(epochs=(10,))
    fitted(callback, kind=kind, max_epochs=12)
    shares = callback.events[0]["repair"].values()
    assert min(after for _, after in shares) > 0.3


@pytest.mark.parametrize("kind", [ShrinksWithoutNorms, ShrinksWithStillNorms])
def test_images_that_a_step_prepares_are_told_apart_without_norms_in_training_too(kind):
    callback = pruning(epochs=(2,))
    with pytest.warns(UserWarning, match=r"What enters the network on the calibration batches is nothing like"):
        fitted(callback, kind=mistaken(kind), max_epochs=4)
    assert not callback.events[0]["repair"]


def test_images_that_a_step_prepares_are_not_taken_for_what_the_network_gets():
    callback = pruning(epochs=(10,))
    with pytest.warns(
        UserWarning, match=r"not repaired. What enters \S+( \S+)? on the calibration batches is nothing like"
    ):
        module = fitted(callback, kind=mistaken(Prepares), max_epochs=12)
    assert not callback.events[0]["repair"]
    # What enters the first norm is far from what the data set holds, and its statistics have stayed so.
    assert module.net[0][1].running_mean.abs().max() > 20
    seen = pruning(epochs=(10,))
    fitted(seen, max_epochs=12)
    assert seen.events[0]["repair"]


@pytest.mark.parametrize("form", ["alone", "in a tuple", "with soft labels", "in a dict", "with more"])
def test_labels_are_not_needed(form):
    forms = {
        "alone": lambda x, y: x,
        "in a tuple": lambda x, y: (x,),
        "with soft labels": lambda x, y: (x, torch.nn.functional.one_hot(y, 4).float()),
        "in a dict": lambda x, y: {"label": y, "picture": x},
        "with more": lambda x, y: (y, x, y),
    }

    class Other(Classifier):
        def training_step(self, batch, batch_idx):
            leaves = [batch] if isinstance(batch, torch.Tensor) else [*getattr(batch, "values", lambda: batch)()]
            images = next(leaf for leaf in leaves if leaf.dim() == 4)
            return self(images).square().mean()

    images, labels = loader().dataset.tensors
    data = [forms[form](image, label) for image, label in zip(images, labels, strict=True)]
    callback = pruning()
    torch.manual_seed(0)
    trainer(callback).fit(Other(), DataLoader(data, batch_size=8))
    assert callback.events[0]["repair"]


def test_a_forward_that_fails_on_a_calibration_batch_costs_the_repair_alone():
    class Stubborn(Classifier):
        def forward(self, images):
            raise NotImplementedError("no forward")

        def training_step(self, batch, batch_idx):
            return torch.nn.functional.cross_entropy(self.net(batch[0]), batch[1])

        def validation_step(self, batch, batch_idx):
            pass

        def calibration_batch(self, batch):
            return read_batch(batch)

    callback = pruning()
    with pytest.warns(
        UserWarning,
        match=r"can't be run on calibration batch 1: NotImplementedError: no forward",
    ):
        module = fitted(callback, kind=Stubborn)
    assert not callback.events[0]["repair"]
    assert module.net[2][0].weight.shape[0] < 32
