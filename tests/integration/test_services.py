"""The places that tests get: apart from one another, and gone afterwards."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack

import pytest
import redis
from kombu import Connection
from sqlalchemy import create_engine, text
from sqlalchemy.engine import make_url
from sqlalchemy.exc import DBAPIError
from sqlalchemy.pool import NullPool

from tests.conftest import REQUIRED, Found
from tests.processes import wait_for
from tests.services import MARIADB, POSTGRES, RABBITMQ, REDIS, Broker
from tests.services.base import Kind, Refused
from tests.services.rabbitmq import server_version
from tests.services.redis import MARK, NUMBERS, with_number

KINDS = [POSTGRES, MARIADB, REDIS, RABBITMQ]


def scalar(url: str, statement: str) -> object:
    """One value, on a connection that is closed afterwards."""
    engine = create_engine(url, poolclass=NullPool)
    try:
        with engine.begin() as connection:
            return connection.execute(text(statement)).scalar()
    finally:
        engine.dispose()


def test_each_database_is_empty_and_takes_tables(database_url: str) -> None:
    engine = create_engine(database_url, poolclass=NullPool)
    with engine.begin() as connection:
        connection.execute(text("CREATE TABLE t (a INTEGER)"))
        connection.execute(text("INSERT INTO t VALUES (7)"))
    assert scalar(database_url, "SELECT a FROM t") == 7


@pytest.mark.parametrize("kind", [POSTGRES, MARIADB], ids=lambda kind: str(kind.title))
def test_a_database_goes_even_if_somebody_is_in_a_transaction(servers: Found, kind: Kind) -> None:
    places = kind.open(servers.get(kind).url)
    with places.place() as url, places.place() as other:
        assert make_url(url).database != make_url(other).database
        engine = create_engine(url, poolclass=NullPool)
        with engine.begin() as connection:
            connection.execute(text("CREATE TABLE t (a INTEGER)"))
        left_open = engine.connect()
        left_open.execute(text("SELECT * FROM t"))
    places.close()
    with pytest.raises(DBAPIError, match=r"(?i)does not exist|unknown database"):
        scalar(url, "SELECT 1")
    left_open.invalidate()
    left_open.close()


@pytest.fixture(scope="module")
def private_redis(servers: Found) -> Iterator[str]:
    """A server of our own: these tests must not take numbers away from other runs."""
    server = REDIS.start(servers.directory / "redis-numbers")
    try:
        yield server.url
    finally:
        server.stop()


def ask(url: str, *command: str | int) -> object:
    """The answer of Redis."""
    with redis.Redis.from_url(url) as client:
        return client.execute_command(*command)


def test_two_tests_have_two_redis_databases(private_redis: str) -> None:
    with REDIS.open(private_redis).place() as one, REDIS.open(private_redis).place() as other:
        assert one != other
        ask(one, "SET", "a", 1)
        assert ask(other, "GET", "a") is None
    assert ask(one, "DBSIZE") == 0


def test_a_redis_database_of_somebody_else_is_left_alone(private_redis: str) -> None:
    mine = with_number(private_redis, NUMBERS[0])
    ask(mine, "SET", "precious", 1)
    places = REDIS.open(private_redis)
    with places.place() as other:
        assert other != mine
    with pytest.raises(RuntimeError, match="taken by somebody else"), places.place() as url:
        ask(url, "HSET", MARK, "token", "of another run")
    ask(url, "FLUSHDB")
    assert ask(mine, "GET", "precious") == b"1"
    ask(mine, "FLUSHDB")


def test_a_redis_database_of_a_run_that_died_is_taken_again(private_redis: str) -> None:
    places = REDIS.open(private_redis)
    dead = places.place()
    url = dead.__enter__()
    ask(url, "SET", "left behind", 1)
    with places.place() as second:
        assert second != url
    ask(url, "HSET", MARK, "since", 1)
    with places.place() as heir:
        assert heir == url
        assert ask(heir, "GET", "left behind") is None


def test_a_test_may_flush_its_redis(private_redis: str) -> None:
    with REDIS.open(private_redis).place() as url:
        ask(url, "FLUSHALL")
    assert ask(url, "DBSIZE") == 0


def test_a_redis_that_is_full_is_refused(private_redis: str) -> None:
    places = REDIS.open(private_redis)
    with ExitStack() as stack:
        taken = [stack.enter_context(places.place()) for _ in NUMBERS]
        assert len(set(taken)) == len(NUMBERS)
        with pytest.raises(Refused, match="each of the databases 1 to 15 is in use"):
            REDIS.open(private_redis)


def test_a_message_is_in_one_broker_only(broker: Broker) -> None:
    connection = Connection(broker.url, transport_options=dict(broker.transport_options))
    with connection, connection.SimpleQueue("q") as queue:
        queue.put("hello")
        message = queue.get(timeout=10)
        assert message.payload == "hello"
        message.ack()


def test_virtual_hosts_are_deleted(servers: Found) -> None:
    service = servers.get(RABBITMQ)
    with service.place() as one, service.place() as other:
        assert one != other
        server_version(one)
    wait_for(lambda: refuses(one) and refuses(other), 60, "both are gone")


def refuses(url: str) -> bool:
    """Whether there is no such virtual host."""
    try:
        server_version(url)
    except Refused:
        return True
    return False


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: str(kind.title))
def test_a_private_server_can_be_started(kind: Kind, servers: Found) -> None:
    directory = servers.directory / f"private-{kind.title}"
    try:
        server = kind.start(directory)
    except Refused as error:
        if kind.title in REQUIRED:
            raise
        pytest.skip(str(error))
    try:
        places = kind.open(server.url)
        with places.place() as url:
            assert url != server.url
        places.close()
    finally:
        server.stop()
    with pytest.raises(Refused):
        kind.open(server.url)
