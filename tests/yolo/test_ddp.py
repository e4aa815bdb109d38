"""Two ranks share the images of a YOLODataModule, and score like one."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from lightning.pytorch import Trainer
from PIL import Image

from lit_prune.yolo import LitYOLO
from tests.yolo.ddp_run import data_module, rotated_scores_of, scores_of, settings

ROOT = Path(__file__).parents[2]


def _names(seen, epoch) -> list[str]:
    return [name for number, names, _ in seen if number == epoch for name in names]


@pytest.mark.slow
def test_each_rank_sees_its_own_half_and_both_see_all(digits, tmp_path):
    for number, file in enumerate(sorted((digits.parent / "images" / "val").iterdir())):
        Image.open(file).resize((64, 32) if number % 2 else (32, 64)).save(file)
    environment = {key: value for key, value in os.environ.items() if not key.startswith(("PYTEST", "COV"))}
    done = subprocess.run(
        [sys.executable, ROOT / "tests" / "yolo" / "ddp_run.py", tmp_path, digits],
        env=environment | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "MASTER_ADDR": "127.0.0.1"},
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    first, second = (torch.load(tmp_path / f"rank{rank}.pt") for rank in range(2))

    everything = [f"{number:06d}.png" for number in range(8)]
    orders = []
    for epoch in range(2):
        halves = [_names(rank["seen"]["train"], epoch) for rank in (first, second)]
        assert list(map(len, halves)) == [4, 4]
        assert sorted(halves[0] + halves[1]) == everything
        orders.append(halves[0])
    assert orders[0] != orders[1]
    # Three batches of rectangles: two for the first rank, one for the second, and no image twice.
    batches = [batch for rank in (first, second) for batch in rank["seen"]["val"] if batch[0] == 0]
    assert sorted(name for _, names, _ in batches for name in names) == everything[:6]
    assert {shape for _, _, shape in batches} == {(64, 96), (96, 64), (96, 96)}
    assert all(len(names) == 2 for _, names, _ in batches)
    for name, value in first["weights"].items():
        assert torch.equal(value, second["weights"][name])
    assert first["scores"] == second["scores"]
    alone = {"": scores_of(range(7)), "rotated": rotated_scores_of(range(7))}
    assert all(0.1 < scores["map"] < 0.99 for scores in alone.values()), alone
    for name, scores in first["made up"].items():
        assert scores == second["made up"][name] == pytest.approx(alone["rotated" if "rotated" in name else ""]), name
    (one_rank,) = Trainer(**settings(1)).validate(
        LitYOLO.load_from_checkpoint(tmp_path / "net.ckpt"), data_module(str(digits), 2), verbose=False
    )
    assert one_rank == pytest.approx(first["scores"], abs=1e-6)
