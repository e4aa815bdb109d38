import pickle
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint

from lit_prune import ChannelPruning
from lit_prune.checkpoint import CheckpointError, load_pruned, plan_of
from tests.toys import Classifier, loader, network, trainer, widths


class Wide(Classifier):
    def __init__(self, width: int = 16) -> None:
        super().__init__(width)
        self.save_hyperparameters()

    def test_step(self, batch: list[torch.Tensor], batch_idx: int) -> None:
        self.validation_step(batch, batch_idx)


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A run with its checkpoints: dense after epoch 0, pruned after 1 and 2."""
    folder = tmp_path_factory.mktemp("saved")
    torch.manual_seed(0)
    module, callback = Wide(width=32), ChannelPruning(0.5, [1, 2], verbose=False)
    saver = ModelCheckpoint(folder, filename="{epoch}", save_top_k=-1)
    trainer(callback, saver, max_epochs=3, enable_checkpointing=True).fit(module, loader())
    return folder, module, callback


def test_any_lightning_class_loads_with_its_own_arguments(saved):
    folder, module, _ = saved
    loaded = load_pruned(Wide, folder / "epoch=2.ckpt")
    assert type(loaded) is Wide
    assert loaded.hparams["width"] == 32
    assert all(
        torch.equal(a, b) for a, b in zip(module.state_dict().values(), loaded.state_dict().values(), strict=True)
    )
    images = torch.rand(2, 3, 8, 8)
    assert torch.equal(module.eval()(images), loaded.eval()(images))
    assert widths(load_pruned(Wide, folder / "epoch=0.ckpt")) == widths(Wide(32))


def test_any_module_loads_from_a_state_dict(saved, tmp_path):
    _, module, _ = saved
    torch.save(module.net.state_dict(), tmp_path / "net.pt")

    class Net(torch.nn.Sequential):
        def __init__(self, width: int) -> None:
            super().__init__(*network(width))

    loaded = load_pruned(Net, tmp_path / "net.pt", width=32)
    assert widths(loaded) == widths(module.net)


def test_the_record_is_plain_data(saved):
    folder, _, callback = saved
    checkpoint = torch.load(folder / "epoch=2.ckpt", weights_only=True)
    assert plan_of(checkpoint) == callback.plan
    record = checkpoint["callbacks"]["ChannelPruning"]
    assert [event["epoch"] for event in record["events"]] == [1, 2]
    assert record["dense"]["widths"] == {"net.0.0": 32, "net.2.0": 64}


def damaged(folder, tmp_path, change):
    checkpoint = torch.load(folder / "epoch=2.ckpt", weights_only=True)
    change(checkpoint, checkpoint["callbacks"]["ChannelPruning"])
    torch.save(checkpoint, tmp_path / "damaged.ckpt")
    return tmp_path / "damaged.ckpt"


def drop_a_channel(checkpoint, record):
    weights = checkpoint["state_dict"]
    for name in (
        "net.2.0.weight",
        "net.2.0.bias",
        "net.2.1.weight",
        "net.2.1.bias",
        "net.2.1.running_mean",
        "net.2.1.running_var",
    ):
        weights[name] = weights[name][1:]
    weights["net.3.2.weight"] = weights["net.3.2.weight"][:, 1:]


def forget_the_plan(checkpoint, record):
    record["plan"] = {"format": 1, "kept": {}, "sizes": {}}


DAMAGES = {
    "tensors": (drop_a_channel, r"by its record net.2.* has 32 channels"),
    "record": (forget_the_plan, "no pruning on record explains that"),
    "unsorted": (
        lambda _, record: record["plan"]["kept"]["net.0.0.weight"].update({0: torch.tensor([3, 1])}),
        "record of what was pruned is damaged: .*strictly increasing",
    ),
    "newer": (lambda _, record: record["plan"].update(format=99), "written by a newer lit_prune"),
    "no plan": (lambda _, record: record.pop("plan"), "record of what was pruned is damaged"),
}


@pytest.mark.parametrize("kind", DAMAGES)
def test_a_checkpoint_that_contradicts_its_record_is_refused(saved, tmp_path, kind):
    change, message = DAMAGES[kind]
    path = damaged(saved[0], tmp_path, change)
    module = Wide(32)
    with pytest.raises(CheckpointError, match=message):
        trainer(ChannelPruning(0.5, [1, 2], verbose=False)).fit(module, loader(), ckpt_path=path)
    assert module.losses == []
    if kind != "record":
        with pytest.raises(CheckpointError, match=message):
            load_pruned(Wide, path)


def test_a_checkpoint_of_another_width_is_not_mistaken_for_a_pruned_one(saved):
    with pytest.raises(CheckpointError, match=r"net.0.0.weight has shape .* no pruning on record explains"):
        trainer(ChannelPruning(0.5, 3, verbose=False)).fit(Wide(48), loader(), ckpt_path=saved[0] / "epoch=2.ckpt")


def test_files_that_are_none_are_named(saved, tmp_path):
    whole = (saved[0] / "epoch=2.ckpt").read_bytes()
    (tmp_path / "short.ckpt").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "text.ckpt").write_text("not a checkpoint")
    torch.save([1, 2], tmp_path / "list.ckpt")
    for name in ("short", "text", "list"):
        with pytest.raises(CheckpointError, match=f"{name}.ckpt"):
            load_pruned(Wide, tmp_path / f"{name}.ckpt")
    with pytest.raises(FileNotFoundError):
        load_pruned(Wide, tmp_path / "none.ckpt")


@pytest.mark.parametrize("stage", ["fit", "test"])
@pytest.mark.parametrize("kept", [0.0, 0.5, 0.99])
def test_a_trainer_names_a_file_that_is_cut_short(saved, tmp_path, kept, stage):
    whole = (saved[0] / "epoch=2.ckpt").read_bytes()
    (tmp_path / "short.ckpt").write_bytes(whole[: int(kept * len(whole))])
    module = Wide(32)
    run = trainer(ChannelPruning(0.5, [1, 2], verbose=False))
    with pytest.raises(CheckpointError, match=r"short.ckpt can't be read as a checkpoint: it is cut short"):
        getattr(run, stage)(module, loader(), ckpt_path=tmp_path / "short.ckpt")
    assert module.losses == []
    assert "load_checkpoint" not in vars(run.strategy)


def test_other_errors_of_loading_are_left_as_they_are(saved, tmp_path, monkeypatch):
    # Lightning's default has changed.
    monkeypatch.setenv("TORCH_FORCE_WEIGHTS_ONLY_LOAD", "1")
    run = trainer(ChannelPruning(0.5, [1, 2], verbose=False))
    with pytest.raises(FileNotFoundError):
        run.fit(Wide(32), loader(), ckpt_path=tmp_path / "none.ckpt")
    checkpoint = torch.load(saved[0] / "epoch=2.ckpt", weights_only=True)
    torch.save({**checkpoint, "mine": Path("anything")}, tmp_path / "pickled.ckpt")
    with pytest.raises(pickle.UnpicklingError, match="Weights only load failed"):
        run.fit(Wide(32), loader(), ckpt_path=tmp_path / "pickled.ckpt")


READER = """
import sys, torch
sys.modules["lit_prune"] = sys.modules["lightning"] = None
record = torch.load(sys.argv[1], weights_only=True)["callbacks"]["ChannelPruning"]
for event in record["events"]:
    print(event["epoch"], event["channels"]["net.2.0"], event["macs"])
print(record["plan"]["sizes"]["net.2.0.weight"][0], len(record["plan"]["kept"]["net.2.0.weight"][0]))
"""


def test_the_record_is_read_without_lit_prune(saved):
    folder, _, callback = saved
    read = subprocess.run(
        [sys.executable, "-c", READER, folder / "epoch=2.ckpt"], capture_output=True, text=True, check=True
    ).stdout.splitlines()
    first, second = callback.events
    assert read == [f"1 [64, 48] {first['macs']}", f"2 [48, 32] {second['macs']}", "64 32"]


def test_modules_of_the_other_lightning_load_with_their_own_arguments(tmp_path):
    import pytorch_lightning

    class Other(pytorch_lightning.LightningModule):
        def __init__(self, width=16, depth=1):
            super().__init__()
            self.save_hyperparameters()
            self.net = network(width)

        def training_step(self, batch, batch_idx):
            return torch.nn.functional.cross_entropy(self.net(batch[0]), batch[1])

        def configure_optimizers(self):
            return torch.optim.AdamW(self.parameters())

    module = Other(32, depth=3)
    run = pytorch_lightning.Trainer(
        max_epochs=2,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=[ChannelPruning(0.5, 1, verbose=False)],
    )
    run.fit(module, loader())
    run.save_checkpoint(tmp_path / "other.ckpt")
    loaded = load_pruned(Other, tmp_path / "other.ckpt")
    assert type(loaded) is Other
    assert (loaded.hparams["width"], loaded.hparams["depth"]) == (32, 3)
    assert widths(loaded) == widths(module)
    torch.testing.assert_close(loaded.state_dict(), module.state_dict(), rtol=0, atol=0)
