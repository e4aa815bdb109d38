import lightning.pytorch as pl
import numpy as np
import pytest
import torch
from lightning.pytorch.callbacks import RichProgressBar, TQDMProgressBar
from torch import nn
from torch.utils.data import BatchSampler, DataLoader, Dataset, IterableDataset, RandomSampler, TensorDataset

from lit_prune import ChannelPruning
from lit_prune.activations import Calibration, CalibrationBatch, collect_moments, read_batch
from lit_prune.errors import CalibrationError
from lit_prune.training.averages import Averages
from lit_prune.training.calibration_data import _own_batches
from lit_prune.training.calibration_pass import calibrate
from lit_prune.training.lightning import LightningHost
from tests.toys import Classifier, loader, trainer

LAYERS = ["net.0.0", "net.1.conv", "net.2.0"]


class Calibrating(pl.Callback):
    """Calibrates at the start of epochs, and keeps what comes out."""

    def __init__(self, **options):
        self.calibration = Calibration(**{"batches": 2, "batch_size": 5, **options})
        self.found = []

    def on_train_epoch_start(self, trainer, pl_module):
        if trainer.current_epoch < 2:
            self.found.append(calibrate(LightningHost(trainer, Averages()), LAYERS, self.calibration))


class Regularised(Classifier):
    """Draws random numbers in training."""

    def forward(self, x):
        return nn.functional.dropout(super().forward(x), 0.2, self.training)


class OwnGenerator(Dataset):
    """Augments by a random generator of its own."""

    def __init__(self):
        self.images, self.labels = loader().dataset.tensors
        self.rng = np.random.default_rng(5)

    def __len__(self):
        return len(self.images)

    def __getitem__(self, index):
        return self.images[index] * float(self.rng.random()), self.labels[index]


class Stream(IterableDataset):
    """Goes on where it stopped."""

    def __init__(self):
        self.images, self.labels = loader().dataset.tensors
        self.position = 0

    def __iter__(self):
        for _ in range(24):
            self.position += 5
            index = self.position % 24
            yield self.images[index] + torch.rand(1), self.labels[index]


LOADERS = {
    "shuffled": lambda: loader(shuffle=True),
    "own sampler generator": lambda: DataLoader(
        loader().dataset, batch_size=8, shuffle=True, generator=torch.Generator().manual_seed(3)
    ),
    "data set with a generator": lambda: DataLoader(OwnGenerator(), batch_size=8, shuffle=True),
    "stream": lambda: DataLoader(Stream(), batch_size=8),
    "workers": lambda: DataLoader(OwnGenerator(), batch_size=8, shuffle=True, num_workers=2),
    "persistent workers": lambda: DataLoader(
        OwnGenerator(), batch_size=8, shuffle=True, num_workers=2, persistent_workers=True
    ),
}


@pytest.mark.parametrize("kind", LOADERS)
def test_training_is_the_same_to_the_bit(kind):
    def run(*callbacks):
        torch.manual_seed(0)
        np.random.seed(0)  # noqa: NPY002
        module = Regularised()
        trainer(*callbacks, max_epochs=3).fit(module, LOADERS[kind]())
        return module

    calibrating = Calibrating()
    plain, other = run(), run(calibrating)
    assert len(calibrating.found) == 2
    assert plain.losses == other.losses
    for name, value in plain.state_dict().items():
        assert torch.equal(value, other.state_dict()[name]), name


def fit(module=None, data=None, **options):
    torch.manual_seed(0)
    callback = Calibrating(**options.pop("calibration", {}))
    trainer(callback, max_epochs=1, **options).fit(module or Classifier(), data if data is not None else loader())
    return callback.found[0]


def assert_close(first, second):
    for layer in LAYERS:
        assert torch.equal(first[layer].count, second[layer].count)
        torch.testing.assert_close(first[layer].mean, second[layer].mean, rtol=1e-6, atol=1e-8)
        torch.testing.assert_close(first[layer].var, second[layer].var, rtol=1e-6, atol=1e-8)


def test_moments_are_those_of_the_data_whatever_the_batch_size():
    torch.manual_seed(0)
    module = Classifier()
    images, labels = loader().dataset.tensors
    # Ten of 24 examples, evenly spread.
    chosen = [index * 24 // 10 for index in range(10)]
    expected = collect_moments(module, LAYERS, [read_batch((images[chosen], labels[chosen]))])
    for batch_size in (3, 8, 24):
        assert_close(fit(data=loader(batch_size=batch_size, shuffle=True)), expected)
    assert_close(fit(calibration={"batches": 5, "batch_size": 2}), expected)
    data = loader().dataset
    asked = DataLoader(data, batch_size=None, sampler=BatchSampler(RandomSampler(data), 8, False))
    assert_close(fit(data=asked), expected)


def test_all_data_where_there_is_less_than_asked_for():
    assert fit(calibration={"batches": 50})[LAYERS[0]].count.sum() == 24


@pytest.mark.parametrize("kind", ["map", "batches", "lists of indices", "stream"])
@pytest.mark.parametrize("ranks", [2, 3, 5])
def test_ranks_share_the_same_batches(kind, ranks):
    data = loader(examples=40).dataset
    given = {
        "map": DataLoader(OwnGenerator(), batch_size=7),
        "batches": DataLoader([data[start : start + 5] for start in range(0, 40, 5)], batch_size=None),
        "lists of indices": DataLoader(data, batch_size=None, sampler=BatchSampler(RandomSampler(data), 7, False)),
        "stream": DataLoader(Stream(), batch_size=4),
    }[kind]
    calibration = Calibration(batches=4, batch_size=3)
    alone = list(_own_batches(given, calibration, 0, 1))
    shares = [list(_own_batches(given, calibration, rank, ranks)) for rank in range(ranks)]
    assert len(alone) == 4
    if kind == "stream":
        assert [len(share) for share in shares] == [-(-4 // ranks)] * ranks
        return
    together = [share[turn] for turn in range(4) for share in shares if turn < len(share)]
    assert len(together) == 4
    for (images, labels), (mine, my_labels) in zip(alone, together, strict=True):
        assert torch.equal(labels, my_labels)
        if kind != "map":
            assert torch.equal(images, mine)


def test_random_augmentation_of_a_batch_is_the_same_on_every_rank():
    class Augmented(OwnGenerator):
        def __getitem__(self, index):
            return self.images[index] * torch.rand(1) * np.random.rand(), self.labels[index]  # noqa: NPY002

    given, calibration = DataLoader(Augmented(), batch_size=7), Calibration(batches=4, batch_size=3)
    alone = list(_own_batches(given, calibration, 0, 1))
    second = list(_own_batches(given, calibration, 1, 2))
    assert all(torch.equal(alone[index][0], mine[0]) for index, mine in zip((1, 3), second, strict=True))


def test_a_loader_of_ones_own():
    class OnModule(Classifier):
        def calibration_dataloader(self):
            return loader(examples=6)

    assert fit(OnModule())[LAYERS[0]].count.sum() == 6

    class OnDataModule(pl.LightningDataModule):
        def train_dataloader(self):
            return loader()

        def calibration_dataloader(self):
            return loader(examples=7)

    assert fit(data=OnDataModule())[LAYERS[0]].count.sum() == 7


def test_several_loaders_are_refused_with_the_way_out():
    class Two(Classifier):
        def training_step(self, batch, batch_idx):
            return super().training_step(batch["a"], batch_idx)

    with pytest.raises(CalibrationError, match=r"is a dict, but .* `calibration_dataloader\(\)`"):
        fit(Two(), {"a": loader(), "b": loader()})


def test_a_reader_of_ones_own_and_transfer_hooks():
    class Own(Classifier):
        def on_before_batch_transfer(self, batch, dataloader_idx):
            return {"images": batch[0] * 0 + 2, "labels": batch[1]}

        def training_step(self, batch, batch_idx):
            return super().training_step([batch["images"], batch["labels"]], batch_idx)

        def calibration_batch(self, batch):
            assert not self.training
            number = len(batch["labels"])
            return CalibrationBatch((batch["images"],), torch.full((number,), 3), torch.arange(number))

    found = fit(Own())
    assert found["net.0.0"].count.tolist() == [0, 0, 0, 10]
    assert found["net.0.0"].var.max() < 1e-12


def test_unknown_batches_are_refused():
    class Triple(Classifier):
        def calibration_dataloader(self):
            images, labels = loader().dataset.tensors
            return DataLoader(TensorDataset(images, labels, labels))

    with pytest.raises(TypeError, match=r"list of Tensor, Tensor, Tensor .*calibration_batch"):
        fit(Triple())


def test_precision_of_the_trainer():
    class Narrow(Classifier):
        """In bfloat16, 256 and 257 are the same."""

        def forward(self, x):
            layer = self.net[0][0]
            with torch.no_grad():
                layer.weight.zero_()
                layer.bias.fill_(257)
            return super().forward(x)

    assert fit(Narrow())["net.0.0"].mean[0, 0] == 257
    assert fit(Narrow(), precision="bf16-mixed")["net.0.0"].mean[0, 0] == 256


class Watched(RichProgressBar):
    """Keeps what is in the display while a network is calibrated."""

    def __init__(self):
        super().__init__()
        self.states = []

    def refresh(self, *args, **options):
        super().refresh(*args, **options)
        self.states.extend((task.description, task.completed, task.visible) for task in self.progress.tasks)


def test_progress_in_a_rich_bar():
    bar = Watched()
    torch.manual_seed(0)
    trainer(Calibrating(), bar, max_epochs=3, enable_progress_bar=True).fit(Classifier(), loader(), loader())
    states = [(completed, visible) for description, completed, visible in bar.states if "Calibration" in description]
    assert (1, True) in states
    assert (2, True) in states
    assert (2, False) in states


def test_progress_in_a_tqdm_bar(capfd):
    torch.manual_seed(0)
    trainer(Calibrating(), TQDMProgressBar(), max_epochs=1, enable_progress_bar=True).fit(Classifier(), loader())
    shown = capfd.readouterr()
    assert "Calibration:" in shown.out + shown.err


@pytest.mark.parametrize("options", [{"criterion": "obs"}, {"criterion": "taylor", "repair": True}, {"repair": True}])
def test_no_hook_of_ours_is_left_on_the_network(options):
    network = Classifier()
    before = {name: len(module._forward_pre_hooks) for name, module in network.named_modules()}
    seen = []

    class Look(pl.Callback):
        def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
            hooks = {name: len(module._forward_pre_hooks) for name, module in pl_module.named_modules()}
            seen.append((trainer.current_epoch, hooks == before))

    trainer(ChannelPruning(0.5, epochs=1, verbose=False, **options), Look(), max_epochs=3).fit(network, loader())
    assert all(clean for epoch, clean in seen if epoch >= 1)
    assert {name: len(module._forward_pre_hooks) for name, module in network.named_modules()} == before
