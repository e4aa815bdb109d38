import json
from importlib.metadata import version

import pytest
import torch

from lit_prune.cli import main
from lit_prune.yolo import build_detector
from lit_prune.yolo.export import export_detector

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


def test_alone_it_prints_its_help(capsys):
    assert main([]) == 0
    assert "usage: lit-prune" in capsys.readouterr().out


def test_version(capsys):
    assert _exit("--version") == 0
    assert capsys.readouterr().out.split() == ["lit-prune", version("lit-prune")]


@pytest.mark.parametrize("command", ["demo", "inspect", "export", "compare", "digits"])
def test_defaults_are_told_of_what_has_one(command, capsys):
    _exit(command, "--help")
    text = capsys.readouterr().out
    assert "default: None" not in text
    assert "default: False" not in text
    assert (command == "inspect") != ("(default: " in text)
    # A default of 0 is one as well.
    assert ("--seed" in text) == ("(default: 0)" in text)


@pytest.mark.parametrize("arguments", [("prune",), ("inspect",), ("export", "net.ckpt")])
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


def test_profile_measures_once_under_the_same_conditions(capsys, monkeypatch, tmp_path):
    monkeypatch.setenv("COLUMNS", "140")
    arguments = ["profile", "torchvision:squeezenet1_1", "--image-size", "32", "--networks", "8"]
    arguments += ["--out", str(tmp_path / "device.json")]
    assert main(arguments) == 0
    text = capsys.readouterr().out
    assert "features.0" in text
    assert "onnxruntime" in text
    before = (tmp_path / "device.json").read_bytes()
    assert main(arguments) == 0
    assert "has been measured under the same conditions" in capsys.readouterr().out
    assert (tmp_path / "device.json").read_bytes() == before
    # Another network of the same class is measured.
    assert main([arguments[0], "torchvision:squeezenet1_0", *arguments[2:]]) == 0
    assert "under the same conditions" not in capsys.readouterr().out
    assert (tmp_path / "device.json").read_bytes() != before


def test_profile_writes_a_script_for_another_device(capsys, tmp_path):
    script = tmp_path / "measure.py"
    arguments = ["profile", "torchvision:squeezenet1_1", "--image-size", "32", "--networks", "8"]
    assert main([*arguments, "--script", str(script)]) == 0
    assert "python measure.py --out measured.json" in capsys.readouterr().out
    compile(script.read_text(), "measure.py", "exec")
    assert main([*arguments, "--measured", str(tmp_path / "none.json")]) == 2
    assert "run the script on the device first" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["profile", "torchvision:resnet18", "--runtime", "tensorrt"], "runtime must be one of 'torch', 'cudagraphs'"),
        (["profile", "torchvision:resnet18", "--precision", "float16"], "onnxruntime runs on the CPU"),
        (
            ["profile", "torchvision:resnet18", "--runtime", "torch", "--precision", "half"],
            "'bfloat16', but got 'half'",
        ),
        (["profile", "torchvision:resnet18", "--script", "a.py", "--measured", "b.json"], "give one"),
        (["profile", "torchvision:resnet18", "--networks", "2"], "networks"),
        (["inspect", "torchvision:resnt18"], "Did you mean resnet18"),
        (["inspect", "yolo8n.yaml"], "Did you mean yolov8n.yaml"),
        (["export", "missing.ckpt", "--out", "net.pt"], "There is no file 'missing.ckpt'"),
        (["compare", "missing.pt", "net.pt", "--data", "data.yaml"], "There is no file 'missing.pt'"),
        (["inspect", "missing.ckpt"], "There is no file 'missing.ckpt'"),
        (["inspect", "yolov8n.yaml", "--image-size", "100"], "must be a multiple of 32, the network's stride, but got"),
        (["digits", "digits", "--task", "boxes"], "task must be one of 'detect', 'segment'"),
        (["demo", "--cut", "30"], "cut must be a ratio"),
        (["demo", "--amount", "1.5", "--epochs", "8"], "amount must be a ratio in (0, 1)"),
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

    monkeypatch.setattr("lit_prune.cli.commands.run_inspect", fail)
    with pytest.raises(json.JSONDecodeError):
        main(["inspect", "yolov8n.yaml"])


def test_an_interrupt_ends_it_without_a_traceback(monkeypatch, capsys):
    def interrupt(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr("lit_prune.cli.commands.run_inspect", interrupt)
    assert main(["inspect", "yolov8n.yaml"]) == 130
    assert capsys.readouterr().err == "interrupted\n"


def test_a_quantized_network_is_refused_in_a_sentence(tmp_path, capsys):
    network = build_detector("yolov8n.yaml", num_classes=2)
    export_detector(network, "net.pt")
    stored = torch.load("net.pt", weights_only=False)
    torch.save({**stored, "modelopt": {"modelopt_state_dict": []}}, "qat.pt")
    stored["model"].model[0].conv = torch.ao.nn.quantized.Conv2d(3, 16, 3)
    torch.save(stored, "quantized.pt")

    for name in ("qat.pt", "quantized.pt"):
        for arguments in (
            ["inspect", name],
            ["export", name, "--out", "net.onnx", "--format", "onnx"],
            ["compare", "net.pt", name, "--data", "data.yaml"],
            ["fit", "--model.model", name],
        ):
            assert main(arguments) == 2
            assert f"error: '{name}' holds a quantized network" in capsys.readouterr().err
    assert not (tmp_path / "net.onnx").exists()


def test_a_command_that_is_misspelt_is_told_the_nearest_of_all(capsys):
    with pytest.raises(SystemExit) as stopped:
        main(["fitt"])
    assert stopped.value.code == 2
    assert "error: there is no command 'fitt'. Did you mean 'fit'" in " ".join(capsys.readouterr().err.split())


@pytest.mark.parametrize("command", ["fit", "validate", "test", "predict"])
def test_a_checkpoint_that_is_not_there_is_named(command, capsys, tmp_path):
    assert main([command, "--model.model", "yolov8n.yaml", "--ckpt_path", str(tmp_path / "lost.ckpt")]) == 2
    assert "error: There is no checkpoint" in " ".join(capsys.readouterr().err.split())
