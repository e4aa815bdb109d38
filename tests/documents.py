"""Runs what a document shows, in order, in the folder that it is started in; the text is taken as it stands.

YAML blocks name their file in a comment at the top, and are written to it. Python blocks share one namespace; those
with prompts must print what they say. Commands go through the shell. So that trainings take seconds, there are few
scenes of digits: that is all that differs from what a reader runs.

python -m tests.documents README.md [--in-process]
"""

import argparse
import doctest
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
DOCUMENTS = sorted(["README.md", *(f"docs/{path.name}" for path in (ROOT / "docs").glob("*.md"))])
LEFT_OUT = (
    "make ",
    "pip install ",
)  # they install and train for minutes or hours, and the Makefile is tested by itself
_FLAGS = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE


def blocks(document):
    """Language and text of each fenced block, in order."""
    return re.findall(r"^```(\w*)\n(.*?)^```$", (ROOT / document).read_text(encoding="utf-8"), flags=re.M | re.S)


def commands(block):
    """The commands of a shell block, without comments, each in one line."""
    lines = (re.sub(r"\s+#.*", "", line) for line in block.replace("\\\n", " ").splitlines())
    return [line.strip() for line in lines if line.strip()]


def file_of(block):
    """The file that a YAML block names in its first line."""
    named = re.match(r"# (\S+\.yaml)\n", block)
    if not named:
        raise ValueError(f"A YAML block must begin with a comment that names its file, but begins {block[:40]!r}.")
    return named[1]


def environment(folder):
    """That of a shell in which `python` and `lit-prune` are these ones, and the scenes are few."""
    site = folder / "site"
    site.mkdir()
    (site / "sitecustomize.py").write_text("from tests.few_scenes import use_few_scenes\n\nuse_few_scenes()\n")
    return os.environ | {
        "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]]),
        "PYTHONPATH": os.pathsep.join([str(site), str(ROOT)]),
        "YOLO_OFFLINE": "true",
        "OMP_NUM_THREADS": "1",
        "MPLBACKEND": "agg",
    }


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("document")
    parser.add_argument("--in-process", action="store_true", help="start no process for lit-prune, to save its imports")
    options = parser.parse_args()
    import ultralytics.cfg

    # Ultralytics writes to a folder of its settings, which would be one for all.
    ultralytics.cfg.RUNS_DIR = Path.cwd() / "runs"
    namespace = {"__name__": "__main__"}
    for language, text in blocks(options.document):
        sys.stdout.write(f"\n== {language} ==\n{text}")
        sys.stdout.flush()
        if language == "yaml":
            Path(file_of(text)).write_text(text, encoding="utf-8")
        elif language == "python":
            _run_python(text, namespace, options.document)
        elif language == "sh":
            for command in commands(text):
                if not command.startswith(LEFT_OUT):
                    _run_command(command, options.in_process)
        else:
            raise ValueError(f"A block of {options.document} is {language or 'of no language'}: sh, python or yaml?")


def _run_python(text, namespace, document):
    if not text.startswith(">>>"):
        exec(compile(text, document, "exec"), namespace)
        return
    session = doctest.DocTestParser().get_doctest(text, {}, document, document, 0)
    session.globs = namespace
    results = doctest.DocTestRunner(optionflags=_FLAGS).run(session, clear_globs=False)
    if results.failed:
        raise SystemExit(f"{results.failed} examples of {document} print something else.")


def _run_command(command, in_process):
    program, *arguments = shlex.split(command)
    if not in_process or program != "lit-prune":
        subprocess.run(["bash", "-euo", "pipefail", "-c", command], check=True)
        return
    from lit_prune.cli import main

    try:
        status = main(arguments)
    except SystemExit as stopped:  # as after --print_config
        status = stopped.code
    if status:
        raise SystemExit(f"{command!r} ends with {status}.")


if __name__ == "__main__":
    main()
