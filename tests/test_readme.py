"""The README names what there is; `test_documents.py` runs what it shows."""

import json
import re
import runpy
from pathlib import Path

_README = Path(__file__).parents[1] / "README.md"


def test_every_argument_of_the_callback_is_in_the_table():
    import inspect

    from lit_prune import ChannelPruning
    from lit_prune.criteria import CRITERIA
    from lit_prune.select import SELECTIONS

    rows = set(re.findall(r"^\| `\"?(\w+)\"?` \|", _README.read_text(encoding="utf-8"), flags=re.M))
    assert rows >= set(inspect.signature(ChannelPruning).parameters) - {"before_wrap"}
    assert rows >= {*CRITERIA, *SELECTIONS}


def test_its_pictures_are_there():
    images = re.findall(r"!\[.*?\]\((.*?)\)", _README.read_text(encoding="utf-8"))
    assert len(images) >= 2
    for image in images:
        path = _README.parent / image
        assert path.read_bytes()[:4] == b"\x89PNG"
        assert path.stat().st_size < 500_000


def test_its_numbers_are_those_of_the_files():
    headline = runpy.run_path(str(_README.parent / "docs" / "refresh.py"))["headline"]
    files = ("docs/report.json", "benchmarks/demo_baseline.json")
    text = headline(*(json.loads((_README.parent / file).read_text(encoding="utf-8")) for file in files))
    assert text in _README.read_text(encoding="utf-8")


def test_the_tables_of_budgets_are_those_of_the_file():
    root = _README.parent
    made = runpy.run_path(str(root / "benchmarks" / "accuracy" / "budget_tables.py"))
    text = (root / "docs" / "accuracy.md").read_text(encoding="utf-8")
    results = json.loads((root / "benchmarks" / "budgets.json").read_text(encoding="utf-8"))
    assert made["clock_table"](results) in text
    for key, result in results.items():
        if key.startswith("accuracy"):
            assert made["accuracy_table"](result) in text
    assert f"{results['solver']['searches']} small" in text
    assert made["memory_table"](results["memory"]) in text
    repairs = json.loads((root / "benchmarks" / "repair.json").read_text(encoding="utf-8"))
    assert made["repair_table"](repairs) in text
    studies = json.loads((root / "benchmarks" / "studies.json").read_text(encoding="utf-8"))
    assert made["sweeps_table"](studies["sweeps"]) in text


def test_the_tables_of_accuracy_are_those_of_the_file():
    root = _README.parent
    markdown = runpy.run_path(str(root / "benchmarks" / "accuracy" / "tables.py"))["markdown"]
    text = (root / "docs" / "accuracy.md").read_text(encoding="utf-8")
    results = json.loads((root / "benchmarks" / "accuracy.json").read_text(encoding="utf-8"))
    assert len(results) >= 3
    for result in results.values():
        assert markdown(result) in text
