"""How a server is looked for. The servers themselves: tests/integration/test_services.py."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.services import MARIADB, MYSQL, POSTGRES, RABBITMQ, REDIS, ServiceMissing, find_service
from tests.services.base import (
    STALE_AFTER,
    Kind,
    Later,
    Places,
    Refused,
    Running,
    free_port,
    is_stale,
    new_name,
)

SCHEMES: dict[Kind, str] = {
    POSTGRES: "postgresql+psycopg://u:geheim@127.0.0.1:{}/x",
    MARIADB: "mysql+pymysql://u:geheim@127.0.0.1:{}/x",
    MYSQL: "mysql+pymysql://u:geheim@127.0.0.1:{}/x",
    REDIS: "redis://u:geheim@127.0.0.1:{}/1",
    RABBITMQ: "amqp://u:geheim@127.0.0.1:{}/x",
}


class Tried:
    """A kind whose servers at some URLs let us in; it notes what was tried."""

    title = "Tried"
    variable = "IDEM_TEST_TRIED_URL"
    local: tuple[str, ...] = ("local:1", "local:2")
    remedy = "install tried"

    def __init__(self, *good: str) -> None:
        self.good = good
        self.log: list[str] = []
        self.refuse_private = False

    def open(self, url: str) -> Places:
        self.log.append(url)
        if url not in self.good or (url == "private" and self.refuse_private):
            raise Refused(f"{url} is closed")
        return Place(url)

    def start(self, directory: Path) -> Running:
        self.log.append(f"start in {directory}")
        if "private" not in self.good:
            raise Refused("nothing on PATH")
        return PrivateServer(self.log)


class Place:
    """A server that answered."""

    def __init__(self, url: str) -> None:
        self.version = f"version of {url}"

    @contextmanager
    def place(self) -> Iterator[str]:
        yield "place"

    def close(self) -> None:
        pass


class PrivateServer:
    """A server that was started."""

    url = "private"

    def __init__(self, log: list[str]) -> None:
        self.log = log

    def stop(self) -> None:
        self.log.append("stop")


def test_the_environment_comes_first(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    kind = Tried("mine", "local:1")
    monkeypatch.setenv(kind.variable, "mine")
    service = find_service(kind, tmp_path)
    assert kind.log == ["mine"]
    assert str(service) == "Tried: version of mine, from IDEM_TEST_TRIED_URL"


def test_a_url_that_does_not_work_is_not_replaced(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    kind = Tried("local:1", "private")
    monkeypatch.setenv(kind.variable, "mine")
    with pytest.raises(ServiceMissing, match="IDEM_TEST_TRIED_URL does not work: mine is closed"):
        find_service(kind, tmp_path)


def test_then_the_default_ports_then_a_private_one(tmp_path: Path) -> None:
    kind = Tried("local:2", "private")
    assert find_service(kind, tmp_path).origin == "found on its default port"
    kind = Tried("private")
    service = find_service(kind, tmp_path)
    assert service.origin == "started for this run"
    assert kind.log == ["local:1", "local:2", f"start in {tmp_path}", "private"]
    service.close()
    assert kind.log[-1] == "stop"


def test_a_private_server_that_refuses_us_is_stopped(tmp_path: Path) -> None:
    kind = Tried("private")
    kind.refuse_private = True
    with pytest.raises(ServiceMissing, match="private is closed"):
        find_service(kind, tmp_path)
    assert kind.log[-1] == "stop"


def test_what_is_missing_is_named_with_each_attempt(tmp_path: Path) -> None:
    with pytest.raises(ServiceMissing) as caught:
        find_service(Tried(), tmp_path)
    assert str(caught.value) == (
        "Tried: install tried (tried: local:1 is closed; local:2 is closed; nothing on PATH)"
    )


@pytest.mark.parametrize("kind", SCHEMES, ids=lambda kind: str(kind.title))
def test_a_closed_port_is_refused_without_showing_the_password(
    kind: Kind, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv(kind.variable, SCHEMES[kind].format(free_port()))
    with pytest.raises(ServiceMissing, match=kind.variable) as caught:
        find_service(kind, tmp_path)
    assert "geheim" not in str(caught.value)


def test_names_are_new_and_tell_their_age(monkeypatch: pytest.MonkeyPatch) -> None:
    name = new_name()
    assert name != new_name()
    assert len(name) <= 63
    assert not is_stale(name)
    later = time.time() + STALE_AFTER + 1
    monkeypatch.setattr(time, "time", lambda: later)
    assert is_stale(name)
    assert not is_stale(f"{name}_of_somebody")
    assert not is_stale("production")


def test_what_is_put_off_is_done_and_its_error_is_not_lost() -> None:
    done: list[str] = []
    later = Later("later")
    later.do(done.append, "a")
    later.close()
    assert done == ["a"]

    def fail(name: str) -> None:
        raise Refused(name)

    later = Later("later")
    later.do(fail, "b")
    with pytest.raises(Refused, match="b"):
        later.close()
