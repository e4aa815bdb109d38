"""A run that is killed and resumed ends where an uninterrupted one does."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.slow
def test_twenty_kills_leave_no_trace(tmp_path):
    done = subprocess.run(
        [sys.executable, ROOT / "tests" / "training" / "kill_run.py", tmp_path, "20"],
        env=os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=900,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    result = json.loads(done.stdout.splitlines()[-1])
    assert result["whole"] == result["end"] == "done"
    assert result["equal"]
    assert len(result["killed_at"]) == 20
    # Where the others hit is left to chance.
    assert result["killed_at"].count("event") >= 4
    assert result["killed_at"].count("saving") >= 4
