"""The demo's output in the README: ``python -m tests.docs.demo`` runs the demo and writes it.

Owns running it as for a reader, and what is to be compared of two outputs. Must not know what the
demo does.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys

from tests.docs.markdown import ROOT, replace_marked
from tests.docs.project import README

MARK = "demo"


def output(*options: str) -> str:
    """What the demo prints into a pipe.

    Raises:
        AssertionError: it did not end with status 0.
    """
    environment = {**os.environ, "PYTHONIOENCODING": "utf-8"}
    # It would make a pipe look like a terminal.
    environment.pop("FORCE_COLOR", None)
    done = subprocess.run(
        [sys.executable, "-m", "example_project", *options],
        cwd=ROOT,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        encoding="utf-8",
        check=False,
    )
    assert done.returncode == 0, done.stdout
    return "".join(f"{line.rstrip()}\n" for line in done.stdout.splitlines())


def shape(text: str) -> set[str]:
    """The lines of an output without what differs from run to run: numbers, times and versions."""
    lines = (re.sub(r"\d+(?:[.:]\d+)*", "N", line) for line in text.splitlines())
    return {" ".join(line.split()) for line in lines} - {""}


def fenced(text: str) -> str:
    """The output as a block of Markdown."""
    return f"```text\n{text}```\n"


def main() -> int:
    """Write the output of a whole demo into the README."""
    replace_marked(README, MARK, fenced(output()))
    return 0


if __name__ == "__main__":
    sys.exit(main())
