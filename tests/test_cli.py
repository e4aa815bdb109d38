import json

import pytest
import torch

from lit_prune.cli import main
from lit_prune.yolo import LitYOLO

_SMALL = ["--data.scenes", "8", "--data.val_scenes", "4", "--data.image_size", "64", "--data.batch_size", "4"]
_PRUNED = ["--trainer.callbacks+=ChannelPruning", "--trainer.callbacks.amount=0.3"]
_QUIET = ["--trainer.logger", "false", "--trainer.enable_progress_bar", "false", "--trainer.accelerator", "cpu"]


@pytest.fixture(autouse=True)
def _in_a_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def _exit(*arguments: str) -> int:
    with pytest.raises(SystemExit) as stopped:
        main(arguments)
    return int(stopped.value.code or 0)


@pytest.mark.parametrize(
    "command", [(), ("demo",), ("inspect",), ("export",), ("compare",), ("digits",), ("fit",), ("predict",)]
)
def test_help(command, capsys):
    assert _exit(*command, "--help") == 0
    text = capsys.readouterr().out
    assert "usage: lit-prune" in text
    if not command:
        assert all(
            name in text for name in ("demo", "inspect", "fit", "validate", "test", "predict", "export", "compare")
        )


@pytest.mark.parametrize("arguments", [(), ("prune",), ("inspect",), ("export", "net.ckpt")])
def test_missing_and_unknown_commands(arguments, capsys):
    assert _exit(*arguments) == 2
    assert "usage: lit-prune" in capsys.readouterr().err


def test_inspect_prints_groups_and_totals(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "140")
    assert main(["inspect", "torchvision:resnet18", "--image-size", "64"]) == 0

    text = capsys.readouterr().out
    assert "torchvision:resnet18 at 64×64" in text
    assert "layer1.0.conv1" in text
    assert "fc" in text
    assert "multiply-adds" in text


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["inspect", "torchvision:resnt18"], "Did you mean resnet18"),
        (["inspect", "yolo8n.yaml"], "Did you mean yolov8n.yaml"),
        (["export", "missing.ckpt", "--out", "net.pt"], "There is no file 'missing.ckpt'"),
        (["compare", "missing.pt", "net.pt", "--data", "data.yaml"], "There is no file 'missing.pt'"),
        (["digits", "digits", "--task", "boxes"], "task must be one of detect, segment"),
        (["demo", "--epochs", "3"], "needs at least"),
        (["demo", "--amount", "1.5", "--epochs", "8"], "amount must be a share in (0, 1)"),
    ],
)
def test_mistakes_are_told_without_a_traceback(arguments, message, capsys):
    assert main(arguments) == 2

    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert message in error
    assert "Traceback" not in error


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--data.scenes", "0"], "scenes must be at least 1, but got 0"),
        (["--model.optimizer", "adamw", "--model.lr", "-1"], "lr must be positive"),
        (
            [*_SMALL, *_PRUNED, "--trainer.callbacks.epochs=9", "--trainer.max_epochs=2"],
            "goes beyond the run",
        ),
    ],
)
def test_mistakes_within_fit(arguments, message, capsys):
    assert main(["fit", *_QUIET, *arguments]) == 2
    assert message in capsys.readouterr().err


def test_other_errors_keep_their_traceback(monkeypatch):
    def fail(*_):
        return json.loads("{")

    monkeypatch.setattr("lit_prune.cli.run_inspect", fail)
    with pytest.raises(json.JSONDecodeError):
        main(["inspect", "yolov8n.yaml"])


def test_fit_prunes_and_export_and_validate_read_its_checkpoint(tmp_path, capsys):
    arguments = [*_PRUNED, "--trainer.callbacks.epochs=1", "--trainer.max_epochs=2"]
    assert main(["fit", *_QUIET, *_SMALL, *arguments]) == 0
    (checkpoint,) = tmp_path.rglob("*.ckpt")

    assert main(["validate", *_QUIET, *_SMALL, "--ckpt_path", str(checkpoint)]) == 0
    assert "val/map" in capsys.readouterr().out
    assert main(["predict", *_QUIET, *_SMALL, "--ckpt_path", str(checkpoint)]) == 0
    assert len(list((tmp_path / "predictions").glob("*.png"))) == 4
    assert main(["export", str(checkpoint), "--out", "net.pt"]) == 0
    widths = [LitYOLO("net.pt").model.model[k].conv.out_channels for k in (0, 1)]
    assert widths == [8, 24]
    stored = torch.load(checkpoint, weights_only=True)
    assert stored["callbacks"]["ChannelPruning"]["events"][0]["channels"]["model.model.1.conv"] == [32, 24]
