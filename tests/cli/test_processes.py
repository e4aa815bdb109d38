"""Every command that runs a Trainer, in two processes, however it was started."""

import os
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parents[2]
STARTS = {
    "script": [str(Path(sysconfig.get_path("scripts")) / "lit-prune")],
    "module": [sys.executable, "-m", "lit_prune"],
}
QUICK = {("fit", "script"), ("predict", "module")}
CASES = [
    pytest.param(command, start, marks=[] if (command, start) in QUICK else pytest.mark.slow, id=f"{command}-{start}")
    for command in ("fit", "validate", "test", "predict")
    for start in STARTS
]


def run(start, *arguments):
    environment = {key: value for key, value in os.environ.items() if not key.startswith(("PYTEST", "COV"))}
    environment |= {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "MASTER_ADDR": "127.0.0.1"}
    done = subprocess.run(
        [*STARTS[start], *arguments], env=environment, capture_output=True, text=True, timeout=240, check=False
    )
    return done.returncode, done.stdout + done.stderr


@pytest.mark.parametrize(("command", "start"), CASES)
def test_two_processes(command, start, quiet, digits, request):
    two = ["--trainer.devices=2", "--trainer.strategy=ddp"]
    if command == "fit":
        pruning = ["--trainer.callbacks+=ChannelPruning", "--trainer.callbacks.amount=0.3"]
        rest = [*pruning, "--trainer.callbacks.epochs=1", "--trainer.max_epochs=2"]
    else:
        rest = ["--ckpt_path", request.getfixturevalue("checkpoint")]

    code, output = run(start, command, *quiet, *digits, *two, *rest)

    assert code == 0, output
    assert "MEMBER: 2/2" in output
    if command == "fit":
        (saved,) = Path().rglob("*.ckpt")
        assert len(torch.load(saved, weights_only=True)["callbacks"]["ChannelPruning"]["events"]) == 1
    elif command == "predict":
        assert len(list(Path("predictions").glob("*.png"))) == 4
        assert "Written: 4 images" in output
    else:
        assert f"{'val' if command == 'validate' else 'test'}/map" in output


@pytest.mark.slow
@pytest.mark.parametrize("start", STARTS)
def test_a_mistake_in_two_processes_ends_both(start, quiet, digits):
    pruning = ["--trainer.callbacks+=ChannelPruning", "--trainer.callbacks.amount=0.3", "--trainer.callbacks.epochs=9"]
    code, output = run(start, "fit", *quiet, *digits, "--trainer.devices=2", "--trainer.max_epochs=2", *pruning)
    assert code == 2, output
    assert "goes beyond the run" in output
    assert "Traceback" not in output
