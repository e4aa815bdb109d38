"""Several ranks: they prune the same channels, and go on together."""

import json
import os
import subprocess
import sys
from multiprocessing.pool import ThreadPool
from pathlib import Path

import pytest
import torch

from lit_prune.policy.steps import AFTER, BEFORE
from tests.training.setups import SETUPS

ROOT = Path(__file__).parents[2]


def start(out, ranks=2, launcher=(), variables=None, **options):
    environment = {key: value for key, value in os.environ.items() if not key.startswith(("PYTEST", "COV"))}
    environment |= {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "MASTER_ADDR": "127.0.0.1", **(variables or {})}
    done = subprocess.run(
        [
            sys.executable,
            *launcher,
            ROOT / "tests" / "training" / "ddp_run.py",
            out,
            json.dumps({"ranks": ranks, **options}),
        ],
        env=environment,
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    return done.returncode, done.stdout + done.stderr


def ranks_of(out):
    return [torch.load(file, weights_only=False) for file in sorted(out.glob("rank*.pt"))]


def after_the_last_forward(out):
    """Calibration batches run with each rank's own buffers, of which those of the first count."""
    return [{**each, "trail": each["trail"][-1:], "losses": []} for each in ranks_of(out)]


def assert_equal(first, second):
    for part in ("weights", "optimizer"):
        torch.testing.assert_close(first[part], second[part], rtol=0, atol=0)
    # After each event and step, and the buffers as they enter each forward.
    assert len(first["trail"]) > len(first["losses"])
    assert first["trail"] == second["trail"]
    assert first["digest"] == second["digest"]
    assert first["widths"] == second["widths"]


OPTIONS = {
    "plain": {},
    "static graph": {
        "example": True,
        "optimizer": "sgd",
        "ddp": {"gradient_as_bucket_view": True, "static_graph": True},
    },
    "spawn": {"strategy": "ddp_spawn", "optimizer": "adam", "accept": True},
    "fork": {"strategy": "ddp_fork", "accept": True},
    "communication hook": {"hooked": True},
    "bf16": {
        "trainer": {"precision": "bf16-mixed", "accumulate_grad_batches": 2},
        "ddp": {"find_unused_parameters": True},
    },
    "unused parameters": {"module": "partly used", "optimizer": "sgd", "ddp": {"find_unused_parameters": True}},
    "synchronised norms": {"trainer": {"sync_batchnorm": True}},
}


@pytest.mark.parametrize(
    "options",
    [
        pytest.param(value, id=name, marks=[] if name == "plain" else pytest.mark.slow)
        for name, value in OPTIONS.items()
    ],
)
def test_two_ranks_stay_equal_to_the_bit(tmp_path, options):
    code, output = start(tmp_path, **options)
    assert code == 0, output
    first, second = ranks_of(tmp_path)
    assert_equal(first, second)
    assert first["wrapper"] == "DistributedDataParallel"
    assert first["widths"]["net.2.0.weight"] == (16, 8, 3, 3)
    assert len(first["events"]) == 3
    if "sync_batchnorm" in options.get("trainer", {}):
        assert first["norms"] == ["SyncBatchNorm"] * 3
    for weights, state in zip(first["weights"].values(), first["optimizer"], strict=True):
        assert all(value.shape == weights.shape for value in state.values() if value.dim())
    if "strategy" in options:
        # The main process takes over the shrunk weights.
        assert torch.load(tmp_path / "main0.pt")["net.2.0.weight"] == (16, 8, 3, 3)


@pytest.mark.slow
@pytest.mark.parametrize("name", SETUPS)
def test_two_ranks_agree_on_what_a_step_shows(tmp_path, name):
    code, output = start(tmp_path, module=name, ddp={"find_unused_parameters": True})
    assert code == 0, output
    first, second = ranks_of(tmp_path)
    assert_equal(first, second)
    assert len(first["events"]) == 3
    _, cut, whole = SETUPS[name]
    dense = dict(SETUPS[name][0]().named_parameters())
    assert any(first["weights"][tensor].shape[0] < dense[tensor].shape[0] for tensor in cut)
    assert all(first["weights"][tensor].shape[0] == size for tensor, size in whole.items())


@pytest.mark.slow
def test_two_nodes_started_by_torchrun(tmp_path):
    nodes = []
    for node in range(2):
        launcher = [
            "-m",
            "torch.distributed.run",
            "--nnodes=2",
            f"--node-rank={node}",
            "--nproc-per-node=1",
            "--master-addr=127.0.0.1",
            "--master-port=29731",
        ]
        nodes.append(ThreadPool(1).apply_async(start, (tmp_path, 2, launcher), {"nodes": 2}))
    for node in nodes:
        code, output = node.get(240)
        assert code == 0, output
    assert_equal(*ranks_of(tmp_path))


@pytest.mark.slow
def test_two_nodes_of_slurm(tmp_path):
    """As `srun` starts them: one process a task, each told its place by variables."""
    job = {"SLURM_JOB_ID": "29732", "SLURM_JOB_NAME": "train", "SLURM_NTASKS": "2", "SLURM_NTASKS_PER_NODE": "1"}
    job |= {"SLURM_NNODES": "2", "SLURM_NODELIST": "127.0.0.1", "SLURM_LOCALID": "0", "MASTER_PORT": "29732"}
    nodes = []
    for node in range(2):
        place = job | {"SLURM_PROCID": str(node), "SLURM_NODEID": str(node)}
        nodes.append(ThreadPool(1).apply_async(start, (tmp_path,), {"variables": place, "nodes": 2}))
    for node in nodes:
        code, output = node.get(240)
        assert code == 0, output
    first, second = ranks_of(tmp_path)
    assert_equal(first, second)
    assert len(first["events"]) == 3


@pytest.mark.slow
def test_two_ranks_that_are_resumed_end_where_they_would_have(tmp_path):
    code, output = start(tmp_path, saves=True)
    assert code == 0, output
    whole = ranks_of(tmp_path)[0]
    # Between the first event and the second.
    code, output = start(tmp_path, resumes=str(tmp_path / "epoch=1.ckpt"))
    assert code == 0, output
    first, second = ranks_of(tmp_path)
    assert_equal(first, second)
    assert len(first["losses"]) < len(whole["losses"])
    for part in ("weights", "buffers", "optimizer"):
        torch.testing.assert_close(first[part], whole[part], rtol=0, atol=0)


@pytest.mark.slow
def test_what_one_rank_takes_back_all_take_back(tmp_path):
    # On rank 1 the score has fallen by 0.3 only.
    recovery = {"max_drop": 0.4, "monitor": "score"}
    code, output = start(tmp_path, module="falling", epochs=[1, 3], recovery=recovery)
    assert code == 0, output
    assert "was taken back" in output
    first, second = ranks_of(tmp_path)
    assert_equal(first, second)
    assert first["widths"]["net.2.0.weight"] == (32, 16, 3, 3)


@pytest.mark.slow
def test_spawned_processes_are_refused_where_the_main_one_could_not_load_the_weights(tmp_path):
    code, output = start(tmp_path, strategy="ddp_spawn")
    assert code != 0
    assert "Call `lit_prune.accept_pruned(model)` before `fit`" in output


@pytest.mark.slow
def test_ranks_with_other_scores_take_those_of_rank_zero(tmp_path):
    code, output = start(tmp_path, criterion="rank")
    assert code == 0, output
    assert_equal(*ranks_of(tmp_path))


@pytest.mark.slow
def test_two_ranks_look_at_the_same_activations(tmp_path):
    code, output = start(tmp_path, criterion="obs", epochs=[1, 2])
    assert code == 0, output
    assert_equal(*after_the_last_forward(tmp_path))
    assert len(ranks_of(tmp_path)[0]["events"]) == 2


@pytest.mark.slow
def test_the_clock_of_rank_zero_decides_for_all(tmp_path):
    code, output = start(tmp_path, selection="clock", epochs=[1, 2])
    assert code == 0, output
    first, second = ranks_of(tmp_path)
    assert_equal(first, second)
    for rank in (first, second):
        assert all(event["findings"]["clock_ms"] <= event["findings"]["allowed ms"] for event in rank["events"])
        assert len(rank["events"]) == 2


@pytest.mark.slow
def test_a_rank_that_chooses_otherwise_is_caught_by_its_digest(tmp_path):
    code, output = start(tmp_path, **{"chooses otherwise": True})
    assert code != 0
    assert "Ranks [1] hold another plan than rank 0" in output
    assert not list(tmp_path.glob("rank*.pt"))


@pytest.mark.parametrize(
    "place",
    [
        pytest.param(place, marks=[] if place == "criterion" else pytest.mark.slow)
        for place in ("first look", "trace", "criterion", "selection", "rehearsal", "check before the cut", "cut")
    ],
)
def test_a_rank_that_fails_fails_all_at_once_with_its_error(tmp_path, place):
    # A rank that waited for the other would run into the time limit.
    code, output = start(tmp_path, fails=place)
    assert code != 0
    assert f"ValueError: this rank fails in {place}" in output
    assert f"Rank 1 could not prune, so none does: ValueError: this rank fails in {place}" in output


@pytest.mark.parametrize(
    "step",
    [
        # What ranks do by themselves fails within it: see below.
        pytest.param(step, marks=[] if step in ("rehearse", "wrap") else pytest.mark.slow)
        for step in (*BEFORE, *AFTER)
        if step != "measure"
    ],
)
def test_a_step_that_fails_on_one_rank_ends_the_event_on_all(tmp_path, step):
    code, output = start(tmp_path, saves=True, **{"fails in step": step})
    assert code != 0
    assert f"ValueError: this rank fails in {step}" in output
    if step in BEFORE:
        assert "failed, and the network is as it was. Rank 1 could not prune, so none does" in output
        assert "HalfPrunedError" not in output
    else:
        # On both ranks, each of which says so.
        assert output.count("training can't go on with it. Resume from ") >= 2
        assert "epoch=0.ckpt" in output


@pytest.mark.slow
def test_a_rank_that_fails_in_its_share_of_the_data_fails_all(tmp_path):
    code, output = start(tmp_path, fails="activations", selection="clusters")
    assert code != 0
    assert "Rank 1 could not calibrate: this rank fails in activations" in output


@pytest.mark.slow
def test_a_rank_that_fails_lets_all_go_on_where_they_should(tmp_path):
    code, output = start(tmp_path, fails="check before the cut", epochs=[1, 2], on_error="continue")
    assert code == 0, output
    assert "failed, and the network is as it was. Rank 1 could not prune" in output
    first, second = ranks_of(tmp_path)
    assert_equal(first, second)
    assert [event["epoch"] for event in first["events"]] == [2]


@pytest.mark.slow
def test_one_process_and_two_choose_the_same_channels(tmp_path):
    kept = []
    for ranks in (1, 2):
        (tmp_path / str(ranks)).mkdir()
        # BatchNorm sees half the batch on each of two ranks, so only the first decision rests on equal weights.
        code, output = start(tmp_path / str(ranks), ranks=ranks, epochs=[0], example=True, optimizer="sgd")
        assert code == 0, output
        kept.append(ranks_of(tmp_path / str(ranks))[0]["kept"])
    torch.testing.assert_close(kept[0], kept[1], rtol=0, atol=0)


@pytest.mark.slow
def test_one_process_and_two_of_the_same_global_batch_choose_alike_at_every_event(tmp_path):
    kept = []
    for ranks in (1, 2):
        (tmp_path / str(ranks)).mkdir()
        code, output = start(tmp_path / str(ranks), ranks=ranks, module="plain", optimizer="sgd")
        assert code == 0, output
        result = ranks_of(tmp_path / str(ranks))[0]
        assert len(result["events"]) == 3
        kept.append(result["kept"])
    torch.testing.assert_close(kept[0], kept[1], rtol=0, atol=0)


@pytest.mark.slow
def test_two_ranks_repair_alike_and_as_one_process_does(tmp_path):
    found = []
    for ranks in (1, 2):
        (tmp_path / str(ranks)).mkdir()
        options = {"ranks": ranks, "module": "plain", "optimizer": "sgd", "epochs": [0], "example": True}
        code, output = start(tmp_path / str(ranks), repair=True, **options)
        assert code == 0, output
        found.append(ranks_of(tmp_path / str(ranks)))
    assert_equal(*found[1])
    for one, two in zip(found[0][0]["events"], found[1][0]["events"], strict=True):
        assert one["repair"]
        assert one["repair"] == two["repair"]


@pytest.mark.slow
def test_gradients_are_those_of_all_ranks(tmp_path):
    for repair in (False, True):
        code, output = start(tmp_path, criterion="taylor", repair=repair)
        assert code == 0, output
        first, second = after_the_last_forward(tmp_path) if repair else ranks_of(tmp_path)
        assert_equal(first, second)
        assert [event["channels"] for event in first["events"]] == [event["channels"] for event in second["events"]]


@pytest.mark.slow
def test_pruned_before_the_strategy_wraps_it_a_network_trains_under_fsdp(tmp_path):
    code, output = start(tmp_path, strategy="fsdp2", example=True, epochs="before_wrap")
    assert code == 0, output
    first, second = ranks_of(tmp_path)
    assert first["digest"] == second["digest"]
    assert first["widths"]["net.2.0.weight"] == (16, 8, 3, 3)


@pytest.mark.slow
def test_during_training_fsdp_is_refused_and_told_what_to_do(tmp_path):
    code, output = start(tmp_path, strategy="fsdp2", example=True)
    assert code != 0
    assert "can't prune during training under ModelParallelStrategy" in output
    assert "epochs='before_wrap'" in output
