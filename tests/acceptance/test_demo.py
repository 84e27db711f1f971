"""The demo, run as a user runs it: real servers, real beats and workers, its own words.

What it says is taken at its word for the numbers; that it cannot say "once" when a slot ran twice
or never is tested on the judgement itself.
"""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime, timedelta, timezone
from pathlib import Path

import psutil
import pytest

from example_project.demo.grid import Seen, Slot, judge
from tests.docs.demo import MARK, fenced, shape
from tests.docs.markdown import marked
from tests.docs.project import README

pytestmark = [pytest.mark.acceptance, pytest.mark.timeout(180)]

ROOT = Path(__file__).resolve().parents[2]
#: seconds to wait for a line, or for the end of a process
DEADLINE = 60.0


@pytest.fixture
def folder() -> Iterator[Path]:
    """A temporary folder that is open to the account that runs PostgreSQL for root."""
    with tempfile.TemporaryDirectory() as name:
        Path(name).chmod(0o755)
        yield Path(name)


@pytest.fixture
def seconds(acceptance_seconds: float) -> str:
    """For how long beats run, or longer, until what was killed has been recovered."""
    return str(max(15, int(acceptance_seconds)))


class Demo:
    """A running demo whose output is read line by line."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self.process = process
        self.lines: list[str] = []

    def read_until(self, wanted: str) -> str:
        """Reads up to the line with these words in it, which must come."""
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.lines.append(line.rstrip())
            if wanted in line:
                return self.lines[-1]
        raise AssertionError(f"{wanted!r} is missing in:\n{self.text}")

    def finish(self) -> int:
        """Reads the rest and returns the exit status."""
        assert self.process.stdout is not None
        self.lines += [line.rstrip() for line in self.process.stdout]
        return self.process.wait(DEADLINE)

    @property
    def text(self) -> str:
        return "\n".join(self.lines)

    def number(self, label: str) -> int:
        """The first number behind a label of the verdict."""
        found = re.search(rf"^ *{label} +(\d+)", self.text, re.MULTILINE)
        assert found, f"{label!r} is missing in:\n{self.text}"
        return int(found.group(1))

    def executions(self) -> list[int]:
        """Executions of each slot and entry, from the lines of slots."""
        lines = [line for line in self.lines if line.startswith("slot ")]
        return [int(runs) for line in lines for runs in re.findall(r"\d+ → (\d+)", line)]


@contextmanager
def demo(folder: Path, *options: str) -> Iterator[Demo]:
    """Starts the demo; at the end, nothing that it started may be left."""
    environment = {**os.environ, "TMPDIR": str(folder), "PYTHONIOENCODING": "utf-8"}
    # It would make a pipe look like a terminal.
    environment.pop("FORCE_COLOR", None)
    with subprocess.Popen(
        [sys.executable, "-m", "example_project", *options],
        cwd=ROOT,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    ) as process:
        try:
            yield Demo(process)
        finally:
            process.kill()


def offspring(process: subprocess.Popen[str]) -> list[psutil.Process]:
    return psutil.Process(process.pid).children(recursive=True)


def wait_until_gone(processes: list[psutil.Process]) -> None:
    _, alive = psutil.wait_procs(processes, timeout=DEADLINE)
    assert not alive


def assert_deaths_were_survived(running: Demo) -> None:
    """A pool process and a whole worker were killed in mid-body, and each body ran again."""
    for who in (r"A process of worker \d", r"Worker \d"):
        assert re.search(rf"{who} is killed \(SIGKILL\) in hourly-report", running.text)
    assert running.number("runs recovered") >= 2
    for who in ("process", "worker"):
        assert running.number(f"the killed {who}'s run after") >= 0


def test_every_slot_is_executed_once(folder: Path, acceptance_seconds: float) -> None:
    # As long as it takes for each kind of line to come.
    seconds = str(max(20, int(acceptance_seconds)))
    with demo(folder, "--seconds", seconds) as running:
        assert running.finish() == 0, running.text
    shown = shape(marked(README, MARK))
    assert shape(fenced(f"{running.text}\n")) == shown, "run: python -m tests.docs.demo"
    assert "PostgreSQL" in running.text
    assert "Redis" in running.text
    assert running.number("slots executed not exactly once") == 0
    assert running.number("slots due") == running.number("executions") >= 2 * int(seconds) // 5
    assert running.number("duplicates suppressed") > 0
    assert set(running.executions()) == {1}
    assert len(running.executions()) == running.number("slots due")
    assert "Beat 2 is killed (SIGKILL)" in running.text
    assert re.search(r"Worker [12] is stopped", running.text)
    assert_deaths_were_survived(running)
    assert list(folder.glob("celery-idem-demo-*")) == []


def test_without_servers_on_sqlite_and_files(folder: Path, seconds: str) -> None:
    database = f"sqlite:///{folder / 'shop.sqlite3'}"
    options = ["--database", database, "--broker", "filesystem://", "--seconds", seconds]
    with demo(folder, *options) as running:
        assert running.finish() == 0, running.text
    assert set(running.executions()) == {1}
    assert_deaths_were_survived(running)


def test_stock_celery_executes_each_slot_once_per_beat(folder: Path, seconds: str) -> None:
    with demo(folder, "--stock", "--seconds", seconds) as running:
        assert running.finish() == 0, running.text
    assert "This is expected" in running.text
    assert "SIGKILL" not in running.text
    due, happened = re.findall(r"^ *executions +(\d+) +(\d+)", running.text, re.MULTILINE)[0]
    # Three; but a beat that a busy machine starts late may act in the next interval.
    assert int(happened) > 2 * int(due) > 0


@pytest.mark.sample("SIGINT", "SIGKILL")
@pytest.mark.parametrize("end", ["SIGINT", "SIGTERM", "SIGKILL"])
def test_nothing_is_left_when_it_is_interrupted(end: str, folder: Path) -> None:
    with demo(folder, "--stock") as running:
        running.read_until("3 beats run")
        started = offspring(running.process)
        # Two servers, three beats and two workers, each with its keeper, and workers' children.
        assert len(started) >= 7 * 2 + 4
        running.process.send_signal(signal.Signals[end])
        status = running.finish()
        wait_until_gone(started)
    assert status == {"SIGINT": 130, "SIGTERM": 143, "SIGKILL": -9}[end]
    if end != "SIGKILL":
        assert list(folder.glob("celery-idem-demo-*")) == []
        assert "Traceback" not in running.text


def test_it_fails_and_keeps_the_logs_if_a_process_ends_by_itself(folder: Path) -> None:
    with demo(folder, "--stock", "--seconds", "10") as running:
        running.read_until("2 workers run")
        workers = [one for one in offspring(running.process) if "worker" in one.cmdline()]
        keepers = [one for one in workers if any("keeper.py" in word for word in one.cmdline())]
        victim = next(one for one in keepers if any("worker-1" in word for word in one.cmdline()))
        victim.children()[0].kill()
        assert running.finish() == 1, running.text
    assert "worker 1 ended by itself, status 137" in running.text
    assert "This run shows nothing: worker 1 ended by itself." in running.text
    kept = Path(re.findall(r"The logs are kept in (.+)", running.text)[0])
    assert (kept / "worker-1.log").is_file()


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--database", "postgresql+psycopg://me:secret@127.0.0.1:1/shop"], "--database"),
        (["--database", "nonsense"], "--database"),
        (["--broker", "amqp://me:secret@127.0.0.1:1//"], "--broker"),
        (["--broker", "nonsense://here"], "--broker"),
    ],
)
def test_a_server_that_cannot_be_used_is_one_clear_message(
    options: list[str], words: str, folder: Path
) -> None:
    with demo(folder, *options) as running:
        assert running.finish() == 1
    assert words in running.text
    assert "cannot be used" in running.text
    assert "secret" not in running.text
    assert "Traceback" not in running.text


NOON = datetime(2026, 1, 1, 12, tzinfo=timezone.utc)
DUE = [Slot(NOON, "daily-bill"), Slot(NOON + timedelta(seconds=5), "send-reminder")]


@pytest.mark.parametrize(
    ("runs", "wrong"),
    [
        ({DUE[0]: 1, DUE[1]: 1}, []),
        ({DUE[0]: 2, DUE[1]: 1}, [DUE[0]]),
        ({DUE[0]: 1}, [DUE[1]]),
        ({}, DUE),
        # Before the first slot that is certainly due, one execution is right, none is, two are not.
        ({DUE[0]: 1, DUE[1]: 1, Slot(NOON - timedelta(days=1), "daily-bill"): 1}, []),
        (
            {DUE[0]: 1, DUE[1]: 1, Slot(NOON - timedelta(days=1), "daily-bill"): 2},
            [Slot(NOON - timedelta(days=1), "daily-bill")],
        ),
    ],
)
def test_the_judgement(runs: dict[Slot, int], wrong: list[Slot]) -> None:
    assert judge(DUE, Seen(runs=Counter(runs))).wrong == wrong


def test_copies_are_accounted_for_slot_by_slot() -> None:
    late, other = DUE
    assert not Seen(copies=Counter({late: 2}), runs=Counter({late: 1, other: 1})).settled
    # The copy that a dead worker had is not heard of again.
    assert Seen(Counter({late: 2}), Counter({late: 1}), takeovers=Counter({late: 1})).settled
    assert Seen(Counter({late: 2}), Counter({late: 1}), duplicates=Counter({late: 1})).settled
