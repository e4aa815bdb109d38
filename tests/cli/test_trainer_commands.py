import inspect
from pathlib import Path

import pytest
import torch
import yaml
from lightning.pytorch import Trainer

from lit_prune.cli import main, run_trainer
from lit_prune.data import write_digits
from lit_prune.yolo import LitYOLO, build_detector
from lit_prune.yolo.export import export_detector

_PRUNED_WIDTHS = [8, 24]


@pytest.fixture
def animals() -> list[str]:
    """Arguments for a data set of three classes."""
    path = write_digits("data", scenes=8, val_scenes=4, image_size=64)
    for file in Path("data", "labels").rglob("*.txt"):
        rows = [line.split() for line in file.read_text().splitlines()]
        file.write_text("".join(f"{int(row[0]) % 3} {' '.join(row[1:])}\n" for row in rows))
    description = yaml.safe_load(path.read_text())
    path.write_text(yaml.safe_dump({**description, "names": {0: "cat", 1: "dog", 2: "cow"}}))
    small = ["--data.image_size=64", "--data.batch_size=4", "--data.num_workers=0"]
    return ["--data=lit_prune.yolo.YOLODataModule", f"--data.data={path}", *small]


@pytest.fixture
def weights() -> str:
    """A file of a network that knows three classes by name."""
    network = build_detector("yolov8n.yaml", num_classes=3)
    network.names = {0: "cat", 1: "dog", 2: "cow"}
    return str(export_detector(network, "animals.pt"))


def _widths(lit):
    return [lit.model.model[k].conv.out_channels for k in (0, 1)]


@pytest.mark.parametrize("command", ["fit", "validate", "test", "predict"])
def test_weights_keep_their_classes(command, weights, animals, quiet):
    short = ["--trainer.max_epochs=1", "--trainer.limit_train_batches=0"] if command == "fit" else []
    before = LitYOLO(weights).model.state_dict()

    cli = run_trainer([command, *quiet, *animals, f"--model.model={weights}", *short])

    assert cli.model.num_classes == 3
    assert cli.model.model.names == {0: "cat", 1: "dog", 2: "cow"}
    after = cli.model.model.state_dict()
    assert all(torch.equal(value, after[name]) for name, value in before.items())


def test_classes_that_were_asked_for_are_taken_and_it_is_said(weights, animals, quiet, caplog):
    arguments = [*quiet, *animals, f"--model.model={weights}", "--model.num_classes=5"]
    with caplog.at_level("INFO"), pytest.warns(UserWarning, match="The network has 5 classes .* has 3 .cat, dog, cow"):
        cli = run_trainer(["validate", *arguments])
    assert cli.model.num_classes == 5
    assert "num_classes=5 was asked for, but the weights are for 3 classes (cat, dog, cow)" in caplog.text


def test_a_new_network_has_the_classes_of_its_data_and_it_is_said(animals, quiet, caplog):
    with caplog.at_level("INFO"):
        cli = run_trainer(["validate", *quiet, *animals, "--model.model=yolov8n.yaml"])
    assert cli.model.num_classes == 3
    assert "yolov8n.yaml gets the 3 classes of the data" in caplog.text


def test_classes_of_a_new_network_that_were_asked_for(quiet, digits):
    with pytest.warns(UserWarning, match=r"The network has 12 classes .*, but DigitScenes has 10"):
        cli = run_trainer(["validate", *quiet, *digits, "--model.num_classes=12"])
    assert cli.model.num_classes == 12


def test_data_with_more_classes_than_the_weights_is_refused(weights, quiet, digits, capsys):
    assert main(["validate", *quiet, *digits, f"--model.model={weights}"]) == 2
    assert "DigitScenes has 10 classes, but the network has 3" in capsys.readouterr().err


@pytest.mark.parametrize("command", ["fit", "validate", "test", "predict"])
@pytest.mark.parametrize("by", ["--ckpt_path", "--model.model"])
def test_pruned_checkpoints_without_the_callback(command, by, checkpoint, quiet, digits):
    longer = ["--trainer.max_epochs=3"] if command == "fit" else []
    cli = run_trainer([command, *quiet, *digits, *longer, by, checkpoint])

    assert _widths(cli.model) == _PRUNED_WIDTHS
    if command == "fit" and by == "--ckpt_path":
        (saved,) = Path().rglob("*.ckpt")
        events = [torch.load(path, weights_only=True)["callbacks"]["ChannelPruning"] for path in (checkpoint, saved)]
        assert str(events[0]) == str(events[1])


def test_pruned_checkpoints_in_the_other_commands(checkpoint, capsys):
    path = write_digits("data", scenes=2, val_scenes=2, image_size=64)
    assert main(["export", checkpoint, "--out", "net.pt"]) == 0
    assert _widths(LitYOLO("net.pt")) == _PRUNED_WIDTHS
    assert main(["inspect", checkpoint, "--image-size", "64"]) == 0
    row = next(line for line in capsys.readouterr().out.splitlines() if "model.1.conv " in line)
    assert row.split("│")[2].strip() == "24"
    sizes = ["--image-size", "64", "--batch-size", "2", "--workers", "0"]
    assert main(["compare", checkpoint, "net.pt", "--data", str(path), *sizes]) == 0
    assert "no change" in capsys.readouterr().out


@pytest.mark.usefixtures("own_module")
def test_pruned_checkpoints_of_a_module_of_ones_own(quiet, caplog, capsys):
    mine = [*quiet, "--model=mine.Net", "--data=mine.Data"]
    pruning = ["--trainer.callbacks+=ChannelPruning", "--trainer.callbacks.amount=0.5", "--trainer.callbacks.epochs=1"]
    run_trainer(["fit", *mine, *pruning, "--trainer.max_epochs=2", "--trainer.default_root_dir=first"])
    (path,) = map(str, Path("first").rglob("*.ckpt"))

    for command in ("validate", "test", "predict"):
        cli = run_trainer([command, *mine, "--ckpt_path", path])
        assert cli.model.net[0].out_channels == 8
    longer = ["--trainer.max_epochs=3", "--trainer.default_root_dir=second"]
    run_trainer(["fit", *mine, "--ckpt_path", path, *longer])
    # What was saved without the callback still tells what was pruned.
    (path,) = map(str, Path("second").rglob("*.ckpt"))
    assert run_trainer(["validate", *mine, "--ckpt_path", path]).model.net[0].out_channels == 8
    cli = run_trainer(["fit", *mine, *pruning, "--trainer.max_epochs=4", "--ckpt_path", path])
    assert len(cli.trainer.callbacks[0].events) == 1

    with caplog.at_level("INFO"):
        run_trainer(["validate", *mine, "--model.lr=0.5", "--ckpt_path", path])
    assert f"--model.lr 0.5 is not used: {path} was trained with 0.01." in caplog.text

    stored = torch.load(path, weights_only=True)
    del stored["callbacks"]["ChannelPruning"]
    torch.save(stored, "unexplained.ckpt")
    assert main(["validate", *mine, "--ckpt_path", "unexplained.ckpt"]) == 2
    assert "no pruning on record explains that" in capsys.readouterr().err


def test_a_run_that_began_with_a_pruned_file_is_resumed(checkpoint, quiet, digits):
    assert main(["export", checkpoint, "--out", "net.pt"]) == 0
    pruning = ["--trainer.callbacks+=ChannelPruning", "--trainer.callbacks.amount=0.3", "--trainer.callbacks.epochs=1"]
    arguments = ["fit", *quiet, *digits, *pruning, "--model.model=net.pt"]
    run_trainer([*arguments, "--trainer.max_epochs=2"])
    (path,) = map(str, Path("checkpoints").rglob("*.ckpt"))

    cli = run_trainer([*arguments, "--trainer.max_epochs=3", "--ckpt_path", path])

    widths = _widths(cli.model)
    assert all(width < before for width, before in zip(widths, _PRUNED_WIDTHS, strict=True) if before > 8)
    validated = run_trainer(["validate", *quiet, *digits, "--ckpt_path", path])
    assert _widths(validated.model) == widths


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("nonsense", "can't be read"),
        pytest.param(
            {"hyper_parameters": {"folder": Path("a")}},
            "add --weights_only false",
            marks=pytest.mark.skipif(
                "weights_only" not in inspect.signature(Trainer.validate).parameters,
                reason="this Lightning's Trainer reads everything",
            ),
        ),
    ],
)
def test_checkpoints_that_cannot_be_read(content, message, capsys):
    if isinstance(content, str):
        Path("net.ckpt").write_text(content)
    else:
        torch.save(content, "net.ckpt")
    assert main(["validate", "--ckpt_path", "net.ckpt"]) == 2
    assert message in capsys.readouterr().err


CALLBACK = "trainer: {callbacks: [{class_path: %s, init_args: {amount: 0.5, epochs: 1, %s}}]}"


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (
            CALLBACK % ("lit_prune.ChanelPruning", ""),
            "trainer.callbacks: there is no class 'lit_prune.ChanelPruning'. Did you mean 'ChannelPruning'",
        ),
        (
            CALLBACK % ("lit_prune.ChannelPruning", "criterion: {class_path: lit_prune.criteria.Magnitud}"),
            "trainer.callbacks: there is no class 'lit_prune.criteria.Magnitud'. Did you mean 'Magnitude'",
        ),
        (
            CALLBACK % ("lit_prune.ChannelPruning", "exclud: [head]"),
            "trainer.callbacks: lit_prune.ChannelPruning takes no argument 'exclud'. Did you mean 'exclude",
        ),
        (CALLBACK % ("lit_prune.Recovery", ""), "trainer.callbacks: lit_prune.Recovery is not a Callback."),
        (CALLBACK % ("ModelChekpoint", ""), "there is no class 'ModelChekpoint'. Did you mean 'ModelCheckpoint"),
        ("model: {class_path: lit_prune.yolo.LitYOLOO}", "model: there is no class 'lit_prune.yolo.LitYOLOO'. Did you"),
        ("data: {class_path: no_such.Data}", "data: no_such.Data can't be imported: No module named 'no_such'."),
        ("trainer: {max_epoch: 3}", "does not accept option 'trainer.max_epoch'"),
        ("trainer: {max_epochs: many}", "Given value: many"),
    ],
)
def test_what_is_wrong_with_a_file_is_told_in_one_message(config, message, capsys):
    Path("train.yaml").write_text(config)
    assert main(["fit", "--config", "train.yaml"]) == 2
    told = capsys.readouterr().err
    assert told.startswith("error: ")
    assert message in told
    assert "usage:" not in told
    assert len(told.splitlines()) < (10 if "Given value" in told else 2)


def _printed(capsys, *arguments):
    with pytest.raises(SystemExit):
        main(["fit", *arguments, "--print_config"])
    return yaml.safe_load(capsys.readouterr().out)


def test_environment_variables_are_arguments(monkeypatch, capsys):
    Path("train.yaml").write_text("trainer:\n  max_epochs: 7\n")
    monkeypatch.setenv("LIT_PRUNE_FIT__CONFIG", "train.yaml")
    assert _printed(capsys)["trainer"]["max_epochs"] == 7
    monkeypatch.setenv("LIT_PRUNE_FIT__TRAINER__MAX_EPOCHS", "5")
    assert _printed(capsys)["trainer"]["max_epochs"] == 5
    assert _printed(capsys, "--trainer.max_epochs=3")["trainer"]["max_epochs"] == 3
    with pytest.raises(SystemExit):
        main(["fit", "--help"])
    assert "LIT_PRUNE_FIT__TRAINER__MAX_EPOCHS" in capsys.readouterr().out
    main([])
    assert "LIT_PRUNE_FIT__TRAINER__MAX_EPOCHS" in capsys.readouterr().out
