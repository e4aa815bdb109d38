import pytest
from lightning.pytorch.callbacks import GradientAccumulationScheduler
from torch.utils.data import DataLoader, IterableDataset

from lit_prune import ChannelPruning
from lit_prune.schedule import AtSteps
from lit_prune.training.run_length import declared_length, known_length
from tests.toys import Classifier, loader, trainer


class Manual(Classifier):
    """Steps its optimizer twice a batch."""

    def __init__(self):
        super().__init__()
        self.automatic_optimization = False

    def training_step(self, batch, batch_idx):
        for _ in range(2):
            self.optimizers().zero_grad()
            self.manual_backward(super().training_step(batch, batch_idx))
            self.optimizers().step()


class Stream(IterableDataset):
    def __iter__(self):
        return iter(loader().dataset)


@pytest.mark.parametrize(
    ("options", "epochs", "steps"),
    [
        ({"max_epochs": 4}, 4, 12),
        ({"max_epochs": 4, "max_steps": 7}, 3, 7),
        ({"max_epochs": 2, "max_steps": 70}, 2, 6),
        ({"max_epochs": -1, "max_steps": 7}, 3, 7),
        ({"max_epochs": 4, "accumulate_grad_batches": 2}, 4, 8),
        ({"max_epochs": 4, "limit_train_batches": 1}, 4, 4),
        ({"max_epochs": 4, "callbacks": [GradientAccumulationScheduler({0: 1, 1: 3})]}, 4, None),
        ({"max_epochs": 4, "module": Manual}, 4, None),
        ({"max_epochs": 4, "data": DataLoader(Stream(), batch_size=8)}, 4, None),
        ({"max_epochs": 4, "fast_dev_run": True}, None, None),
    ],
)
def test_length_in_epochs_and_steps(options, epochs, steps):
    options = dict(options)
    module, data = options.pop("module", Classifier)(), options.pop("data", loader())
    run = trainer(*options.pop("callbacks", []), **options)
    run.fit(module, data)
    assert known_length(run, "epochs") == epochs
    assert known_length(run, "steps") == steps


def test_what_is_declared_alone():
    assert declared_length(trainer(max_epochs=4), "epochs") == 4
    assert declared_length(trainer(max_epochs=-1), "epochs") is None
    assert declared_length(trainer(max_epochs=4), "steps") is None


def test_epochs_that_a_number_of_steps_does_not_reach_are_refused_before_the_first():
    module = Classifier()
    with pytest.raises(ValueError, match=r"epochs=\[1, 3\] goes beyond the run, which has 2 epochs"):
        trainer(ChannelPruning(0.5, [1, 3]), max_epochs=None, max_steps=6).fit(module, loader())
    assert module.losses == []


@pytest.mark.parametrize(
    ("module", "callbacks", "data"),
    [
        (Manual, [], loader()),
        (Classifier, [GradientAccumulationScheduler({0: 1, 1: 2})], loader()),
        (Classifier, [], DataLoader(Stream(), batch_size=8)),
    ],
    ids=["manual", "accumulation that changes", "stream"],
)
def test_steps_that_cannot_be_counted_beforehand_are_not_refused(module, callbacks, data):
    callback = ChannelPruning(0.5, AtSteps([2, 6]), verbose=False)
    trainer(callback, *callbacks).fit(module(), data)
    assert [event["step"] for event in callback.events] == [2, 6]
