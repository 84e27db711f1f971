"""A command that several hosts run once: `celery-idem exec` in processes of its own."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from celery_idem import Ledger
from tests.integration.outside_shell import PATIENCE, Shell, began, is_gone, told
from tests.processes import wait_for
from tests.proxy import Proxy

#: Begins, and ends with status 3 when there is a file ``go``.
SLOW = "echo $$ >> pids; echo begun >> log; while [ ! -e go ]; do sleep 0.05; done; exit 3"

#: Makes its standard input the terminal of its session, and becomes a command.
_WITH_TERMINAL = (
    "import fcntl, os, sys, termios; fcntl.ioctl(0, termios.TIOCSCTTY, 0); "
    "os.execv(sys.argv[1], sys.argv[1:])"
)


@pytest.fixture
def shell(postgres_url: str, tmp_path: Path) -> Iterator[Shell]:
    """A shell whose ledger is on PostgreSQL."""
    made = Shell(postgres_url, tmp_path)
    try:
        yield made
    finally:
        made.close()


@pytest.fixture
def any_shell(database_url: str, tmp_path: Path) -> Iterator[Shell]:
    """A shell with a ledger on each kind of database."""
    made = Shell(database_url, tmp_path)
    try:
        yield made
    finally:
        made.close()


def test_of_two_at_the_same_moment_one_runs_and_both_exit_alike(any_shell: Shell) -> None:
    shell = any_shell
    script = f"{SLOW.removesuffix('exit 3')} echo done; exit 3"
    both = [shell.start(script=script) for _ in range(2)]
    began(shell)
    ledger = Ledger.from_url(shell.url)
    wait_for(lambda: ledger.counts().get("duplicate"), PATIENCE, "the other has come")
    ledger.close()
    (shell.folder / "go").touch()
    outputs = sorted(each.communicate(timeout=PATIENCE) for each in both)
    assert [each.returncode for each in both] == [3, 3]
    assert shell.lines() == ["begun"]
    (silent, duplicate), (output, nothing) = outputs
    assert (silent, output, nothing) == ("", "done\n", "")
    (line,) = duplicate.splitlines()
    assert line.startswith("celery-idem: exec:job-")
    # It waited, or looked when the command had just ended.
    assert " is a duplicate: " in line


@pytest.mark.sample("true-0", "kill -KILL*")
@pytest.mark.parametrize(
    ("script", "status"),
    [("true", 0), ("exit 7", 7), ("kill -TERM $$", 143), ("kill -KILL $$", 137)],
)
def test_who_comes_later_exits_with_the_same_status(shell: Shell, script: str, status: int) -> None:
    script = f"echo begun >> log; {script}"
    assert shell.run(script=script) == (status, "", "")
    later, output, errors = shell.run(script=script)
    assert (later, output) == (status, "")
    assert f"is a duplicate: its command has ended with exit status {status}\n" in errors
    assert shell.lines() == ["begun"]


def test_a_key_without_a_slot_is_once_for_ever(shell: Shell) -> None:
    for key in ("a", "b", "a"):
        assert shell.run("--key", key, script=f"echo {key} >> log")[0] == 0
    assert shell.lines() == ["a", "b"]


def test_input_output_and_errors_are_those_of_the_command(shell: Shell) -> None:
    found = shell.run(script="cat; echo trouble >&2", given="one\ntwo\n")
    assert found == (0, "one\ntwo\n", "trouble\n")


def test_who_does_not_wait_is_told_to_come_again(shell: Shell) -> None:
    first = shell.start(script=SLOW)
    began(shell)
    status, _, errors = shell.run("--no-wait", script=SLOW)
    assert status == 75 and "is a duplicate: its command is executed elsewhere" in errors
    (shell.folder / "go").touch()
    assert first.wait(PATIENCE) == 3


@pytest.mark.sample("15")
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_signals_reach_the_command(shell: Shell, number: signal.Signals) -> None:
    name = number.name.removeprefix("SIG")
    first = shell.start(script=f"trap 'echo {name}; exit 9' {name}; {SLOW}")
    began(shell)
    first.send_signal(number)
    output, _ = first.communicate(timeout=PATIENCE)
    assert (output, first.returncode) == (f"{name}\n", 9)
    assert shell.run(script=SLOW)[0] == 9


def test_who_waits_may_be_stopped(shell: Shell) -> None:
    first = shell.start(script=SLOW)
    began(shell)
    second = shell.start(script=SLOW)
    told(second, "is a duplicate: waiting")
    second.terminate()
    assert second.wait(PATIENCE) == 143
    (shell.folder / "go").touch()
    assert first.wait(PATIENCE) == 3
    assert shell.lines() == ["begun"]


def test_a_terminal_interrupts_the_command_itself(shell: Shell) -> None:
    """It sends the signal to both; exec waits for what the command makes of it."""
    ours, terminal = os.openpty()
    command = shell.command("--", "sh", "-c", f"trap 'echo INT >> log' INT; {SLOW}")
    first = subprocess.Popen(
        [sys.executable, "-c", _WITH_TERMINAL, *command],
        cwd=shell.folder,
        env=shell.env(),
        stdin=terminal,
        start_new_session=True,
    )
    try:
        began(shell)
        os.write(ours, b"\x03")
        wait_for(shell.has("INT"), PATIENCE, "the command is interrupted")
        (shell.folder / "go").touch()
        assert first.wait(PATIENCE) == 3
        assert shell.lines() == ["begun", "INT"]
    finally:
        first.kill()
        first.wait()
        os.close(ours)
        os.close(terminal)


def test_who_waits_takes_over_from_a_host_that_died(shell: Shell) -> None:
    first = shell.start("--lease", "2", script=SLOW)
    began(shell)
    second = shell.start("--lease", "2", script=SLOW)
    told(second, "is a duplicate: waiting")
    first.kill()
    began(shell, 2)
    (shell.folder / "go").touch()
    _, errors = second.communicate(timeout=PATIENCE)
    assert second.returncode == 3
    assert "is taken over from a dead owner (attempt 2, fence 2)" in errors


@pytest.mark.skipif(sys.platform != "linux", reason="the kernel does it on Linux only")
def test_a_command_does_not_outlive_a_kill(shell: Shell) -> None:
    first = shell.start(script=f"trap '' TERM INT HUP; {SLOW}")
    began(shell)
    (pid,) = shell.lines("pids")
    first.kill()
    wait_for(lambda: is_gone(int(pid)), PATIENCE, "the command is gone")


def test_a_run_is_given_up_where_hosts_keep_dying(shell: Shell) -> None:
    terms = ("--lease", "1", "--on-crash", "abandon")
    first = shell.start(*terms, script=SLOW)
    began(shell)
    first.kill()
    for _ in range(2):
        status, _, errors = shell.run(*terms, script=SLOW)
        assert status == 70
        assert "its owner is gone, and on_crash is 'abandon'" in errors
    assert shell.lines() == ["begun"]


@pytest.mark.sample("trap ''*")
@pytest.mark.parametrize("trap", ["trap 'echo asked >> log; exit 0' TERM", "trap '' TERM"])
def test_a_command_ends_with_its_lease(shell: Shell, trap: str) -> None:
    """It is asked, and killed if it does not end: somebody else may begin it from then on."""
    with Proxy.before(shell.url) as proxy:
        first = shell.start("--lease", "2", script=f"{trap}; {SLOW}", url=proxy.url(shell.url))
        began(shell)
        (pid,) = shell.lines("pids")
        proxy.cut()
        _, errors = first.communicate(timeout=PATIENCE)
    assert first.returncode == 75
    assert is_gone(int(pid))
    assert "its command was ended with its lease" in errors
    assert ("asked" in shell.lines()) == ("asked" in trap)
    (shell.folder / "go").touch()
    assert shell.run("--lease", "2", script=SLOW)[0] == 3


def test_an_end_waits_for_the_database(shell: Shell) -> None:
    with Proxy.before(shell.url) as proxy:
        first = shell.start(script=SLOW, url=proxy.url(shell.url))
        began(shell)
        proxy.cut()
        (shell.folder / "go").touch()
        told(first, "has ended, which is not recorded yet")
        proxy.mend()
        assert first.wait(PATIENCE) == 3
    status, _, errors = shell.run(script=SLOW)
    assert status == 3 and "has ended with exit status 3" in errors


def test_without_a_database_nothing_is_run(shell: Shell) -> None:
    first = shell.start(script=SLOW, url="postgresql://nobody@127.0.0.1:1/nowhere")
    output, errors = first.communicate(timeout=PATIENCE)
    assert (first.returncode, output, shell.lines()) == (75, "", [])
    assert errors.startswith("celery-idem: the ledger's database") and "password" not in errors


def test_a_command_that_is_not_there_is_left_to_hosts_that_have_it(shell: Shell) -> None:
    words = [sys.executable, "-m", "celery_idem.cli.script", "exec", "--key", "k", "nothing-here"]
    env = {**os.environ, "CELERY_IDEM_DATABASE_URL": shell.url}
    done = subprocess.run(words, env=env, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (
        127,
        "celery-idem: nothing-here: there is no such command\n",
    )
    ledger = Ledger.from_url(shell.url)
    assert ledger.counts() == {}
    ledger.close()
