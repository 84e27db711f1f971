"""Databases that cannot be reached or do not let us in: a clear error, and never the password."""

from __future__ import annotations

import socket
import struct
import threading
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from sqlalchemy.engine import make_url

from celery_idem.errors import ImproperlyConfigured, LedgerError, LedgerUnavailable
from celery_idem.ledger import Ledger
from tests.contract.stores import Store
from tests.proxy import Proxy
from tests.services.base import free_port

SECRET = "s3cr3t-w0rd"


def told(error: BaseException) -> str:
    """All that anybody sees of an error, with its causes."""
    text = "".join(traceback.format_exception(error))
    assert SECRET not in text
    assert SECRET not in repr(error)
    return str(error)


# -- what cannot be a URL -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("url", "reason"),
    [
        (f"oracle://user:{SECRET}@host/name", "must begin with postgresql, mysql, mariadb or"),
        (f"postgresql+nothing://user:{SECRET}@host/name", "use postgresql\\+psycopg://"),
        (f"postgresql+asyncpg://user:{SECRET}@host/name", "asyncpg"),
        (f"sqlite+aiosqlite:///x?password={SECRET}", "aiosqlite"),
        (f"user:{SECRET}@host/name", "must be a SQLAlchemy URL, for example"),
        (f"postgresql://user:{SECRET}@host:port/name", "must be a SQLAlchemy URL, for example"),
        (f"nonsense?password={SECRET}", "must be a SQLAlchemy URL, for example"),
        ("sqlite://", "in memory is seen by one connection only"),
        ("sqlite:///:memory:", "in memory is seen by one connection only"),
        ("sqlite:///file:x?mode=memory&uri=true", "in memory is seen by one connection only"),
        ("sqlite:////no/such/folder/ledger.sqlite3", "there is no folder /no/such/folder"),
        (17, "must be a SQLAlchemy URL"),
    ],
)
def test_a_url_that_cannot_be_used_is_refused_at_once(url: str, reason: str) -> None:
    with pytest.raises(ImproperlyConfigured, match=reason) as caught:
        Ledger.from_url(url)
    assert told(caught.value).startswith("idem_database_url = ")


def test_options_that_cannot_be_used_are_refused_at_once(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/ledger.sqlite3"
    options = {"nothing": 1, "connect_args": {"password": SECRET}}
    with pytest.raises(ImproperlyConfigured, match="'nothing'") as caught:
        Ledger.from_url(url, engine_options=options)
    assert told(caught.value).startswith("idem_database_engine_options = ")
    with pytest.raises(ImproperlyConfigured, match="AUTOCOMMIT: leave it out"):
        Ledger.from_url(url, engine_options={"isolation_level": "SERIALIZABLE"})
    with pytest.raises(ImproperlyConfigured, match="SQLite has no schemas"):
        Ledger.from_url(url, schema="ledger")


def test_a_ledger_does_not_show_its_password() -> None:
    ledger = Ledger.from_url(f"postgresql://user:{SECRET}@host/name?sslpassword={SECRET}")
    assert repr(ledger) == "<SqlLedger postgresql+psycopg://user:***@host/name>"
    ledger = Ledger.from_url(f"postgresql://host/name?user=user&password={SECRET}")
    assert SECRET not in repr(ledger)


# -- what does not answer -------------------------------------------------------------------------


def _url(store: Store, **changes: object) -> str:
    url = make_url(store.url).set(password=SECRET)
    return url.set(**changes).render_as_string(hide_password=False)  # type: ignore[arg-type]


def test_a_port_where_nobody_listens(server: Store) -> None:
    port = free_port()
    ledger = Ledger.from_url(_url(server, host="127.0.0.1", port=port))
    for verb in (ledger.now, lambda: ledger.bury("lease")):
        with pytest.raises(LedgerUnavailable) as caught:
            verb()
        for part in ("does not answer", str(port), "refused", "check idem_database_url"):
            assert part in told(caught.value)


def test_a_host_that_does_not_exist(server: Store) -> None:
    ledger = Ledger.from_url(_url(server, host="nowhere.invalid"))
    with pytest.raises(LedgerUnavailable, match=r"nowhere\.invalid") as caught:
        ledger.now()
    told(caught.value)


#: Seconds. PyMySQL takes its time for reading from the first packet on.
PATIENCE = {
    "postgres": {"connect_timeout": 2},
    "mariadb": {"read_timeout": 1},
    "mysql": {"read_timeout": 1},
}


def test_a_server_that_accepts_and_is_silent(server: Store) -> None:
    """A host that hangs: given up after a bounded time, here a short one."""
    with socket.create_server(("127.0.0.1", 0)) as silent:
        port = silent.getsockname()[1]
        ledger = Ledger.from_url(
            _url(server, host="127.0.0.1", port=port),
            engine_options={"connect_args": PATIENCE[server.name]},
        )
        with pytest.raises(LedgerUnavailable) as caught:
            ledger.now()
        told(caught.value)


def test_a_user_that_does_not_exist(server: Store) -> None:
    ledger = Ledger.from_url(_url(server, username="idem_nobody"))
    with pytest.raises(LedgerUnavailable, match="idem_nobody") as caught:
        ledger.now()
    told(caught.value)


def test_a_database_that_does_not_exist(server: Store) -> None:
    url = make_url(server.url).set(database="idem_nowhere")
    ledger = Ledger.from_url(url.render_as_string(hide_password=False))
    with pytest.raises(LedgerUnavailable, match="idem_nowhere"):
        ledger.now()


@contextmanager
def refusing(message: bytes) -> Iterator[int]:
    """A PostgreSQL server that lets nobody in, as one does that checks passwords."""

    def fields(*pairs: tuple[bytes, bytes]) -> bytes:
        body = b"".join(code + value + b"\0" for code, value in pairs) + b"\0"
        return b"E" + struct.pack("!I", len(body) + 4) + body

    answer = fields((b"S", b"FATAL"), (b"V", b"FATAL"), (b"C", b"28P01"), (b"M", message))

    def serve() -> None:
        while True:
            try:
                connection, _ = listener.accept()
            except OSError:
                return
            with connection:
                while request := connection.recv(4096):
                    # A wish for encryption, of SSL or of GSSAPI, is declined first.
                    if len(request) == 8:
                        connection.sendall(b"N")
                        continue
                    connection.sendall(answer)
                    break

    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=serve)
        thread.start()
        yield listener.getsockname()[1]
        listener.shutdown(socket.SHUT_RDWR)
    thread.join()


def test_a_wrong_password() -> None:
    with refusing(b'password authentication failed for user "shop"') as port:
        ledger = Ledger.from_url(f"postgresql://shop:{SECRET}@127.0.0.1:{port}/shop")
        with pytest.raises(LedgerUnavailable, match="password authentication failed") as caught:
            ledger.now()
    told(caught.value)


def test_a_wrong_password_on_mariadb(mariadb_url: str) -> None:
    url = make_url(mariadb_url).set(password=SECRET)
    ledger = Ledger.from_url(url.render_as_string(hide_password=False))
    with pytest.raises(LedgerUnavailable, match="Access denied") as caught:
        ledger.now()
    told(caught.value)


def test_a_file_that_is_no_database(tmp_path: Path) -> None:
    file = tmp_path / "ledger.sqlite3"
    file.write_text("This is a letter to my grandmother, and no database." * 100)
    with pytest.raises(LedgerError, match="file is not a database"):
        Ledger.from_url(f"sqlite:///{file}").now()


def test_a_folder_that_went_away(tmp_path: Path) -> None:
    folder = tmp_path / "data"
    folder.mkdir()
    ledger = Ledger.from_url(f"sqlite:///{folder}/ledger.sqlite3")
    folder.rmdir()
    with pytest.raises(LedgerError, match="unable to open database file"):
        ledger.now()
    folder.mkdir()
    ledger.now()
    ledger.close()


def test_a_database_that_comes_back_is_used_again(server: Store) -> None:
    with Proxy.before(server.url) as proxy:
        ledger = Ledger.from_url(proxy.url(server.url))
        proxy.cut()
        for _ in range(2):
            with pytest.raises(LedgerUnavailable):
                ledger.now()
        proxy.mend()
        ledger.now()
        proxy.cut()
        with pytest.raises(LedgerUnavailable):
            ledger.bury("lease")
        proxy.mend()
        ledger.bury("lease")
        ledger.close()
