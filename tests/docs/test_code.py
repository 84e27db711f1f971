"""The Python in the documents runs, and the three edits of the README do what it says."""

from __future__ import annotations

import os
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from celery_idem import Ledger, RunState
from tests.docs import project
from tests.docs.markdown import ROOT, blocks, documents, name
from tests.processes import Beat, Worker, python_path, wait_for

WITH_PYTHON = [
    document
    for document in documents()
    # The README's go on from its edits: see below.
    if document != project.README and any(block.language == "python" for block in blocks(document))
]


def run(script: str, folder: Path) -> str:
    """Runs a script in a process of its own; returns what it printed."""
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", script],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": python_path()},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize("document", WITH_PYTHON, ids=name)
def test_python_of_a_document_runs(document: Path, tmp_path: Path) -> None:
    lines: list[str] = []
    for block in blocks(document):
        if block.language == "python":
            # At its place, so that an error names the line of the document.
            lines += [""] * (block.line - len(lines))
            lines += block.text.splitlines()
    run("\n".join(lines), tmp_path)


def test_the_project_works_before_the_edits(tmp_path: Path) -> None:
    script = project.before() + "\nassert daily_bill.apply(throw=True).state == 'SUCCESS'\n"
    assert run(script, tmp_path) == "charging\n"


def test_the_project_works_after_the_edits(sqlite_url: str, tmp_path: Path) -> None:
    script = project.after("memory://", sqlite_url) + project.with_run()
    key, slot = run(script, tmp_path).splitlines()
    assert key.startswith("shop:shop.charge[")
    assert slot == "None"
    ledger = Ledger.from_url(sqlite_url)
    assert ledger.counts() == {RunState.SUCCEEDED.label: 1}
    ledger.close()


def test_beats_and_workers_of_the_edited_project(
    postgres_url: str, redis_url: str, tmp_path: Path
) -> None:
    edited = project.after(redis_url, postgres_url)
    # Every second instead of every night.
    edited += "app.conf.beat_schedule['daily-bill']['schedule'] = 1.0\n"
    (tmp_path / "shop.py").write_text(edited)
    ledger = Ledger.from_url(postgres_url)
    with Worker("shop", tmp_path) as worker, Beat("shop", tmp_path), Beat("shop", tmp_path):
        wait_for(
            lambda: ledger.counts().get(RunState.SUCCEEDED.label, 0) >= 4, 60, "four runs succeeded"
        )
        # As an operator stops it: what has been claimed is finished.
        assert worker.stop() == 0
    charged = worker.log.count("charging")
    counts = Counter(ledger.counts())
    assert charged == counts[RunState.SUCCEEDED.label]
    ledger.close()


def test_no_document_is_left_out() -> None:
    assert ROOT / "docs" / "how-it-works.md" in WITH_PYTHON
