"""The core dependencies are enough for networks of one's own.

`make test-oldest` runs this where nothing else is installed; elsewhere the rest is hidden.
"""

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]

CODE = """
import sys
from importlib.util import find_spec
from pathlib import Path
from tests.absent import hide_extras

absent = hide_extras()
extras = "cv2 kmedoids kneed matplotlib onnx PIL sklearn timm torchvision ultralytics".split()
assert not [name for name in extras if find_spec(name)]
from tests import core_run

core_run.everything_is_imported()
core_run.a_fit_prunes_and_its_checkpoint_loads(Path(sys.argv[1]))
core_run.the_command_line_takes_classes_of_ones_own(Path(sys.argv[1]))
assert not absent & sys.modules.keys()
"""


def test_the_core_dependencies_are_enough(tmp_path):
    done = subprocess.run(
        [sys.executable, "-c", CODE, tmp_path],
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    for extra in ("clusters", "digits", "yolo"):
        assert f"pip install 'lit-prune[{extra}]'" in done.stderr
