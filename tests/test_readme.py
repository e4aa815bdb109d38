"""What the README shows must run as it stands, on less data."""

import re
from pathlib import Path

import pytest

from lit_prune.cli import main

_README = Path(__file__).parents[1] / "README.md"


def _blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", _README.read_text(encoding="utf-8"), flags=re.M | re.S)


@pytest.mark.slow
def test_the_ten_lines_run(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (code,) = _blocks("python")
    assert len(code.strip().splitlines()) <= 10
    small = code.replace("DigitScenesDataModule()", "DigitScenesDataModule(scenes=8, val_scenes=4, image_size=64)")
    small = small.replace("max_epochs=24", "max_epochs=24, accelerator='cpu', enable_progress_bar=False")
    assert small.count("scenes=8") == 1
    exec(compile(small, "README.md", "exec"), {})

    before, after = eval(capsys.readouterr().out.strip().splitlines()[-1])
    assert after < before


@pytest.mark.slow
def test_the_yaml_runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (config,) = _blocks("yaml")
    (tmp_path / "train.yaml").write_text(config)
    small = ["--data.scenes=8", "--data.val_scenes=4", "--data.image_size=64", "--trainer.accelerator=cpu"]
    quiet = ["--trainer.logger=false", "--trainer.enable_progress_bar=false"]

    assert main(["fit", "--config", "train.yaml", *small, *quiet]) == 0


def test_every_argument_of_the_callback_is_in_the_table():
    import inspect

    from lit_prune import ChannelPruning
    from lit_prune.criteria import CRITERIA
    from lit_prune.select import SELECTIONS

    rows = set(re.findall(r"^\| `\"?(\w+)\"?` \|", _README.read_text(encoding="utf-8"), flags=re.M))
    assert rows >= set(inspect.signature(ChannelPruning).parameters)
    assert rows >= {*CRITERIA, *SELECTIONS}


def test_its_pictures_are_there():
    pictures = re.findall(r"!\[.*?\]\((.*?)\)", _README.read_text(encoding="utf-8"))
    assert len(pictures) >= 2
    for picture in pictures:
        path = _README.parent / picture
        assert path.read_bytes()[:4] == b"\x89PNG"
        assert path.stat().st_size < 500_000
