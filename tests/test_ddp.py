"""Several ranks: they prune the same channels, and go on together."""

import json
import os
import subprocess
import sys
from multiprocessing.pool import ThreadPool
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parents[1]


def start(out, ranks=2, launcher=(), **options):
    environment = {key: value for key, value in os.environ.items() if not key.startswith(("PYTEST", "COV"))}
    environment |= {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "MASTER_ADDR": "127.0.0.1"}
    done = subprocess.run(
        [sys.executable, *launcher, ROOT / "tests" / "ddp_run.py", out, json.dumps({"ranks": ranks, **options})],
        env=environment,
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    return done.returncode, done.stdout + done.stderr


def ranks_of(out):
    return [torch.load(file, weights_only=False) for file in sorted(out.glob("rank*.pt"))]


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
    for weights, state in zip(first["weights"].values(), first["optimizer"], strict=True):
        assert all(value.shape == weights.shape for value in state.values() if value.dim())
    if "strategy" in options:
        # The main process takes over the shrunk weights.
        assert torch.load(tmp_path / "main0.pt")["net.2.0.weight"] == (16, 8, 3, 3)


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
def test_pruned_before_the_strategy_wraps_it_a_network_trains_under_fsdp(tmp_path):
    code, output = start(tmp_path, strategy="fsdp2", example=True, epochs=0, before_wrap=True)
    assert code == 0, output
    first, second = ranks_of(tmp_path)
    assert first["digest"] == second["digest"]
    assert first["widths"]["net.2.0.weight"] == (16, 8, 3, 3)


@pytest.mark.slow
def test_during_training_fsdp_is_refused_and_told_what_to_do(tmp_path):
    code, output = start(tmp_path, strategy="fsdp2", example=True)
    assert code != 0
    assert "can't prune during training under ModelParallelStrategy" in output
    assert "before_wrap=True" in output
