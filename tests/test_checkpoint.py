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
        trainer(ChannelPruning(0.5, [1, 2], verbose=False)).fit(module, loader(), ckpt_path=path, weights_only=True)
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
