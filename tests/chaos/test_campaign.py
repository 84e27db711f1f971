"""A small campaign, as `make chaos` runs it, and with a seed, so that it is the same each time."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = [pytest.mark.acceptance, pytest.mark.timeout(400)]

ROOT = Path(__file__).resolve().parents[2]
#: Seconds, as many as a machine may need that does other things as well.
DEADLINE = 360.0


def run(*arguments: str) -> str:
    """What a campaign prints; it must hold."""
    command = [sys.executable, "-m", "tests.chaos", *arguments]
    done = subprocess.run(
        command,
        cwd=ROOT,
        timeout=DEADLINE,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    assert done.returncode == 0, done.stdout
    assert "Everything that is promised holds." in done.stdout
    return done.stdout


def test_what_is_promised_holds_under_faults() -> None:
    said = run("--part", "faults", "--part", "zombies", "--kills=4", "--zombies=4", "--seed=7")
    assert "slots due" in said
    assert "kill child" in said
    assert "4   of 4" in said
