"""What the documents and examples show runs as it is written."""

import re
import shutil
import subprocess
import sys

import pytest

from tests.documents import DOCUMENTS, ROOT, blocks, commands, environment, file_of


def _run(tmp_path, *command):
    """Run in an empty folder, but for what a clone of the repository has beside the package."""
    folder = tmp_path / "folder"
    folder.mkdir()
    for name in ("configs", "examples"):
        shutil.copytree(ROOT / name, folder / name)
    done = subprocess.run(
        command, cwd=folder, env=environment(tmp_path), capture_output=True, text=True, timeout=1800, check=False
    )
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]
    return folder, done.stdout


@pytest.mark.parametrize("document", ["README.md", "docs/extending.md", "docs/parts.md"])
def test_a_short_document_runs(document, tmp_path):
    _run(tmp_path, sys.executable, "-m", "tests.documents", document, "--in-process")


@pytest.mark.slow
@pytest.mark.parametrize("document", DOCUMENTS)
def test_a_document_runs_through_the_shell(document, tmp_path):
    folder, _ = _run(tmp_path, sys.executable, "-m", "tests.documents", document)
    written = {path.name for path in folder.iterdir()}
    if document == "README.md":
        assert written >= {"train.yaml", "trained", "pruned.onnx", "digits"}
    if document == "docs/yolo.md":
        assert written >= {"dense.pt", "pruned.pt", "pruned.onnx", "comparison", "poses"}


@pytest.mark.parametrize("document", DOCUMENTS)
def test_every_block_can_be_run(document):
    for language, text in blocks(document):
        assert language in ("sh", "python", "yaml")
        if language == "yaml":
            assert file_of(text)
        if language == "python" and not text.startswith(">>>"):
            compile(text, document, "exec")
        if language == "sh":
            assert all(re.match(r"(lit-prune|make|pip install) ", command) for command in commands(text))


def _documented(folder):
    """The commands that the scripts of a folder name in their docstrings."""
    for path in sorted((ROOT / folder).glob("*.py")):
        text = re.match(r'"""(.*?)"""', path.read_text(encoding="utf-8"), flags=re.S)[1]
        for command in re.findall(rf"^ *(python (?:-m )?\S*\b{path.stem}\b.*?) *(?:#.*)?$", text, flags=re.M):
            yield path, command


@pytest.mark.parametrize("folder", ["examples", "benchmarks", "docs"])
def test_scripts_name_options_that_they_have(folder):
    found = list(_documented(folder))
    assert found
    for path, command in found:
        source = path.read_text(encoding="utf-8")
        unknown = [option for option in re.findall(r"--[\w-]+", command) if f'add_argument("{option}"' not in source]
        assert not unknown, f"{path.name}: {unknown}"


def test_every_script_says_how_it_is_run():
    for folder in ("examples", "benchmarks"):
        named = {path for path, _ in _documented(folder)}
        assert {path for path in (ROOT / folder).glob("*.py") if path.name != "__init__.py"} == named


def test_the_ten_lines_are_ten():
    (code,) = (text for language, text in blocks("README.md") if language == "python" and "Trainer" in text)
    assert len(code.strip().splitlines()) <= 10


def test_extending_names_every_reason_as_the_graph_gives_it():
    reasons = re.findall(r"^\| `(.+?)`", (ROOT / "docs" / "extending.md").read_text(encoding="utf-8"), flags=re.M)
    source = "".join(path.read_text(encoding="utf-8") for path in (ROOT / "lit_prune" / "graph").glob("*.py"))
    given = [reason.strip(". :") for reason in reasons[:4]]
    assert len(given) == 4
    assert [reason for reason in given if reason not in source] == []


_EXAMPLES = [command for _, command in _documented("examples")]


@pytest.mark.slow
@pytest.mark.parametrize("command", _EXAMPLES)
def test_an_example_runs_as_it_says(command, tmp_path):
    _run(tmp_path, "bash", "-c", command)


@pytest.mark.slow
def test_the_figure_of_a_decision_is_drawn(tmp_path):
    script = str(ROOT / "docs" / "decision.py")
    folder, _ = _run(tmp_path, sys.executable, script, "--epochs", "1", "--out", "decision.png")
    assert (folder / "decision.png").read_bytes()[:4] == b"\x89PNG"


@pytest.mark.parametrize("document", DOCUMENTS)
def test_links_lead_somewhere(document):
    text = (ROOT / document).read_text(encoding="utf-8")
    for target in re.findall(r"\]\(([^)\s]+)\)", text.replace("\n", " ")):
        path, _, anchor = target.partition("#")
        file = (ROOT / document).parent / path
        assert file.exists(), target
        if anchor:
            titles = re.findall(r"^#+ (.*)$", file.read_text(encoding="utf-8"), flags=re.M)
            assert anchor in [title.lower().replace(" ", "-") for title in titles]
