import shutil
import sys
from pathlib import Path

import pytest

from lit_prune.cli import main


@pytest.fixture(autouse=True)
def _in_a_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def own_module(monkeypatch):
    """A file of the user's, in the working folder."""
    shutil.copy(Path(__file__).with_name("mine.py"), "mine.py")
    monkeypatch.setattr(sys, "path", [entry for entry in sys.path if entry])
    yield
    sys.modules.pop("mine", None)


@pytest.fixture(scope="session")
def quiet() -> list[str]:
    off = ("logger", "enable_progress_bar", "enable_model_summary")
    return ["--trainer.accelerator=cpu", *(f"--trainer.{name}=false" for name in off)]


@pytest.fixture(scope="session")
def digits() -> list[str]:
    """Arguments for so few scenes that a run takes seconds, and two processes have a batch each."""
    return ["--data.scenes=8", "--data.val_scenes=4", "--data.image_size=64", "--data.batch_size=2"]


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory, quiet, digits) -> str:
    """A checkpoint of a LitYOLO that was pruned by the command line."""
    folder = tmp_path_factory.mktemp("pruned")
    pruning = ["--trainer.callbacks+=ChannelPruning", "--trainer.callbacks.amount=0.3", "--trainer.callbacks.epochs=1"]
    run = ["--trainer.max_epochs=2", f"--trainer.default_root_dir={folder}"]
    assert main(["fit", *quiet, *digits, *pruning, *run]) == 0
    (path,) = folder.rglob("*.ckpt")
    return str(path)
