"""Behind a pooler, prepared statements are left out: their names may be somebody else's.

A pooler shows itself by greeting clients with a process id of its own. Here a relay does that, in
front of the real server.
"""

from __future__ import annotations

import socket
import struct
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from sqlalchemy import text
from sqlalchemy.engine import make_url

from celery_idem.ledger.sql import SqlLedger
from tests.contract.stores import Store

SSL, GSS = 80877103, 80877104


class Relay:
    """One client's connection; the process id in the server's greeting is another one."""

    def __init__(self, client: socket.socket, server: socket.socket) -> None:
        self._client, self._server = client, server

    def greet(self) -> None:
        """Forward the start of a session, up to the first time that the server is ready."""
        while True:
            request = self._client.recv(8192)
            if len(request) == 8 and struct.unpack("!2I", request)[1] in (SSL, GSS):
                self._client.sendall(b"N")
                continue
            self._server.sendall(request)
            break
        kind = b""
        while kind != b"Z":
            kind, body = self._message()
            if kind == b"K":
                body = struct.pack("!I", 1_000_000) + body[4:]
            self._client.sendall(kind + struct.pack("!I", len(body) + 4) + body)

    def _message(self) -> tuple[bytes, bytes]:
        head = self._exactly(5)
        return head[:1], self._exactly(struct.unpack("!I", head[1:])[0] - 4)

    def _exactly(self, number: int) -> bytes:
        data = b""
        while len(data) < number:
            data += self._server.recv(number - len(data)) or self._gone()
        return data

    @staticmethod
    def _gone() -> bytes:
        raise ConnectionError("the server has hung up")

    def run(self) -> None:
        with self._client, self._server, suppress(OSError):
            self.greet()
            back = threading.Thread(target=self._copy, args=(self._server, self._client))
            back.start()
            self._copy(self._client, self._server)
            back.join()

    @staticmethod
    def _copy(source: socket.socket, sink: socket.socket) -> None:
        with suppress(OSError):
            while data := source.recv(65536):
                sink.sendall(data)
            sink.shutdown(socket.SHUT_RDWR)


@contextmanager
def pooler(url: str) -> Iterator[str]:
    """The URL of the server behind a relay."""
    target = make_url(url)
    relays: list[threading.Thread] = []

    def accept() -> None:
        with suppress(OSError):
            while True:
                client, _ = listener.accept()
                server = socket.create_connection((target.host, target.port or 5432))
                relays.append(threading.Thread(target=Relay(client, server).run))
                relays[-1].start()

    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=accept)
        thread.start()
        where = target.set(host="127.0.0.1", port=listener.getsockname()[1])
        yield where.render_as_string(hide_password=False)
        listener.shutdown(socket.SHUT_RDWR)
        thread.join()
    for relay in relays:
        relay.join()


def prepared(ledger: SqlLedger) -> int:
    """How many statements the session has prepared after each was run many times."""
    for _ in range(20):
        ledger.now()
        ledger.bury("nobody")
    answer = ledger.database.run(text("SELECT count(*) FROM pg_prepared_statements"))
    number: int = answer.rows[0][0]
    return number


def test_statements_are_prepared_on_a_server(postgres: Store) -> None:
    ledger = SqlLedger(postgres.url)
    assert prepared(ledger) >= 2
    ledger.close()


def test_nothing_is_prepared_behind_a_pooler(postgres: Store) -> None:
    with pooler(postgres.url) as url:
        ledger = SqlLedger(url)
        assert prepared(ledger) == 0
        ledger.close()


def test_who_knows_better_may_say_so(postgres: Store) -> None:
    """Poolers of today keep the names of their clients apart."""
    with pooler(postgres.url) as url:
        ledger = SqlLedger(url, engine_options={"connect_args": {"prepare_threshold": 3}})
        assert prepared(ledger) >= 2
        ledger.close()
    ledger = SqlLedger(postgres.url, engine_options={"connect_args": {"prepare_threshold": None}})
    assert prepared(ledger) == 0
    ledger.close()
