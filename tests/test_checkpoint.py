import inspect
import subprocess
import sys
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest
import torch
from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import ModelCheckpoint

from lit_prune import ChannelPruning, accept_pruned
from lit_prune.checkpoint import load_pruned, plan_of
from lit_prune.errors import CheckpointError
from tests.toys import Classifier, loader, network, trainer, widths

# A Trainer takes the argument since Lightning 2.6; before, it refuses nothing.
_PLAIN = {"weights_only": True} if "weights_only" in inspect.signature(Trainer.fit).parameters else {}


class Wide(Classifier):
    def __init__(self, width: int = 16) -> None:
        super().__init__(width)
        self.save_hyperparameters()

    def test_step(self, batch: list[torch.Tensor], batch_idx: int) -> None:
        self.validation_step(batch, batch_idx)

    def predict_step(self, batch: list[torch.Tensor], batch_idx: int) -> torch.Tensor:
        return self(batch[0])


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
        trainer(ChannelPruning(0.5, [1, 2], verbose=False)).fit(module, loader(), ckpt_path=path, **_PLAIN)
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


def test_a_file_that_is_not_there_is_the_trainers_to_tell(tmp_path):
    run = trainer(ChannelPruning(0.5, [1, 2], verbose=False))
    with pytest.raises(FileNotFoundError):
        run.fit(Wide(32), loader(), ckpt_path=tmp_path / "none.ckpt")


class Choice:
    """A class of the user's, as hyperparameters may hold one."""


@pytest.fixture(params=["path", "number", "class"])
def rich(request, saved, tmp_path):
    """A checkpoint with a hyperparameter that is no plain data, and the name that torch refuses."""
    value, name = {
        "path": (Path("anything"), "pathlib"),
        "number": (np.float64(0.5), "numpy.*scalar, numpy.dtype"),
        "class": (Choice(), f"{Choice.__module__}.Choice"),
    }[request.param]
    checkpoint = torch.load(saved[0] / "epoch=2.ckpt", weights_only=True)
    checkpoint["hyper_parameters"]["value"] = value
    torch.save(checkpoint, tmp_path / "rich.ckpt")
    return tmp_path / "rich.ckpt", name


def test_what_is_refused_is_named_with_what_to_do(rich, saved):
    path, name = rich
    told = rf"rich.ckpt is whole, but .*{name}.*load_pruned\(..., weights_only=False\).*add_safe_globals\(\[.*{name}"
    with pytest.raises(CheckpointError, match=told):
        load_pruned(Wide, path)
    loaded = load_pruned(Wide, path, weights_only=False)
    assert widths(loaded) == widths(saved[1])
    # It went to torch, and not to the class.
    assert set(loaded.hparams) == {"width"}


@pytest.mark.skipif(not _PLAIN, reason="this Lightning's Trainer reads everything")
@pytest.mark.parametrize("stage", ["fit", "test"])
def test_a_trainer_names_what_is_refused(rich, stage):
    path, name = rich
    pruning = ChannelPruning(0.5, [1, 2], verbose=False)
    told = rf"rich.ckpt is whole, but .*{name}.*give the Trainer's fit, .* weights_only=False"
    with pytest.raises(CheckpointError, match=told):
        getattr(trainer(pruning), stage)(Wide(32), loader(), ckpt_path=path, **_PLAIN)
    getattr(trainer(pruning), stage)(Wide(32), loader(), ckpt_path=path, weights_only=False)


def test_a_class_of_any_keywords_is_not_given_ours(rich):
    class Any(Wide):
        def __init__(self, width=16, **others):
            super().__init__(width)
            self.others = others

    assert "weights_only" not in load_pruned(Any, rich[0], weights_only=False).others


def test_errors_name_the_class_of_the_user(saved):
    class Mine(Wide):
        def __init__(self, width=16):
            super().__init__(width)
            self.more = torch.nn.Linear(2, 2)

    with pytest.raises(RuntimeError, match="loading state_dict for Mine") as caught:
        load_pruned(Mine, saved[0] / "epoch=2.ckpt")
    assert "Adopting" not in str(caught.value)
    assert "on_load_checkpoint" not in vars(Mine)


def test_a_class_that_lists_its_subclasses_gets_no_new_one(saved):
    class Listing(Wide):
        subclasses: ClassVar[list[type]] = []

        def __init_subclass__(cls):
            cls.subclasses.append(cls)

        def on_load_checkpoint(self, checkpoint):
            self.seen = widths(self)

    own = vars(Listing)["on_load_checkpoint"]
    loaded = load_pruned(Listing, saved[0] / "epoch=2.ckpt")
    # What the class does with a checkpoint finds the shapes that will be loaded.
    assert loaded.seen == widths(saved[1])
    assert Listing.subclasses == []
    assert vars(Listing)["on_load_checkpoint"] is own


def test_a_checkpoint_of_lightnings_command_line_loads(saved, tmp_path):
    checkpoint = torch.load(saved[0] / "epoch=2.ckpt", weights_only=True)
    checkpoint["hyper_parameters"] |= {
        "_class_path": f"{__name__}.Wide",
        "_instantiator": "lightning.pytorch.cli.instantiate_module",
    }
    torch.save(checkpoint, tmp_path / "cli.ckpt")
    for cls in (Wide, Classifier):
        loaded = load_pruned(cls, tmp_path / "cli.ckpt")
        assert type(loaded) is Wide
        assert widths(loaded) == widths(saved[1])


def test_a_file_without_a_state_dict_is_refused(saved, tmp_path):
    torch.save({"weights": saved[1].state_dict(), "epoch": 3}, tmp_path / "net.pt")
    with pytest.raises(CheckpointError, match=r"net.pt holds neither .*: 'weights' is a OrderedDict"):
        load_pruned(Wide, tmp_path / "net.pt")


class Remembering(Wide):
    """Its state dict holds more than tensors."""

    def get_extra_state(self):
        return {"images": 5}

    def set_extra_state(self, state):
        self.images = state["images"]


def test_a_state_dict_may_hold_more_than_tensors(tmp_path):
    run = trainer(ChannelPruning(0.5, 1, verbose=False), max_epochs=2)
    run.fit(Remembering(32), loader())
    run.save_checkpoint(tmp_path / "net.ckpt")
    assert load_pruned(Remembering, tmp_path / "net.ckpt").images == 5
    again = Remembering(32)
    trainer(ChannelPruning(0.5, 1, verbose=False)).test(again, loader(), ckpt_path=tmp_path / "net.ckpt")
    assert again.images == 5


class Accepting(Wide):
    def __init__(self, width: int = 16) -> None:
        super().__init__(width)
        accept_pruned(self)


@pytest.mark.parametrize("stage", ["fit", "validate", "test", "predict"])
def test_without_the_callback_a_module_accepts_pruned_checkpoints_if_told_to(saved, stage):
    folder, module, _ = saved
    for fresh in (Accepting(32), accept_pruned(Wide(32))):
        getattr(trainer(max_epochs=4), stage)(fresh, loader(), ckpt_path=folder / "epoch=2.ckpt", **_PLAIN)
        assert widths(fresh) == widths(module)
    assert widths(Accepting.load_from_checkpoint(folder / "epoch=2.ckpt")) == widths(module)
    with pytest.raises(RuntimeError, match=r"size mismatch for net.0.0.weight"):
        getattr(trainer(max_epochs=4), stage)(Wide(32), loader(), ckpt_path=folder / "epoch=2.ckpt", **_PLAIN)


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


def test_a_network_that_was_loaded_pruned_goes_on_from_its_own_checkpoint(tmp_path):
    run = trainer(ChannelPruning(0.5, 1, verbose=False), enable_checkpointing=True, default_root_dir=tmp_path)
    run.fit(Wide(32), loader())
    path = run.checkpoint_callback.best_model_path
    again, callback = load_pruned(Wide, path), ChannelPruning(0.5, 1, verbose=False)
    trainer(callback, max_epochs=6).fit(again, loader(), ckpt_path=path, **_PLAIN)
    assert [event["epoch"] for event in callback.events] == [1]
    assert widths(again) == widths(load_pruned(Wide, path))
