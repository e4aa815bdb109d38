"""`lit-prune sensitivity`: what it says of a layer is what a network without those channels says."""

import json
from pathlib import Path

import pytest
from filelock import FileLock

from lit_prune.cli import main

PRUNING = ["--trainer.callbacks+=ChannelPruning", "--trainer.callbacks.amount=0.5", "--trainer.callbacks.epochs=[1,3]"]
FILE = Path("sensitivity", "sensitivity.json")


@pytest.fixture
def mine(own_module, quiet) -> list[str]:
    own = ["--model=mine.Net", "--model.width=32", "--data=mine.Data", "--seed_everything=1"]
    return [*quiet, *own, *PRUNING, "--mode", "min"]


def measured(*arguments: str) -> dict:
    assert main(["sensitivity", *arguments]) == 0
    return json.loads(FILE.read_text())


def test_it_is_what_a_sweep_says_of_the_same_cut(mine, capsys):
    found = measured(*mine, "--ratios", "0.25", "0.5")
    assert "loss when one group alone is cut" in capsys.readouterr().out
    assert Path("sensitivity", "sensitivity.png").read_bytes()[:4] == b"\x89PNG"
    for way, repair in (("cut", "false"), ("repaired", "true")):
        folder = f"--out={way}"
        assert main(["sweep", *mine, f"--trainer.callbacks.repair={repair}", "--amounts", "0.25", "0.5", folder]) == 0
        points = json.loads(Path(way, "sweep.json").read_text())["points"]
        scores = {point["amount"]: point["metrics"]["loss"] for point in points}
        assert found["dense"] == pytest.approx(scores["dense"], abs=1e-6)
        for ratio in ("0.25", "0.5"):
            assert found["groups"]["net.0"][ratio][way] == pytest.approx(scores[ratio], abs=1e-4)


def test_what_is_known_is_not_measured_again(mine):
    found = measured(*mine, "--ratios", "0.25", "--without-repair")
    found["groups"]["net.0"]["0.25"]["cut"] = 7.0
    FILE.write_text(json.dumps(found))
    again = measured(*mine, "--ratios", "0.25", "0.5")
    assert again["groups"]["net.0"]["0.25"]["cut"] == 7.0
    assert {way for scores in again["groups"]["net.0"].values() for way in scores} == {"cut", "repaired"}


def test_by_gradients_and_where_rounding_leaves_nothing_to_cut(mine):
    found = measured(*mine, "--trainer.callbacks.criterion=taylor", "--ratios", "0.01", "0.5", "--without-repair")
    assert [*found["groups"]["net.0"]] == ["0.5"]


def test_what_its_event_would_ask_for_does_not_count(mine):
    selection = ["--trainer.callbacks.selection=lit_prune.select.MacsBudget", "--trainer.callbacks.amount=null"]
    limit = "--trainer.callbacks.selection.at_most=1 MACs"
    assert measured(*mine, *selection, limit, "--ratios", "0.5", "--without-repair")["groups"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--ratios", "1.5"], "in (0, 1)"),
        (["--metric", "map"], "'map' is not logged"),
    ],
)
def test_what_is_wrong_is_told(arguments, message, mine, capsys):
    assert main(["sensitivity", *mine, *arguments]) == 2
    assert message in capsys.readouterr().err


def test_a_folder_belongs_to_one(mine, capsys):
    measured(*mine, "--ratios", "0.5", "--without-repair")
    assert main(["sensitivity", *mine, "--model.lr=0.5", "--ratios", "0.5"]) == 2
    assert "was measured by other arguments" in capsys.readouterr().err
    with FileLock(FILE.with_name("in_work.lock")):
        assert main(["sensitivity", *mine, "--ratios", "0.5"]) == 2
    assert "Another process writes to sensitivity" in capsys.readouterr().err
