"""The benchmark runs, and its document tells of what it measures. No time is asserted."""

from __future__ import annotations

import importlib
import subprocess
import sys

import pytest

from bench import MODULES
from bench.table import HEADS
from tests.docs.generated import DOCS
from tests.docs.markdown import ROOT, marked

SHOWN = marked(DOCS / "benchmarks.md", "figures")


@pytest.fixture(scope="module")
def rows() -> list[list[str]]:
    """What a quick run prints."""
    done = subprocess.run(
        [sys.executable, "-m", "bench", "--quick"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return cells(done.stdout)


def cells(text: str) -> list[list[str]]:
    """The cells of the lines of a table."""
    lines = [line for line in text.splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]


@pytest.mark.timeout(180)
def test_everything_is_measured_and_shown(rows: list[list[str]]) -> None:
    shown = cells(SHOWN)
    assert shown[0] == rows[0] == list(HEADS)
    for ours, theirs in zip(rows[2:], shown[2:], strict=True):
        # What was measured, with what it is compared, unit, aim; a quick run has other sizes.
        assert without_sizes(ours) == without_sizes(theirs)


def without_sizes(row: list[str]) -> list[str]:
    what = " ".join(word for word in row[0].split() if not word[0].isdigit())
    return [what, row[1], row[4], row[6]]


def test_each_module_says_what_it_measures() -> None:
    page = (DOCS / "benchmarks.md").read_text(encoding="utf-8")
    for name in MODULES:
        assert importlib.import_module(f"bench.{name}").__doc__
        assert f"`--only {name}`" in page
