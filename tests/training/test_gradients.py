"""Events that go by the gradients of the training: when they come, resumed, with several optimizers, under a scaler."""

import lightning.pytorch as pl
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint

from lit_prune import ArgumentError, ChannelPruning
from lit_prune.schedule import AtSteps
from lit_prune.select import MacsBudget
from tests.toys import Classifier, fitted, loader, widths


def pruning(epochs=(2,), **options):
    options = {"criterion": "taylor", "selection": MacsBudget("global"), "round_to": 4, "verbose": False, **options}
    return ChannelPruning(0.5, epochs if not isinstance(epochs, tuple) else list(epochs), **options)


def test_the_channels_with_no_gradient_go():
    class HalfUsed(Classifier):
        def __init__(self):
            super().__init__()
            with torch.no_grad():
                # The loss does not depend on the first half of what enters the last layer.
                self.net[3][2].weight[:, :16] = 0

        def on_after_backward(self):
            self.net[3][2].weight.grad[:, :16] = 0

    callback = pruning(selection="uniform")
    module = fitted(callback, kind=HalfUsed)
    kept = callback.plan.kept["net.2.0.weight"][0].tolist()
    assert len(kept) < 32
    assert set(range(16, 32)) <= set(kept)
    assert module.net[3][2].in_features == len(kept)


@pytest.mark.parametrize("first", [0, AtSteps([0])])
@pytest.mark.parametrize("example", [False, True])
def test_an_event_before_the_first_step_waits_for_it(first, example):
    class Module(Classifier):
        def __init__(self):
            super().__init__()
            if example:
                self.example_input_array = next(iter(loader()))[0]

    callback = pruning(first)
    fitted(callback, kind=Module)
    assert callback.events[0]["step"] == 1
    assert callback.events[0]["gone"]["macs"] >= 0.5


def test_a_resumed_run_equals_an_uninterrupted_one(tmp_path):
    module = fitted(pruning((1, 3)), ModelCheckpoint(tmp_path, filename="{epoch}", save_top_k=-1))
    for epoch in (0, 1, 2):
        resumed = fitted(pruning((1, 3)), ckpt_path=tmp_path / f"epoch={epoch}.ckpt")
        torch.testing.assert_close(dict(resumed.state_dict()), dict(module.state_dict()), rtol=0, atol=0)


def test_accumulated_gradients_are_those_of_the_step():
    callback = pruning()
    fitted(callback, accumulate_grad_batches=2)
    assert callback.events[0]["gone"]["macs"] >= 0.5


def test_two_optimizers_each_with_its_part():
    class Two(Classifier):
        def __init__(self):
            super().__init__()
            self.automatic_optimization = False

        def training_step(self, batch, batch_idx):
            loss = super().training_step(batch, batch_idx)
            self.manual_backward(loss)
            for optimizer in self.optimizers():
                optimizer.step()
                optimizer.zero_grad()

        def configure_optimizers(self):
            return [
                torch.optim.SGD(self.net[:2].parameters(), lr=0.01),
                torch.optim.SGD(self.net[2:].parameters(), lr=0.01),
            ]

    callback = pruning()
    module = fitted(callback, kind=Two)
    assert callback.events[0]["gone"]["macs"] >= 0.5
    assert widths(module) != widths(Two())


def test_before_the_network_is_wrapped_there_are_none():
    class Module(Classifier):
        def __init__(self):
            super().__init__()
            self.example_input_array = next(iter(loader()))[0]

    with pytest.raises(ArgumentError, match="by weights alone"):
        fitted(pruning("before_wrap"), kind=Module)


def test_no_gradient_is_looked_at_without_need():
    class Watch(pl.Callback):
        def on_train_end(self, trainer, pl_module):
            assert callback.state_dict()["changes"] is None

    callback = pruning(criterion="magnitude")
    fitted(callback, Watch())
    assert callback.events
