"""What the pages of docs/ show must run, and print what they say."""

from __future__ import annotations

import doctest
import re
from collections.abc import Iterator
from pathlib import Path
from unittest import mock

import pytest

from lit_prune import attributes
from lit_prune.cli import main
from lit_prune.graph.rules import RULES

_DOCS = Path(__file__).parents[1] / "docs"
_FLAGS = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE


def _blocks(page: str, language: str) -> list[str]:
    text = (_DOCS / page).read_text(encoding="utf-8")
    return re.findall(rf"^```{language}\n(.*?)^```$", text, flags=re.M | re.S)


@pytest.fixture
def _tables() -> Iterator[None]:
    with mock.patch.dict(RULES), mock.patch.dict(attributes._ATTRIBUTES):
        yield


@pytest.mark.usefixtures("_tables")
def test_the_examples_of_extending_print_what_they_say() -> None:
    report: list[str] = []
    session = doctest.DocTestParser().get_doctest(
        "\n".join(_blocks("extending.md", "python")), {}, "extending.md", "extending.md", 0
    )
    results = doctest.DocTestRunner(optionflags=_FLAGS).run(session, out=report.append)
    assert results.failed == 0, "".join(report)
    assert results.attempted > 20


def test_the_command_of_extending_runs(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    (block,) = _blocks("extending.md", "sh")
    program, *arguments = block.partition("#")[0].split()
    assert program == "lit-prune"
    assert main(arguments) == 0
    printed = capsys.readouterr().out
    assert "reaches the network's output" in printed
    assert "operations without a rule" in printed


def test_extending_names_every_reason_as_the_graph_gives_it() -> None:
    reasons = re.findall(r"^\| `(.+?)`", (_DOCS / "extending.md").read_text(encoding="utf-8"), flags=re.M)
    source = "".join(path.read_text(encoding="utf-8") for path in (_DOCS.parent / "lit_prune" / "graph").glob("*.py"))
    given = [reason.strip(". :") for reason in reasons[:4]]
    assert len(given) == 4
    assert [reason for reason in given if reason not in source] == []
