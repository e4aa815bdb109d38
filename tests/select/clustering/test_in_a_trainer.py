"""By what channels see, inside of a Trainer: the things that could not be done before, and the same channels always."""

import os
import runpy
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from lit_prune import ChannelPruning
from lit_prune.activations import Calibration
from lit_prune.errors import PruningError
from lit_prune.select import ClusterSelection
from tests.toys import Classifier, loader, trainer

ROOT = Path(__file__).parents[3]


def example(name):
    return runpy.run_path(str(ROOT / "examples" / f"{name}.py"))["main"]()


def test_blocks_1_2_and_3_are_pruned():
    pruning = example("prune_several_blocks")
    assert [event["epoch"] for event in pruning.events] == [1, 2]
    widths = pruning.events[-1]["channels"]
    assert {name.split(".")[2] for name in widths} == {"1", "2", "3"}
    dense = pruning.events[0]["channels"]
    assert all(after == dense[name][0] / 2 for name, (_, after) in widths.items())


def test_a_layer_that_depends_on_a_pruned_one_is_pruned():
    pruning = example("prune_after_pruned")
    first, second = (event["channels"] for event in pruning.events)
    assert first == {"model.model.1.conv": [32, 16]}
    assert {name: tuple(widths) for name, widths in second.items()} == {
        "model.model.2.cv1.conv": (16, 8),
        "model.model.2.m.0.cv2.conv": (16, 8),
    }
    # The weight between them has lost inputs first, outputs then.
    kept = pruning.plan.kept["model.model.2.cv1.conv.weight"]
    assert {dim: len(indices) for dim, indices in kept.items()} == {0: 16, 1: 16}


def test_block_3_is_seen_after_block_1_was_pruned(capsys):
    maps = example("activations_after_pruning")
    shown = capsys.readouterr().out
    assert "expected input[4, 32, 16, 16] to have 16 channels, but got 32 channels instead" in shown
    assert maps["model.2.cv1.conv"].shape == (4, 32, 16, 16)
    assert maps["model.3.conv"].shape == (4, 64, 8, 8)


def kept(batch_size=8, amount=0.5, selection=None):
    torch.manual_seed(0)
    selection = selection or ClusterSelection(calibration=Calibration(batches=4, batch_size=6))
    callback = ChannelPruning(amount, 0, selection=selection, round_to=1, verbose=False)
    module = Classifier(width=24)
    module.example_input_array = torch.zeros(1, 3, 8, 8)
    trainer(callback, max_epochs=1).fit(module, loader(48, batch_size, shuffle=True))
    return callback


@pytest.mark.parametrize("amount", [0.5, None])
def test_the_same_seed_gives_the_same_channels_over_runs_and_batch_sizes(amount):
    first = kept(amount=amount)
    assert first.plan
    for batch_size in (8, 5, 48):
        assert kept(batch_size, amount=amount).plan == first.plan


def test_training_batches_are_not_what_is_looked_at():
    # Another order of training changes nothing: pruning comes before the first step.
    torch.manual_seed(99)
    assert kept().plan == kept(16).plan


RANKS = """
import sys, torch
sys.path[:0] = [{root!r}]
torch.set_num_threads(1)
from lit_prune import ChannelPruning
from lit_prune.activations import Calibration
from lit_prune.select import ClusterSelection
from tests.toys import Classifier, loader, trainer

torch.manual_seed(0)
selection = ClusterSelection(calibration=Calibration(batches=5, batch_size=6))
callback = ChannelPruning(0.5, 0, selection=selection, round_to=1, verbose=False)
module = Classifier(width=24)
module.example_input_array = torch.zeros(1, 3, 8, 8)
ranks = {ranks}
run = trainer(callback, max_epochs=1, devices=ranks, strategy="ddp" if ranks > 1 else "auto")
run.fit(module, loader(48, 16 // ranks))
torch.save(callback.plan.state_dict(), "{out}/" + f"{{ranks}}-{{run.global_rank}}.pt")
"""


@pytest.mark.slow
def test_the_same_seed_gives_the_same_channels_on_one_and_two_processes(tmp_path):
    environment = {key: value for key, value in os.environ.items() if not key.startswith(("PYTEST", "COV"))}
    environment |= {"OMP_NUM_THREADS": "1", "MASTER_ADDR": "127.0.0.1", "PYTHONPATH": str(ROOT)}
    for ranks in (1, 2):
        script = tmp_path / f"ranks{ranks}.py"
        script.write_text(RANKS.format(root=str(ROOT), ranks=ranks, out=tmp_path))
        subprocess.run([sys.executable, str(script)], env=environment, check=True, timeout=240)
    plans = [torch.load(tmp_path / f"{name}.pt") for name in ("1-0", "2-0", "2-1")]
    assert plans[0]["kept"]
    for other in plans[1:]:
        torch.testing.assert_close(other["kept"], plans[0]["kept"], rtol=0, atol=0)


def test_a_decision_can_be_drawn_after_the_run():
    from lit_prune.select.clustering.plots import draw_decision

    selection = ClusterSelection(calibration=Calibration(batches=4, batch_size=6))
    callback = kept(selection=selection)
    assert set(selection.decisions) == set(callback.events[0]["channels"])
    name, decision = next(iter(selection.decisions.items()))
    assert draw_decision(decision, name).get_suptitle().startswith(name)


def test_nan_activations_end_the_event_and_change_nothing():
    torch.manual_seed(0)
    module = Classifier()
    module.example_input_array = torch.zeros(1, 3, 8, 8)
    module.net[1].conv.weight.data[3] = float("nan")
    callback = ChannelPruning(0.5, 0, selection="clusters", verbose=False)
    with pytest.raises(PruningError, match=r"layer net\.1\.conv are NaN or infinite \(first in channel 3\)"):
        trainer(callback, max_epochs=1).fit(module, loader())
    assert module.net[0][0].out_channels == 16
