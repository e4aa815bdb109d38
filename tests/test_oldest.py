"""What pyproject.toml tells of the packages that lit_prune needs; `make test-oldest` tries whether it is true."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from tests.oldest import PROJECT, floor, floors, requirements


@pytest.mark.parametrize("extra", [None, *PROJECT["optional-dependencies"]])
def test_every_package_has_a_lower_bound(extra):
    extras = [extra] if extra else []
    assert {each.name for each in requirements(*extras)} == set(floors(*extras))


def test_a_package_without_one_is_named():
    with pytest.raises(ValueError, match=r"numpy<3 states no lower bound\. Write numpy>=VERSION"):
        floor(Requirement("numpy<3"))
    assert floor(Requirement("numpy<3,>=1.26")) == "1.26"


def test_the_highest_bound_counts():
    assert "ultralytics" not in floors()
    with_yolo = floors("dev")
    assert with_yolo["ultralytics"] == floors("yolo")["ultralytics"]
    assert with_yolo["lightning"] == floors("yolo")["lightning"] > floors()["lightning"]


def test_the_constraints_are_printed_as_the_makefile_asks_for_them():
    root = Path(__file__).parents[1]
    asked = "-m tests.oldest test"
    assert f"bin/python {asked} " in (root / "Makefile").read_text()
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    printed = subprocess.check_output([sys.executable, *asked.split()], cwd=root, env=environment, text=True)
    assert f"kmedoids=={floors('clusters')['kmedoids']}" in printed.splitlines()
