"""Trainings as other projects write them, with one callback added and nothing else."""

import copy
import threading

import lightning.pytorch as pl
import pytest
import torch
import torchmetrics
from lightning.pytorch.callbacks import LearningRateMonitor
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger
from lightning.pytorch.loggers.logger import DummyLogger
from torch import nn
from torch._dynamo.testing import CompileCounter
from torch.utils.data import DataLoader

from lit_prune import ChannelPruning
from tests.toys import Classifier, loader, network, trainer, widths


class ImageClassifier(pl.LightningModule):
    """Layers in the LightningModule itself, functional calls between them, metrics, a step-wise scheduler."""

    def __init__(self, lr=0.01):
        super().__init__()
        self.save_hyperparameters()
        self.conv1, self.conv2 = nn.Conv2d(3, 16, 3), nn.Conv2d(16, 32, 3)
        self.dropout, self.fc1, self.fc2 = nn.Dropout(0.25), nn.Linear(32 * 2 * 2, 24), nn.Linear(24, 4)
        self.accuracy = torchmetrics.Accuracy("multiclass", num_classes=4)

    def forward(self, x):
        x = nn.functional.relu(self.conv2(nn.functional.relu(self.conv1(x))))
        x = self.dropout(torch.flatten(nn.functional.max_pool2d(x, 2), 1))
        return nn.functional.log_softmax(self.fc2(nn.functional.relu(self.fc1(x))), dim=1)

    def training_step(self, batch, batch_idx):
        images, labels = batch
        logits = self(images)
        self.accuracy(logits, labels)
        self.log("acc", self.accuracy, on_epoch=True)
        return nn.functional.nll_loss(logits, labels)

    def configure_optimizers(self):
        optimizer = torch.optim.Adam(self.parameters(), lr=self.hparams.lr)
        schedule = torch.optim.lr_scheduler.OneCycleLR(
            optimizer, self.hparams.lr, total_steps=self.trainer.estimated_stepping_batches
        )
        return [optimizer], [{"scheduler": schedule, "interval": "step"}]


class GAN(pl.LightningModule):
    """Two networks, two optimizers, manual optimization; no forward that is called in training."""

    def __init__(self):
        super().__init__()
        self.automatic_optimization = False
        self.generator = nn.Sequential(
            nn.Linear(8, 32 * 4 * 4),
            nn.Unflatten(1, (32, 4, 4)),
            nn.BatchNorm2d(32),
            nn.ReLU(),
            nn.ConvTranspose2d(32, 16, 4, 2, 1),
            nn.BatchNorm2d(16),
            nn.ReLU(),
            nn.Conv2d(16, 3, 3, 1, 1),
            nn.Tanh(),
        )
        self.discriminator = nn.Sequential(
            nn.Conv2d(3, 16, 3, 2, 1),
            nn.LeakyReLU(0.2),
            nn.Conv2d(16, 32, 3, 2, 1),
            nn.LeakyReLU(0.2),
            nn.Flatten(),
            nn.Linear(32 * 2 * 2, 1),
        )

    def training_step(self, batch, batch_idx):
        real, _ = batch
        first, second = self.optimizers()
        loss = nn.functional.binary_cross_entropy_with_logits
        fake = self.generator(torch.randn(len(real), 8))
        for optimizer, value in (
            (
                second,
                lambda: (
                    loss(self.discriminator(real), torch.ones(len(real), 1))
                    + loss(self.discriminator(fake.detach()), torch.zeros(len(real), 1))
                ),
            ),
            (first, lambda: loss(self.discriminator(fake), torch.ones(len(real), 1))),
        ):
            optimizer.zero_grad()
            self.manual_backward(value())
            optimizer.step()

    def configure_optimizers(self):
        return [torch.optim.Adam(net.parameters(), 2e-4) for net in (self.generator, self.discriminator)]


class UNet(pl.LightningModule):
    """Skips that are concatenated, a loss over pixels, accumulation and clipping."""

    def __init__(self):
        super().__init__()

        def block(enters, leaves):
            return nn.Sequential(nn.Conv2d(enters, leaves, 3, 1, 1), nn.BatchNorm2d(leaves), nn.ReLU())

        self.down1, self.down2, self.bottom = block(3, 16), block(16, 32), block(32, 64)
        self.up2, self.up1 = nn.ConvTranspose2d(64, 32, 2, 2), nn.ConvTranspose2d(32, 16, 2, 2)
        self.join2, self.join1, self.head = block(64, 32), block(32, 16), nn.Conv2d(16, 4, 1)

    def forward(self, x):
        one = self.down1(x)
        two = self.down2(nn.functional.max_pool2d(one, 2))
        x = self.bottom(nn.functional.max_pool2d(two, 2))
        x = self.join2(torch.cat([self.up2(x), two], 1))
        return self.head(self.join1(torch.cat([self.up1(x), one], 1)))

    def training_step(self, batch, batch_idx):
        images, labels = batch
        return nn.functional.cross_entropy(self(images), labels[:, None, None].expand(-1, 8, 8))

    def configure_optimizers(self):
        decayed = [p for p in self.parameters() if p.dim() > 1]
        others = [p for p in self.parameters() if p.dim() <= 1]
        return torch.optim.AdamW([{"params": decayed, "weight_decay": 0.1}, {"params": others, "weight_decay": 0.0}])


@pytest.mark.parametrize(
    ("stranger", "options", "layers"),
    [
        (ImageClassifier, {}, {"conv1": 8, "conv2": 16, "fc1": 16}),
        (GAN, {}, {"generator.4": None, "discriminator.0": 8, "discriminator.2": 16}),
        (UNet, {"accumulate_grad_batches": 2, "gradient_clip_val": 1.0}, {"bottom.0": 32, "down1.0": 8, "up1": None}),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_one_line_more_and_the_network_shrinks(stranger, options, layers):
    torch.manual_seed(0)
    module, callback = stranger(), ChannelPruning(0.5, [1, 2], verbose=False)
    before, start = sum(p.numel() for p in module.parameters()), {}

    class Watch(pl.Callback):
        def on_train_epoch_start(self, trainer, pl_module):
            if trainer.current_epoch == 2:
                start.update({name: p.clone() for name, p in pl_module.named_parameters()})

    trainer(callback, Watch(), **options).fit(module, loader())
    assert sum(p.numel() for p in module.parameters()) < 0.6 * before
    for layer, width in layers.items():
        channels = module.get_submodule(layer)
        leaves = getattr(channels, "out_channels", None) or channels.out_features
        assert leaves == (width or leaves)
        assert width or leaves in (8, 16)
    assert all(not torch.equal(start[name], p) for name, p in module.named_parameters())


def test_the_other_name_of_lightning():
    import pytorch_lightning

    class Module(pytorch_lightning.LightningModule):
        def __init__(self):
            super().__init__()
            self.net = network()

        def training_step(self, batch, batch_idx):
            return nn.functional.cross_entropy(self.net(batch[0]), batch[1])

        def configure_optimizers(self):
            return torch.optim.AdamW(self.parameters())

    module = Module()
    run = pytorch_lightning.Trainer(
        max_epochs=3,
        accelerator="cpu",
        devices=1,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=[ChannelPruning(0.5, [1, 2], verbose=False)],
    )
    run.fit(module, loader())
    assert widths(module)["net.2.0.weight"] == (16, 8, 3, 3)


@pytest.mark.parametrize("where", ["network", "module"])
def test_compiled_networks_shrink_and_go_on(where):
    plain = []
    for compiled in (False, True):
        torch.manual_seed(0)
        module = Classifier()
        target = module
        if compiled and where == "network":
            module.net = torch.compile(module.net, backend="aot_eager")
        elif compiled:
            target = torch.compile(module, backend="aot_eager")
        trainer(ChannelPruning(0.5, [1, 2], verbose=False)).fit(target, loader())
        plain.append(module.losses)
        inner = module.net._orig_mod if compiled and where == "network" else module.net
        assert inner[2][0].weight.shape == (16, 8, 3, 3)
    assert plain[0] == pytest.approx(plain[1], rel=1e-4)


@pytest.mark.parametrize("pruned", [False, True])
def test_nothing_is_compiled_for_what_watches_the_first_batch(pruned):
    torch.compiler.reset()
    compiled = CompileCounter()
    module = Classifier()
    module.net.compile(backend=compiled, dynamic=False)
    callbacks = [ChannelPruning(0.5, [1], verbose=False)] if pruned else []
    trainer(*callbacks, max_epochs=2).fit(module, loader())
    # Once for each width.
    assert compiled.frame_count == 1 + pruned


def test_loggers_get_the_costs_of_every_epoch(tmp_path):
    loggers = [CSVLogger(tmp_path, "csv"), TensorBoardLogger(tmp_path, "board")]
    callback = ChannelPruning(0.5, [1, 2], verbose=False)
    trainer(callback, LearningRateMonitor(), logger=loggers, log_every_n_steps=1).fit(ImageClassifier(), loader())
    lines = (tmp_path / "csv" / "version_0" / "metrics.csv").read_text().splitlines()
    column = lines[0].split(",").index("pruning/macs")
    macs = [float(line.split(",")[column]) for line in lines[1:] if line.split(",")[column]]
    first, second = callback.events
    (board,) = (tmp_path / "board").rglob("events.out.tfevents.*")
    assert board.read_bytes().count(b"Pruned at epoch") == 2
    assert macs == [first["macs"][0], first["macs"][1], second["macs"][1], second["macs"][1]]


def test_iterable_data_and_dict_batches():
    class Dicts(Classifier):
        def training_step(self, batch, batch_idx):
            return super().training_step([batch["image"], batch["label"]], batch_idx)

    class Stream(torch.utils.data.IterableDataset):
        def __iter__(self):
            return ({"image": image, "label": label} for image, label in loader().dataset)

    module = Dicts()
    trainer(ChannelPruning(0.5, [1, 2], verbose=False)).fit(module, DataLoader(Stream(), batch_size=8))
    assert widths(module)["net.2.0.weight"] == (16, 8, 3, 3)


def test_a_module_that_was_pruned_can_be_copied_and_pickled(tmp_path):
    module = Classifier()
    trainer(ChannelPruning(0.5, 1, verbose=False), max_epochs=2).fit(module, loader())
    images = torch.rand(2, 3, 8, 8)
    torch.save(module.net, tmp_path / "net.pt")
    again = torch.load(tmp_path / "net.pt", weights_only=False)
    assert torch.equal(again.eval()(images), copy.deepcopy(module.net).eval()(images))


def test_trackers_get_the_table_in_the_way_that_each_takes():
    class Experiment:
        def __init__(self):
            self.said = []

        def log_text(self, *args, **kwargs):
            self.said.append((args, kwargs))

    class Tracker(DummyLogger):
        run_id = "run"

        def __init__(self):
            super().__init__()
            self.inner = Experiment()

        @property
        def experiment(self):
            return self.inner

        def log_text(self, *args, **kwargs):
            self.inner.log_text(*args, **kwargs)

    kinds = [type(name, (Tracker,), {})() for name in ("WandbLogger", "MLFlowLogger", "CometLogger")]
    trainer(ChannelPruning(0.5, 1, verbose=False), logger=kinds, log_every_n_steps=1).fit(Classifier(), loader())
    wandb, mlflow, comet = (kind.inner.said[0] for kind in kinds)
    assert "Pruned at epoch 1" in wandb[1]["data"][0][1]
    assert mlflow[0][0] == "run"
    assert mlflow[0][2] == "pruning/step_3.txt"
    assert "net.2.0" in comet[0][0]


def test_a_module_that_holds_what_cannot_be_copied():
    class Holder(Classifier):
        def __init__(self):
            super().__init__()
            self.lock, self.stream = threading.Lock(), {"numbers": (number for number in range(3))}
            self.data = loader().dataset

    module = Holder()
    trainer(ChannelPruning(0.5, 1, verbose=False), max_epochs=2).fit(module, loader())
    assert widths(module)["net.2.0.weight"] == (16, 8, 3, 3)
    assert list(module.stream["numbers"]) == [0, 1, 2]
